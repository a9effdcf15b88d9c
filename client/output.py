"""Results on disk: each file appears whole, under its final name, or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from exposure.sensor import pack, unpack

from .dng import write_dng
from .rawfile import RawFile, render

FORMATS = ("dng", "tiff", "png")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed into place when the block succeeds, removed otherwise."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, file: RawFile, mosaic: NDArray[np.uint16]) -> None:
    """Write a mosaic in the format that the suffix names: CFA DNG, linear 16-bit TIFF, or sRGB PNG."""
    with whole(path) as part:
        if path.suffix == ".dng":
            write_dng(part, file, mosaic)
        elif path.suffix == ".tiff":
            tifffile.imwrite(part, render(file, mosaic, bits=16, linear=True), photometric="rgb", metadata=None)
        else:
            Image.fromarray(render(file, mosaic)).save(part)


def brightened(file: RawFile, ratio: float) -> NDArray[np.uint16]:
    """The file's own mosaic, multiplied: what one gets without denoising."""
    return unpack(pack(file.mosaic, file.sensor, ratio), file.sensor, file.mosaic.shape)


def write_preview(path: Path, file: RawFile, mosaic: NDArray[np.uint16], ratio: float) -> None:
    """Before and after, side by side: the brightened file and the result, both as LibRaw develops them."""
    pair = np.concatenate([render(file, brightened(file, ratio)), render(file, mosaic)], axis=1)
    with whole(path) as part:
        Image.fromarray(pair).save(part)
