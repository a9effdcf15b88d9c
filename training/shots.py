"""Simulated shots: clean scenes, exposed too short by cameras of every kind."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exposure.noise import CAMERAS, NOISE_MODELS, ReadNoise, expose_short
from exposure.schedule import PUBLISHED_PHOTON_UNIT, TRAINED_RATIOS

from .scenes import Scenes

SATURATION = PUBLISHED_PHOTON_UNIT  # S of all simulated cameras; only K / S tells them apart
DEFECTS, DEAD = (1e-5, 1e-3), 0.1  # share of pixels that are defective, log-uniform; of these, share that is dead


class Shot(NamedTuple):
    """image: [4, h, w] packed, brightened, noisy; clean: the same without noise; ratio R; electrons: S / (R * K)."""

    image: NDArray[np.float32]
    clean: NDArray[np.float32]
    ratio: np.float32
    electrons: np.float32


@dataclass(frozen=True)
class Range:
    """What cameras, sensitivities and exposures training covers.

    Gains are log-uniform between the ISO limits. Ratios are log-uniform in half of the shots, so that small ones occur,
    and uniform in the other half, so that most are large.
    """

    iso: tuple[float, float] = (100.0, 25600.0)
    ratio: tuple[float, float] = TRAINED_RATIOS
    cameras: tuple[str, ...] = tuple(CAMERAS)
    noise: tuple[str, ...] = NOISE_MODELS


class Shots:
    """An endless list of noisy and clean crops; the same index and seeds give the same shot."""

    def __init__(self, scenes: Scenes, limits: Range) -> None:
        self.scenes, self.limits = scenes, limits

    def __getitem__(self, index: int) -> Shot:
        clean = self.scenes[index]
        generator = np.random.default_rng([self.scenes.seed, index, 1])  # 1: not the numbers that drew the scene
        camera = CAMERAS[generator.choice(self.limits.cameras)]
        low, high = (np.log(camera.gain(iso)) for iso in self.limits.iso)
        gain = float(np.exp(generator.uniform(low, high)))
        least, most = self.limits.ratio
        logarithmic = float(np.exp(generator.uniform(np.log(least), np.log(most))))
        ratio = logarithmic if generator.random() < 0.5 else float(generator.uniform(least, most))
        read_noise = camera.read_noise(gain, generator.choice(self.limits.noise), generator)
        image = brightened(clean, ratio, gain, read_noise, generator)
        if generator.random() < 0.5:
            add_defects(image, ratio, generator)
        return Shot(image, clean, np.float32(ratio), np.float32(SATURATION / (ratio * gain)))


def brightened(
    clean: NDArray[np.float32], ratio: float, gain: float, read_noise: ReadNoise, seed: int | np.random.Generator
) -> NDArray[np.float32]:
    """What the network sees of a clean scene [4, h, w] after a shot that was `ratio` times too short, in [0, 1]."""
    dn = expose_short(clean, ratio=ratio, gain=gain, saturation=SATURATION, read_noise=read_noise, seed=seed)
    return np.clip(dn * (ratio / SATURATION), 0, 1).astype(np.float32)


def add_defects(image: NDArray[np.float32], ratio: float, generator: np.random.Generator) -> None:
    """Let some pixels of a brightened shot [4, h, w] not tell the light: hot ones, and dead ones, which stay black.

    A hot pixel adds charge of its own to any exposure, from 1 DN to white, log-uniform; the ratio multiplies it too.
    """
    low, high = np.log(DEFECTS)
    places = generator.random(image.shape) < np.exp(generator.uniform(low, high))
    count = np.count_nonzero(places)
    charge = np.exp(generator.uniform(0, np.log(SATURATION), count))
    dead = generator.random(count) < DEAD
    image[places] = np.where(dead, 0, np.minimum(image[places] + charge * (ratio / SATURATION), 1))
