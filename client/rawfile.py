"""RAW files: read the mosaic and what the camera says about it, or refuse with the reason. The home of rawpy."""

import contextlib
import ctypes
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rawpy
from numpy.typing import NDArray

from exposure.files import reason_of
from exposure.sensor import SMALLEST_SIDE, Sensor, shape_text

from .black import Black, black_of
from .metadata import Metadata, read_metadata
from .tags import END_OF_DATA, Tags, active_corner, known_numbers, read_tags, text_of

LEAST_BITS_PER_PIXEL = 0.25  # the tightest lossy RAW stays above 1; below, the data is not there
MOST_DEAD_ROWS = 15  # of a sensor; files that were allotted and not filled have more
NOT_A_MOSAIC = {0: "grayscale", 1: "grayscale", 2: "RGB", 3: "palette"}  # TIFF PhotometricInterpretation
PLAIN_TIFF = b"II*\0", b"MM\0*"
# TIFF and its dialects (Olympus, Panasonic, Phase One), Canon CRW, Fuji, Minolta, Sigma, ARRI, Nokia, QuickTake, Red.
SIGNATURES = (
    *(*PLAIN_TIFF, b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"IIII", b"MMMM", b"II\x1a\0", b"MM\0\x1a", b"FUJIFILM"),
    *(b"\0MRM", b"FOVb", b"ARRI", b"NOKIARAW", b"qktk", b"qktn", b"\0\0\0RED"),
)
M_PERTURB = -6  # of glibc's malloc.h
FILLS = 0x01, 0x02  # leftovers in memory of the first and second look, so dark that levels make sense nevertheless
ORIENTATIONS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}  # LibRaw's flip to the TIFF tag

Crop = tuple[float, float, float, float]
Stamp = tuple[int, ...]

_stderr = threading.RLock()  # one descriptor for the whole process


class RawFileError(ValueError):
    """A file that is not done: mostly no Bayer RAW that we can read. The message is one sentence, without the path."""


@dataclass(frozen=True)
class RawFile:
    """One exposure. mosaic: [H, W] uint16 DN, the visible area, first pixel at the CFA's origin.

    white_balance: multipliers of R, G, B with green 1, or None; xyz_to_camera: 3x3 rows R, G, B, or None (LibRaw's
    table for the camera); crop: left, top, width, height that the camera would show, in a DNG not always whole;
    pixel_aspect: a pixel's width by its height; orientation: TIFF tag 274; iso, exposure_s, aperture (f-number): 0
    where unknown; tags: (TIFF field type, value) by tag name, of all IFDs, the main image's first; metadata: what is
    carried byte for byte; whole_sensor: the mosaic has no margins cut off; at_active_area: it begins where a DNG's
    ActiveArea does; stamp: the file's size, time and place when it was read; dark_frames: whose excess over black was
    subtracted from the mosaic; checksum: CRC-32 of what LibRaw decoded.
    """

    path: Path
    mosaic: NDArray[np.uint16]
    sensor: Sensor
    model: str = ""
    make: str = ""
    iso: float = 0.0
    exposure_s: float = 0.0
    aperture: float = 0.0
    orientation: int = 1
    white_balance: tuple[float, float, float] | None = None
    xyz_to_camera: tuple[float, ...] | None = None
    crop: Crop | None = None
    pixel_aspect: float = 1.0
    whole_sensor: bool = True
    at_active_area: bool = True
    stamp: Stamp = ()
    dark_frames: int = 0
    checksum: int = 0
    tags: Tags = field(default_factory=dict, repr=False)
    metadata: Metadata | None = field(default=None, repr=False)

    @property
    def noise_profile(self) -> tuple[float, ...]:
        """The DNG NoiseProfile tag, empty where the file has none."""
        return known_numbers(self.tags, "NoiseProfile")


def read(path: str | os.PathLike[str]) -> RawFile:
    """Read any Bayer RAW that LibRaw reads. Raises RawFileError, one sentence, for everything else."""
    return unless_by_chance(read_once(path), checksum_of(path))


