"""Results on disk: each file appears whole, under its final name, or not at all."""

import glob
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from exposure.files import whole
from exposure.sensor import SMALLEST_SIDE, Sensor, pack, unpack

from .dng import write_dng
from .picture import write_srgb, write_tiff
from .rawfile import RawFile, read_once, render

FORMATS = ("dng", "tiff", "png", "jpg")
PART = ".exposure-part"  # in the name of every temporary file
Note = Callable[[Path], None]
PREVIEW_SIDE = 1024  # pixels
UNDONE_BY = {  # TIFF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Exposed:
    """A result. mosaic: [H, W] DN in the levels of `sensor`, those of its source or finer ones.

    noise_profile: (s, o) with variance = s * signal + o, signal in [0, 1]; noise_reduction: its strength, 0 to 1.
    made_with: what was asked of which network, by `asked_for`; a DNG tells it.
    """

    sensor: Sensor
    mosaic: NDArray[np.uint16]
    noise_profile: tuple[float, float]
    noise_reduction: float
    made_with: str = ""


def asked_for(
    ratio: float,
    gain: float,
    passes: int,
    seed: int,
    checkpoint: str = "",
    *,
    strength: float = 1.0,
    keep_exposure: bool = False,
    defects: int | None = 0,
    dark_frames: int = 0,
) -> str:
    """What makes the same mosaic once more: ratio, gain in DN of the source, and the first digits of the checkpoint.

    defects: pixels that were corrected, None where they are kept. dark_frames: that were subtracted.
    """
    told = f"ratio {_fp32(ratio)}, gain {_fp32(gain)} DN/e-, passes {passes}, seed {seed}"
    told += f", checkpoint {checkpoint[:12]}" if checkpoint else ""
    told += f", strength {strength:g}" if strength < 1 else ""
    told += ", exposure kept" if keep_exposure else ""
    told += f", {dark_frames} dark frame{'s' * (dark_frames > 1)} subtracted" if dark_frames else ""
    if defects is None:
        return f"{told}, defects kept"
    return f"{told}, {defects} defects corrected" if defects else told


def _fp32(value: float) -> str:
    return np.format_float_positional(np.float32(value), trim="-")  # as few digits as tell it from its neighbours


def part_of(path: Path) -> Path:
    """The temporary name of a result, for this process alone."""
    return path.with_name(f".{path.stem}.{os.getpid()}{PART}{path.suffix}")


def parts_of(path: Path) -> Iterator[Path]:
    """Temporary files that killed processes left of `path`."""
    return path.parent.glob(f".{glob.escape(path.stem)}.*{PART}{glob.escape(path.suffix)}")


def write(path: Path, file: RawFile, exposed: Exposed, note: Note | None = None) -> None:
    """Write a result in the format that the suffix names: CFA DNG, linear 16-bit TIFF, sRGB PNG or JPEG.

    What was written is opened again and compared before it gets its name. note: is given the finished file just before
    it is renamed. Raises OSError when it differs.
    """
    with whole(path, part=part_of(path), note=note) as part:
        if path.suffix == ".dng":
            kept = file.whole_sensor and exposed.sensor == file.sensor  # OpcodeList1 may speak of the levels stored
            described = replace(file, sensor=exposed.sensor, whole_sensor=kept)
            write_dng(
                part,
                described,
                exposed.mosaic,
                exposed.noise_profile,
                noise_reduction=exposed.noise_reduction,
                preview=_thumbnail(described, exposed.mosaic, part),
                made_with=exposed.made_with,
            )
            back = read_once(part, own=True)
            same = np.array_equal(back.mosaic, exposed.mosaic) and back.sensor == exposed.sensor
        elif path.suffix == ".tiff":
            picture = render(file, exposed.mosaic, exposed.sensor, bits=16, linear=True)
            write_tiff(part, picture, file, exposed.made_with)
            same = np.array_equal(tifffile.imread(part), picture)
        else:
            picture = render(file, exposed.mosaic, exposed.sensor)
            write_srgb(part, picture, file, exposed.made_with)
            same = _reads_like(part, picture)
        if not same:
            raise OSError(f"{path} reads differently than it was written; nothing is kept of it")


def _thumbnail(file: RawFile, mosaic: NDArray[np.uint16], part: Path) -> NDArray[np.uint8]:
    """A small picture, as the sensor lies: the orientation tag turns it with the mosaic.

    LibRaw develops a small copy of the DNG: decoding the source once more takes longer than all the rest. It lies at
    `part` until the DNG itself is written there, so that no other disk can be full.
    """
    factor = -(-max(mosaic.shape) // (2 * PREVIEW_SIDE))
    small = _binned(mosaic, factor) if min(mosaic.shape) >= factor * SMALLEST_SIDE else mosaic
    nameless = {name: tag for name, tag in file.tags.items() if name != "UniqueCameraModel"}
    # LibRaw takes margins for granted in any file of some cameras, by their name
    copy = replace(file, path=part, stamp=(), crop=None, metadata=None, make="", model="", tags=nameless)
    write_dng(part, copy, small, compressed=False)  # its writing and reading take a sixth of the time
    picture = Image.fromarray(render(copy, small, half_size=True))
    turned = picture.transpose(UNDONE_BY[file.orientation]) if file.orientation in UNDONE_BY else picture
    turned.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return np.asarray(turned)


def _binned(mosaic: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """Means of `factor` x `factor` cells, position by position: a mosaic of the same CFA, so much smaller."""
    height, width = (side // (2 * factor) for side in mosaic.shape)
    cells = mosaic[: 2 * factor * height, : 2 * factor * width].reshape(height, factor, 2, width, factor, 2)
    total = np.zeros((height, 2, width, 2), np.uint32)
    # NumPy's mean over these axes takes ten times longer.
    for row, column in itertools.product(range(factor), repeat=2):
        total += cells[:, row, :, :, column, :]
    return (total // factor**2).astype(np.uint16).reshape(2 * height, 2 * width)


def brightened(file: RawFile, ratio: float) -> NDArray[np.uint16]:
    """The file's own mosaic, multiplied: what one gets without denoising."""
    return unpack(pack(file.mosaic, file.sensor, ratio), file.sensor, file.mosaic.shape)


def write_preview(path: Path, file: RawFile, exposed: Exposed, ratio: float, note: Note | None = None) -> None:
    """Before and after, side by side: the brightened file and the result, both as LibRaw develops them."""
    after = render(file, exposed.mosaic, exposed.sensor)
    pair = np.concatenate([render(file, brightened(file, ratio)), after], axis=1)
    with whole(path, part=part_of(path), note=note) as part:
        Image.fromarray(pair).save(part)
        if not _reads_like(part, pair):
            raise OSError(f"{path} reads differently than it was written; nothing is kept of it")


def _reads_like(path: Path, picture: NDArray[np.uint8]) -> bool:
    """Whether a PNG holds the picture, or a JPEG one of its size. Both are our own: they may be larger than Pillow's
    `open` lets foreign ones be.
    """
    with (JpegImageFile if path.suffix == ".jpg" else PngImageFile)(path) as image:
        again = np.asarray(image)
    return again.shape == picture.shape and (path.suffix == ".jpg" or np.array_equal(again, picture))
