"""Developed results: linear TIFF, sRGB PNG and JPEG, with the camera's words on the exposure and a colour profile."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from .dng import packed, pointers, software_told, with_exposure
from .metadata import INTEROPERABILITY_IFD, MAKER_NOTE, Entry, Metadata, append_directories, exif_block
from .rawfile import RawFile
from .tiff import ASCII, SHORT

JPEG_QUALITY = 95
MAKE, MODEL, SOFTWARE, COLOUR_SPACE = 271, 272, 305, 40961
SRGB, UNCALIBRATED = 1, 65535  # EXIF ColorSpace; the latter: see the profile
# ..., ComponentsConfiguration, CompressedBitsPerPixel, PixelXDimension, PixelYDimension, CFAPattern
OF_THE_RAW = {MAKER_NOTE, INTEROPERABILITY_IFD, 37121, 37122, 40962, 40963, 41730}
LONGEST = 4096  # bytes of a field: a JPEG has room for 64 KiB in all


def write_tiff(path: Path, picture: NDArray[np.uint16], file: RawFile, made_with: str) -> None:
    """[H, W, 3] uint16 with sRGB's primaries, linear, as its profile says."""
    told = _kept_metadata(file, made_with, UNCALIBRATED)
    order: Literal["<", ">"] = ">" if told.order == ">" else "<"
    content = iter([picture.tobytes() if order == "<" else picture.astype(">u2").tobytes()])
    tifffile.imwrite(  # from bytes: an array is written by NumPy itself, which does not say that the disk is full
        path,
        content,
        shape=picture.shape,
        dtype=picture.dtype,
        byteorder=order,
        photometric="rgb",
        metadata=None,
        software=False,
        iccprofile=srgb_profile(linear=True),
        extratags=[*(packed(code, entry) for code, entry in told.description.items()), *pointers(told)],
    )
    append_directories(path, told)


def write_srgb(path: Path, picture: NDArray[np.uint8], file: RawFile, made_with: str) -> None:
    """[H, W, 3] uint8, sRGB, as the suffix says: PNG, or JPEG of quality 95."""
    exif = exif_block(_kept_metadata(file, made_with, SRGB))
    Image.fromarray(picture).save(path, quality=JPEG_QUALITY, exif=exif, icc_profile=srgb_profile())


def srgb_profile(*, linear: bool = False) -> bytes:
    """LittleCMS's ICC profile of sRGB, the same bytes every time; linear: with a straight tone curve."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    content[24:36] = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)  # when it was made: ICC.1:2022, 7.2.1
    if linear:
        curve = content.index(b"para") + 12  # all three channels share it; (a x + b)^g from d on: 10.18, function 3
        content[curve : curve + 20] = struct.pack(">5i", *(int(65536 * value) for value in (1, 1, 0, 1, 0)))
        content = content.replace("sRGB built-in".encode("utf-16-be"), "sRGB (linear)".encode("utf-16-be"))
    return bytes(content)


def _kept_metadata(file: RawFile, made_with: str, colour_space: int) -> Metadata:
    """EXIF, GPS and descriptive text of the source, without what only a RAW's own pixels or bytes give a meaning."""
    metadata = with_exposure(file, file.metadata or Metadata("<"))
    description = {code: entry for code, entry in metadata.description.items() if entry.kind == ASCII}
    for code, text in ((MAKE, file.make), (MODEL, file.model), (SOFTWARE, software_told(made_with))):
        if text:
            description[code] = Entry(ASCII, len(text) + 1, text.encode("ascii", "replace") + b"\0")
    exif = {
        code: entry for code, entry in metadata.exif.items() if code not in OF_THE_RAW and len(entry.data) <= LONGEST
    }
    exif[COLOUR_SPACE] = Entry(SHORT, 1, struct.pack(metadata.order + "H", colour_space))
    short = {code: entry for code, entry in description.items() if len(entry.data) <= LONGEST}
    return replace(metadata, description=short, exif=exif)
