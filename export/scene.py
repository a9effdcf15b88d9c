"""Low light, simulated and real: the input on which graphs and engines are held against torch."""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exposure.noise import CAMERAS, choose_gain
from exposure.schedule import unroll
from exposure.sensor import SMALLEST_SIDE, pack, pad
from exposure.training.leaves import dead_leaves
from exposure.training.scenes import DAYLIGHT, unprocessed
from exposure.training.shots import SATURATION, brightened

SIMULATED = CAMERAS["SonyA7S2"]
ODD_FRAME = (333, 467)
EVENING = replace(DAYLIGHT, exposure=0.4)  # a mean of 0.15 to 0.2, of what was taken in the dark
REAL_CROP = 512  # side of the middle of a real file, in mosaic pixels


@dataclass(frozen=True)
class Scene:
    """image: [1, 4, h, w] noisy packed RAW, brightened, any sides; clean: its truth, where there is one.

    ratio, gain (DN per electron), saturation (DN) and passes plan the loop.
    """

    name: str
    image: NDArray[np.float32]
    clean: NDArray[np.float32] | None
    ratio: float
    gain: float
    saturation: float
    passes: int = 3


@dataclass(frozen=True)
class Crop:
    """image: [1, 4, h, w] noisy packed RAW, brightened; photon_gain: of the first pass."""

    image: NDArray[np.float32]
    photon_gain: float


@functools.cache
def clean_scene(height: int, width: int, seed: int) -> NDArray[np.float32]:
    """A clean packed scene, [4, h, w] in [0, 1]: dead leaves as a camera's planes. Not to be written to."""
    picture = dead_leaves(2 * max(height, width), seed)
    return unprocessed(picture[: 2 * height, : 2 * width], EVENING)


def simulated_scenes(frame: tuple[int, int]) -> Iterator[Scene]:
    """The smallest, an odd and a whole frame (mosaic height, width), each darker than the one before it."""
    smallest = (SMALLEST_SIDE, SMALLEST_SIDE)
    for seed, (name, ratio, size) in enumerate(
        [("smallest", 20, smallest), ("odd", 100, ODD_FRAME), ("full-frame", 300, frame)]
    ):
        height, width = ((side + 1) // 2 for side in size)
        image, clean = _expose(_filled(height, width, seed), ratio, SIMULATED.gain(3200), seed)
        passes = 1 if name == "full-frame" else 3  # a pass of it takes a CPU seconds
        yield Scene(name, image, clean, ratio, SIMULATED.gain(3200), SATURATION, passes)


def real_scenes() -> Iterator[Scene]:
    """The middle of every readable RAW file in $EXPOSURE_DATA/raw, or ../shared/raw; none where there is no folder."""
    folder = Path(os.environ.get("EXPOSURE_DATA", Path(__file__).resolve().parents[2] / "shared")) / "raw"
    for path in sorted(folder.glob("*")):
        from exposure.client import rawfile  # the one place that opens RAW files; its libraries may not be here

        try:
            file = rawfile.read(path)
        except (ValueError, OSError):  # not a Bayer file: some there are not meant to be
            continue
        top, left = (max(0, side - REAL_CROP) // 4 * 2 for side in file.mosaic.shape)
        mosaic = file.mosaic[top : top + REAL_CROP, left : left + REAL_CROP]
        ratio = float(np.clip(0.3 / max(1e-3, pack(mosaic, file.sensor, 1).mean()), 1, 300))
        image = pack(mosaic, file.sensor, ratio)[None]
        try:
            gain, _ = choose_gain(file.model, file.iso, file.noise_profile, file.sensor.saturation)
            unroll(ratio, gain, file.sensor.saturation, 1)
        except ValueError:
            gain = file.sensor.saturation / 4096  # a middle one; any serves to compare two engines
        yield Scene(path.name, image, None, ratio, gain, file.sensor.saturation)


def low_light_crops(photon_unit: float, multiple: int = 16) -> Iterator[Crop]:
    """A mild, a dark and a very dark crop as a Sony A7S2 at ISO 3200 would record them; odd and even tilings.

    photon_unit, multiple: the network's.
    """
    gain = SIMULATED.gain(3200)
    for seed, (ratio, height, width) in enumerate([(20, 128, 160), (100, 256, 256), (300, 176, 208)]):
        image, _ = _expose(clean_scene(height, width, seed), ratio, gain, seed)
        yield Crop(pad(image, multiple), unroll(ratio, gain, SATURATION, 1, photon_unit=photon_unit)[0].photon_gain)


def _expose(
    scene: NDArray[np.float32], ratio: float, gain: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the simulated camera packs of a clean scene, and the scene, both [1, 4, h, w]."""
    return brightened(scene, ratio, gain, SIMULATED.read_noise(gain), seed)[None], scene[None]


def _filled(height: int, width: int, seed: int) -> NDArray[np.float32]:
    """A scene of any size: one of at most 256 x 256, mirrored on."""
    scene = clean_scene(min(height, 256), min(width, 256), seed)
    for axis, side in ((1, height), (2, width)):
        while scene.shape[axis] < side:
            scene = np.concatenate([scene, np.flip(scene, axis)], axis)
        scene = scene.take(range(side), axis)
    return scene