def read_once(path: str | os.PathLike[str], *, own: bool = False) -> RawFile:
    """`read` without the second look, for which see `unless_by_chance`.

    own: the mosaic is held against the one that was just written there; so nothing that is missing is looked for, and
    margins that LibRaw cuts off any file of some cameras stay.
    """
    path = Path(path)
    with _refusals():
        stamp = stamp_of(path)
        _refuse_other_files(path)
        with _quiet(), _heap_filled_with(FILLS[0]), rawpy.imread(str(path)) as raw:
            _refuse_other_sensors(raw)
            tags = read_tags(path, raw.raw_image.shape)
            mosaic = np.array(raw.raw_image if own else raw.raw_image_visible)
            checksum = zlib.crc32(mosaic.data)
            if not own:
                _refuse_missing_data(path, mosaic, tags)
            black, mosaic = _levelled(raw, mosaic, tags)
            metadata = read_metadata(path)
            return RawFile(
                path=path,
                mosaic=mosaic,
                sensor=_sensor(raw, mosaic, black),
                model=_camera(tags, metadata, "Model", 272) or text_of(tags, "UniqueCameraModel"),
                make=_camera(tags, metadata, "Make", 271),
                iso=float(raw.other.iso_speed) or max(known_numbers(tags, "ISOSpeedRatings"), default=0.0),
                exposure_s=float(raw.other.shutter_speed),
                aperture=float(raw.other.aperture),
                orientation=ORIENTATIONS.get(raw.sizes.flip, 1),
                white_balance=_white_balance(raw),
                xyz_to_camera=_xyz_to_camera(raw),
                crop=_crop(raw.sizes, mosaic.shape, tags),
                pixel_aspect=float(raw.sizes.pixel_aspect),
                whole_sensor=raw.raw_image.shape == mosaic.shape,
                at_active_area=active_corner(tags) == (raw.sizes.top_margin, raw.sizes.left_margin),
                stamp=stamp,
                checksum=checksum,
                tags=tags,
                metadata=metadata,
            )


def checksum_of(path: str | os.PathLike[str]) -> int:
    """CRC-32 of the mosaic, decoded over other leftovers in memory than `read_once` does. Raises RawFileError."""
    path = Path(path)
    with _refusals():
        _refuse_other_files(path)
        with _quiet(), _heap_filled_with(FILLS[1]), rawpy.imread(str(path)) as raw:
            return zlib.crc32(np.array(raw.raw_image_visible).data)


