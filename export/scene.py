"""Simulated low light: the input on which graphs and engines are held against torch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exposure.noise import CAMERAS, expose_short
from exposure.schedule import PUBLISHED_PHOTON_UNIT, unroll


@dataclass(frozen=True)
class Crop:
    """image: [1, 4, h, w] noisy packed RAW, brightened; photon_gain: of the first pass."""

    image: NDArray[np.float32]
    photon_gain: float


def dead_leaves(height: int, width: int, seed: int) -> NDArray[np.float64]:
    """A clean packed scene, [4, h, w] in [0, 1]: occluding discs whose radii follow a power law, softly lit.

    Such images have the edges and the scale invariance of photographs (Lee, Mumford and Huang, 2001). A pixel averages
    2x2 samples, as a photosite integrates over its area.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 2 * height, 0 : 2 * width] / 2
    scene = np.empty((4, 2 * height, 2 * width))
    scene[:] = random.uniform(0.02, 0.4, (4, 1, 1))
    for radius in sorted(2.0 + 0.4 * min(height, width) * random.power(0.4, 150), reverse=True):
        row, column = random.uniform(0, height), random.uniform(0, width)
        red, green, blue = 0.9 * random.uniform(0, 1, 3) ** 2
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        scene[:, inside] = np.array([red, green, blue, green])[:, None]
    light = 0.25 + 0.75 * (rows / height + columns / width) / 2
    return np.clip(scene * light, 0, 1).reshape(4, height, 2, width, 2).mean(axis=(2, 4))


def low_light_crops(photon_unit: float) -> Iterator[Crop]:
    """A mild, a dark and a very dark crop as a Sony A7S2 at ISO 3200 would record them; odd and even tilings."""
    camera, saturation = CAMERAS["SonyA7S2"], PUBLISHED_PHOTON_UNIT
    gain = camera.gain(3200)
    for seed, (ratio, height, width) in enumerate([(20, 128, 160), (100, 256, 256), (300, 176, 208)]):
        electrons = expose_short(
            dead_leaves(height, width, seed),
            ratio=ratio,
            gain=gain,
            saturation=saturation,
            read_noise=camera.read_noise(gain),
            seed=seed,
        )
        image = np.clip(electrons / saturation * ratio, 0, 1).astype(np.float32)[None]
        yield Crop(image, unroll(ratio, gain, saturation, 1, photon_unit=photon_unit)[0].photon_gain)
