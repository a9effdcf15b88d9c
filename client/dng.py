"""Write a CFA DNG: a mosaic with the levels, phase and colour of the file it came from (Adobe DNG 1.4)."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

import exposure

from .rawfile import RawFile, text_of

# TIFF field types
ASCII, BYTE, SHORT, LONG, RATIONAL, SRATIONAL, DOUBLE = 2, 1, 3, 4, 5, 10, 12
D65 = 21  # EXIF LightSource

# What a DNG says about colour, carried over as it is: code by tifffile's name.
COLOUR_TAGS = {
    "ColorMatrix1": 50721,
    "ColorMatrix2": 50722,
    "CameraCalibration1": 50723,
    "CameraCalibration2": 50724,
    "AnalogBalance": 50727,
    "AsShotNeutral": 50728,
    "AsShotWhiteXY": 50729,
    "BaselineExposure": 50730,
    "CalibrationIlluminant1": 50778,
    "CalibrationIlluminant2": 50779,
    "ForwardMatrix1": 50964,
    "ForwardMatrix2": 50965,
}

Tag = tuple[int, int, int, Any, bool]


def write_dng(
    path: Path,
    file: RawFile,
    mosaic: NDArray[np.uint16],
    noise_profile: tuple[float, float] | None = None,
    *,
    noise_reduction: float | None = None,
) -> None:
    """Write `mosaic` ([H, W] DN) uncompressed, described as `file` is; opens in LibRaw with the same levels.

    noise_profile: (s, o) with variance = s * signal + o, signal in [0, 1]; the file's own is never carried over,
    since it describes another exposure. noise_reduction: what the NoiseReductionApplied tag says, 0 to 1.
    """
    noise = [_tag(51041, DOUBLE, noise_profile)] if noise_profile else []  # NoiseProfile
    if noise_reduction is not None:
        noise.append(_tag(50935, RATIONAL, _rationals([noise_reduction])))  # NoiseReductionApplied
    tifffile.imwrite(
        path,
        mosaic,
        photometric="cfa",
        subfiletype=0,
        metadata=None,
        software=f"exposure {exposure.__version__}",
        extratags=[*_sensor_tags(file), *_colour_tags(file), *_camera_tags(file), *noise],
    )


def _sensor_tags(file: RawFile) -> list[Tag]:
    sensor = file.sensor
    tags = [
        _tag(50706, BYTE, (1, 4, 0, 0)),  # DNGVersion
        _tag(50707, BYTE, (1, 1, 0, 0)),  # DNGBackwardVersion
        _tag(33421, SHORT, (2, 2)),  # CFARepeatPatternDim
        _tag(33422, BYTE, [colour for row in sensor.cfa for colour in row]),  # CFAPattern
        _tag(50710, BYTE, (0, 1, 2)),  # CFAPlaneColor
        _tag(50711, SHORT, (1,)),  # CFALayout: rectangular
        _tag(50713, SHORT, (2, 2)),  # BlackLevelRepeatDim
        _tag(50714, RATIONAL, _rationals(sensor.black)),  # BlackLevel
        _tag(50717, LONG, (round(sensor.white),)),  # WhiteLevel
    ]
    if file.crop:
        left, top, width, height = file.crop
        tags += [_tag(50719, LONG, (left, top)), _tag(50720, LONG, (width, height))]  # DefaultCropOrigin, -Size
    return tags


def _colour_tags(file: RawFile) -> list[Tag]:
    if "ColorMatrix1" in file.tags:
        return [_tag(code, *file.tags[name]) for name, code in COLOUR_TAGS.items() if name in file.tags]
    tags = []
    if file.xyz_to_camera:
        tags += [_tag(50721, SRATIONAL, _rationals(file.xyz_to_camera)), _tag(50778, SHORT, (D65,))]
    if file.white_balance:
        tags.append(_tag(50728, RATIONAL, _rationals([1 / gain for gain in file.white_balance])))
    return tags


def _camera_tags(file: RawFile) -> list[Tag]:
    name = text_of(file.tags, "UniqueCameraModel") or f"{file.make} {file.model}".strip() or "unknown camera"
    tags = [_text(50708, name), _tag(274, SHORT, (file.orientation,))]  # UniqueCameraModel, Orientation
    tags += [_text(code, text) for code, text in ((271, file.make), (272, file.model)) if text]
    if 0 < file.iso <= 65535:
        tags.append(_tag(34855, SHORT, (round(file.iso),)))  # ISOSpeedRatings
    if file.exposure_s:
        tags.append(_tag(33434, RATIONAL, _rationals([file.exposure_s])))  # ExposureTime
    return tags


def _tag(code: int, kind: int, value: Any) -> Tag:
    values = tuple(np.atleast_1d(value).tolist())
    count = len(values) // 2 if kind in (RATIONAL, SRATIONAL) else len(values)
    return code, kind, count, values if len(values) > 1 else values[0], True


def _text(code: int, text: str) -> Tag:
    return code, ASCII, 0, text.encode("ascii", "replace").decode(), True


def _rationals(values: Sequence[float]) -> tuple[int, ...]:
    """Numerators and denominators, alternating, exact to 1e-6."""
    fractions = [Fraction(value).limit_denominator(1_000_000) for value in values]
    return tuple(part for fraction in fractions for part in (fraction.numerator, fraction.denominator))
