"""A low-light RAW file of known truth: a public-domain photograph, unprocessed to what a sensor would have read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from exposure.files import whole
from exposure.noise import CAMERAS, expose_short, noise_profile
from exposure.sensor import Sensor, recorded, unpack
from exposure.srgb import SRGB_TO_XYZ, linear_light

from .dng import write_dng
from .inputs import prepare_folder
from .output import part_of
from .rawfile import RawFile

# A camera with the levels of the Sony A7S2, and a daylight colour matrix (XYZ to camera, D65).
SENSOR = Sensor(black=(800, 800, 800, 800), white=16383, cfa=((0, 1), (1, 2)))
XYZ_TO_CAMERA = np.array([[0.66, -0.19, -0.05], [-0.46, 1.23, 0.26], [-0.06, 0.14, 0.65]])
CAMERA = "SonyA7S2"
MODEL = f"simulated {CAMERA}"
NAMES = ("sample.dng", "sample_clean.dng")
ISO = (50.0, 409_600.0)  # what that camera can be set to


@dataclass(frozen=True)
class Sample:
    """The two files: `dark` is noisy and `ratio` times too short, `clean` the noiseless long exposure."""

    dark: Path
    clean: Path
    ratio: float
    gain: float


def make_sample(folder: Path, *, ratio: float = 100.0, iso: float = 3200.0, seed: int = 0) -> Sample:
    """Write sample.dng and sample_clean.dng, 512x512 RGGB, 14 bit, with a noise profile in the dark one.

    The scene is NASA's portrait of the astronaut Eileen Collins (public domain, shipped with scikit-image); the noise
    is the `P+g` model of the Sony A7S2. Raises ValueError for numbers that make no sense, and rather than replace a
    file that is no sample.
    """
    _check(ratio, iso, seed)
    for name in NAMES:
        refuse_others(folder / name)
    prepare_folder(folder)
    camera = CAMERAS[CAMERA]
    gain = camera.gain(iso)
    read_noise = camera.read_noise(gain)
    clean = unpack(_scene(), SENSOR, (512, 512))
    black, saturation = SENSOR.black[0], SENSOR.saturation  # the same at every cell position
    dn = expose_short(
        (clean - black) / saturation, ratio=ratio, gain=gain, saturation=saturation, read_noise=read_noise, seed=seed
    )
    dark = recorded(dn, SENSOR)
    profile = noise_profile(gain, read_noise.scale, saturation)
    sample = Sample(folder / NAMES[0], folder / NAMES[1], ratio, gain)
    for path, mosaic, noise in ((sample.dark, dark, profile), (sample.clean, clean, None)):
        with whole(path, part=part_of(path)) as part:
            write_dng(part, _described(path, mosaic, iso), mosaic, noise)
    return sample


def refuse_others(path: Path) -> None:
    """Raise ValueError, one sentence, where a file is there that is not of the simulated camera."""
    if path.exists() and _model_of(path) != MODEL:
        raise ValueError(f"{path} exists, and is not of the simulated camera; give another --out")


def _model_of(path: Path) -> str:
    try:
        with tifffile.TiffFile(path) as tif:
            return str(tif.pages.first.tags["Model"].value)
    except Exception:  # tifffile raises many kinds on what is no TIFF
        return ""


def _check(ratio: float, iso: float, seed: int) -> None:
    """Raise ValueError, one sentence that names the flag, for a number that makes no sense."""
    if not 1 <= ratio < np.inf:
        raise ValueError(f"--ratio is {ratio:g}; it must be at least 1")
    if not ISO[0] <= iso <= ISO[1]:
        raise ValueError(f"--iso is {iso:g}; the simulated camera goes from {ISO[0]:g} to {ISO[1]:g}")
    if seed < 0:
        raise ValueError(f"--seed is {seed}; it must not be negative")


def _scene() -> NDArray[np.float32]:
    """The photograph as linear camera signal under D65, packed, [4, 256, 256], brightest just below white."""
    from skimage import data

    camera_rgb = np.clip(linear_light(data.astronaut() / 255.0) @ (XYZ_TO_CAMERA @ SRGB_TO_XYZ).T, 0, None)
    scene = 0.98 * camera_rgb / camera_rgb.max()
    planes = [scene[row::2, column::2, SENSOR.cfa[row][column]] for row, column in SENSOR.planes]
    return np.stack(planes).astype(np.float32)


def _described(path: Path, mosaic: NDArray[np.uint16], iso: float) -> RawFile:
    neutral = XYZ_TO_CAMERA @ SRGB_TO_XYZ @ np.ones(3)
    red, green, blue = (neutral[1] / neutral).tolist()
    return RawFile(
        path=path,
        mosaic=mosaic,
        sensor=SENSOR,
        make="exposure",
        model=MODEL,
        iso=iso,
        white_balance=(red, green, blue),
        xyz_to_camera=tuple(XYZ_TO_CAMERA.ravel().tolist()),
    )