def unless_by_chance(file: RawFile, checksum: int) -> RawFile:
    """The file, if the other look found the same: what LibRaw does not write differs. Raises RawFileError."""
    if file.checksum != checksum:
        raise RawFileError("it is damaged: parts of its data are missing, and read differently each time")
    return file


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What LibRaw and the system say, in a sentence."""
    try:
        yield
    except (rawpy.LibRawError, NotImplementedError, RuntimeError) as error:
        raise RawFileError(f"LibRaw cannot read it ({_reason(error)})") from error
    except OSError as error:
        raise RawFileError(f"it cannot be opened ({reason_of(error)})") from error


def render(
    file: RawFile,
    mosaic: NDArray[np.uint16],
    sensor: Sensor | None = None,
    *,
    bits: int = 8,
    linear: bool = False,
    half_size: bool = False,
) -> NDArray[Any]:
    """Develop a mosaic as LibRaw would develop the file it came from: [h, w, 3] sRGB, 8 or 16 bit.

    sensor: in whose levels it is, where not in the file's. linear: no tone curve, for further processing. half_size:
    one pixel for each 2x2 cell, quickly. Raises RawFileError where the file has gone or changed meanwhile.
    """
    levels = sensor or file.sensor
    try:
        if file.stamp and stamp_of(file.path) != file.stamp:
            raise RawFileError("it has changed since it was read")
        with rawpy.imread(str(file.path)) as raw:
            raw.raw_image_visible[:] = mosaic
            black = _black_of_colours(raw, levels)
            return raw.postprocess(
                user_black=0,
                user_cblack=black,
                user_sat=round(levels.white) - min(black),  # LibRaw sets it when black is subtracted already
                use_camera_wb=file.white_balance is not None,
                no_auto_bright=True,
                half_size=half_size,
                adjust_maximum_thr=0.0,  # else LibRaw takes a picture's brightest pixel for white
                output_bps=bits,
                gamma=(1, 1) if linear else (2.4, 12.92),
            )
    except rawpy.LibRawError as error:
        raise RawFileError(f"LibRaw cannot read it once more, to develop it ({_reason(error)})") from error
    except OSError as error:
        raise RawFileError(f"it cannot be opened once more, to develop it ({reason_of(error)})") from error


def _black_of_colours(raw: Any, sensor: Sensor) -> list[int]:
    """Of LibRaw's colours R, G, B and the other G; rounded, where LibRaw itself cuts a DNG's fractions off."""
    cells = _colours_of_cell(raw).ravel()
    black = np.array(sensor.black)
    return [round(float(black[cells == colour].mean() if colour in cells else black.mean())) for colour in range(4)]


def stamp_of(path: Path) -> Stamp:
    """Size, time and place: what differs once a file is written anew or replaced."""
    known = path.stat()
    return known.st_size, known.st_mtime_ns, known.st_ino


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what LibRaw prints on standard error by itself: the caller gets one sentence instead."""
    with _stderr:
        sys.stderr.flush()
        saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(sink, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(sink)


def _refuse_other_files(path: Path) -> None:
    if path.is_dir():
        raise RawFileError("it is a folder")
    start = _start_of(path)
    if not start:
        raise RawFileError("it is empty")
    if not start.startswith(SIGNATURES) and start[4:12] != b"ftypcrx ":
        raise RawFileError("it does not begin like a RAW file")  # LibRaw would guess its layout from its size


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _refuse_other_sensors(raw: Any) -> None:
    if raw.raw_type != rawpy.RawType.Flat:
        raise RawFileError("it is already demosaiced (linear RGB), not a mosaic")
    pattern = raw.raw_pattern
    if pattern is None or raw.num_colors == 1:  # first: LibRaw names filters there, too
        raise RawFileError("it has no colour filter array: a monochrome picture")
    if raw.color_desc != b"RGBG" or raw.num_colors != 3:
        names = raw.color_desc.decode(errors="replace")
        raise RawFileError(f"its sensor has four kinds of filters ({names}, says LibRaw), not red, green and blue")
    if pattern.shape != (2, 2):
        raise RawFileError(
            f"its colour filter array is {shape_text(pattern.shape)} (X-Trans or the like), not 2x2 Bayer"
        )


def _refuse_missing_data(path: Path, mosaic: NDArray[np.uint16], tags: Tags) -> None:
    _, photometric = tags.get("PhotometricInterpretation", (0, None))
    kind = NOT_A_MOSAIC.get(photometric)
    if kind and _start_of(path).startswith(PLAIN_TIFF):  # Olympus declares its mosaics grayscale
        raise RawFileError(f"it declares a {kind} picture, not a colour filter array")
    if min(mosaic.shape) < SMALLEST_SIDE:
        raise RawFileError(f"it is {shape_text(mosaic.shape)}; both sides must be at least {SMALLEST_SIDE}")
    if 3 in known_numbers(tags, "SampleFormat"):
        raise RawFileError("its samples are floating-point numbers (of a merged HDR?); only whole ones are handled")
    size = path.stat().st_size
    if max(known_numbers(tags, END_OF_DATA), default=0) > size or 8 * size < LEAST_BITS_PER_PIXEL * mosaic.size:
        raise RawFileError(f"it is truncated: {size} bytes do not hold its {shape_text(mosaic.shape)} pixels")
    if mosaic.min() == mosaic.max():
        raise RawFileError(f"its data is missing: every pixel reads {mosaic.flat[0]} DN")


@contextlib.contextmanager
def _heap_filled_with(byte: int) -> Iterator[None]:
    """Fill memory that is asked for with a byte, where the C library is GNU's (mallopt(3): M_PERTURB, complemented)."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        yield
        return
    set_option(M_PERTURB, byte ^ 0xFF)
    try:
        yield
    finally:
        set_option(M_PERTURB, 0)


def _levelled(raw: Any, mosaic: NDArray[np.uint16], tags: Tags) -> tuple[Black, NDArray[np.uint16]]:
    """Black of the four cells, a DNG's as its tags tell, and the mosaic without what deviates from it."""
    b0, b1, b2, b3 = (float(raw.black_level_per_channel[colour]) for colour in _colours_of_cell(raw).ravel())
    known = b0, b1, b2, b3
    if "DNGVersion" not in tags:
        return known, mosaic
    top, left = active_corner(tags)
    corner = max(raw.sizes.top_margin - top, 0), max(raw.sizes.left_margin - left, 0)
    try:
        black, deviation = black_of(tags, (mosaic.shape[0], mosaic.shape[1]), corner)
    except KeyError:
        return known, mosaic
    except ValueError as error:
        raise RawFileError(str(error)) from error
    # more than LibRaw's rounding of three parts and ours of two: it found others elsewhere in the file
    if not min(black) - 3 <= min(known) <= max(known) <= max(black) + 2:
        return known, mosaic
    if deviation is None:
        return black, mosaic
    return black, np.clip(np.rint(mosaic - deviation), 0, 65535).astype(np.uint16)


def _sensor(raw: Any, mosaic: NDArray[np.uint16], black: Black) -> Sensor:
    pattern = _colours_of_cell(raw)
    if sorted(pattern.ravel()) not in ([0, 1, 1, 2], [0, 1, 2, 3]):
        raise RawFileError("its colour filter array is not 2x2 Bayer (quad Bayer or the like)")
    try:
        sensor = Sensor(black, float(raw.white_level), np.where(pattern == 3, 1, pattern))  # type: ignore[arg-type]
    except ValueError as error:
        raise RawFileError(f"its levels make no sense: {error}") from error
    if np.count_nonzero(mosaic > sensor.white) > mosaic.size / 2:
        raise RawFileError(f"its levels make no sense: most pixels are above white ({sensor.white:g} DN)")
    if mosaic.max() <= min(black):
        raise RawFileError(f"it holds no light: no pixel is above black ({min(black):g} DN)")
    empty = np.count_nonzero(~mosaic.any(axis=1)) if min(black) >= 1 else 0  # read noise leaves no row at 0 then
    if empty > MOST_DEAD_ROWS:
        raise RawFileError(f"parts of its data are missing: {empty} rows read 0 DN, where black is {min(black):g}")
    return sensor


def _colours_of_cell(raw: Any) -> NDArray[np.int_]:
    """LibRaw's colours of the mosaic's first 2x2 pixels; 3 is the green of blue's rows."""
    top, left = raw.sizes.top_margin, raw.sizes.left_margin  # raw_colors_visible would be made for the whole frame
    return np.array([[raw.raw_color(top + row, left + column) for column in (0, 1)] for row in (0, 1)])


def _white_balance(raw: Any) -> tuple[float, float, float] | None:
    red, green, blue, _ = raw.camera_whitebalance
    return (red / green, 1.0, blue / green) if min(red, green, blue) > 0 else None


def _xyz_to_camera(raw: Any) -> tuple[float, ...] | None:
    matrix = raw.rgb_xyz_matrix[:3]
    return tuple(float(value) for value in matrix.ravel()) if np.any(matrix) else None


def _crop(sizes: Any, shape: tuple[int, ...], tags: Tags) -> Crop | None:
    """A DNG's own, for LibRaw rounds it to whole cells; else LibRaw's."""
    shown = sizes.crop_left_margin, sizes.crop_top_margin, sizes.crop_width, sizes.crop_height
    origin, size = known_numbers(tags, "DefaultCropOrigin"), known_numbers(tags, "DefaultCropSize")
    top, left = active_corner(tags)
    own = [(left + origin[0], top + origin[1], *size)] if "DNGVersion" in tags and len(origin + size) == 4 else []
    for x, y, width, height in (*own, shown):
        x, y = x - sizes.left_margin, y - sizes.top_margin
        if min(x, y) >= 0 and min(width, height) > 0 and x + width <= shape[1] and y + height <= shape[0]:
            return x, y, width, height
    return None


def _camera(tags: Tags, metadata: Metadata | None, name: str, code: int) -> str:
    """Make or model; outside TIFF, from the metadata."""
    return text_of(tags, name) or (metadata.text(code) if metadata else "")


def _reason(error: Exception) -> str:
    argument = error.args[0] if error.args else ""
    told = argument.decode(errors="replace") if isinstance(argument, bytes) else str(argument) or type(error).__name__
    return f"{told}; it may be truncated" if told == "Input/output error" else told
