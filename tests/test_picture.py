"""TIFF, PNG and JPEG of a result: what the camera wrote arrives, and the colours are what the profile says."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_dng import CHOICE, SENSOR, dark, described, exiftool, exposed, tags

from exposure.client import output
from exposure.client.dng import write_dng
from exposure.client.metadata import Entry, Metadata, read_metadata
from exposure.client.picture import LONGEST, srgb_profile
from exposure.client.rawfile import RawFile
from exposure.client.recipe import Recipe
from exposure.client.tiff import ASCII, UNDEFINED
from exposure.client.triton import Answer
from exposure.srgb import linear_light

__all__ = ["dark", "described"]  # the fixtures
PICTURES = pytest.mark.parametrize("suffix", ["tiff", "png", "jpg"])
OF_THE_RAW = {
    "MakerNote",
    "ColorSpace",
    "ComponentsConfiguration",
    "CompressedBitsPerPixel",
    "CFAPattern",
    "SourceFile",
}
OF_THE_RAW |= {"ExifImageWidth", "ExifImageHeight", "InteropIndex", "InteropVersion"}


@exiftool
@PICTURES
def test_what_the_camera_wrote_arrives(described: Path, tmp_path: Path, suffix: str) -> None:
    groups = ("-ExifIFD:all", "-GPS:all", *(f"-IFD0:{name}" for name in ("Make", "Model", "Artist", "Copyright")))
    groups += ("-IFD0:ImageDescription",)
    result = exposed(described, tmp_path / f"result.{suffix}")
    before, carried, after = tags(described, *groups), tags(result, *groups), tags(result)
    expected = {name: value for name, value in before.items() if name not in OF_THE_RAW}
    assert len(expected) >= 16
    assert {name: carried.get(name) for name in expected} == expected
    assert after["Software"].startswith("exposure ")
    assert after["ProfileDescription"] == ("sRGB (linear)" if suffix == "tiff" else "sRGB built-in")
    assert "Orientation" not in after or after["Orientation"] == "Horizontal (normal)"  # LibRaw has turned it


@exiftool
@PICTURES
@pytest.mark.parametrize("name", ["exiftool_Nikon.nef", "exiftool_FujiFilm.raf", "Canon-R6-pruned.CR3"])
def test_of_other_containers_too(dark: RawFile, data: Path, tmp_path: Path, name: str, suffix: str) -> None:
    """A big-endian one among them; maker notes are left out."""
    source, result = data / "corrupt" / name, tmp_path / f"result.{suffix}"
    metadata = read_metadata(source)
    assert metadata is not None
    file = replace(dark, metadata=metadata, make=metadata.text(271), model=metadata.text(272))
    output.write(result, file, Recipe(ratio=8).finish(file, Answer(file.mosaic, file.sensor), CHOICE))
    before, after = tags(source, "-ExifIFD:all", "-GPS:all", "-IFD0:Make", "-IFD0:Model"), tags(result)
    expected = {name: value for name, value in before.items() if name not in OF_THE_RAW}
    assert len(expected) >= 15
    assert {name: after.get(name) for name in expected} == expected
    assert "Error" not in after


@PICTURES
def test_a_file_that_tells_nothing_has_a_picture(tmp_path: Path, suffix: str) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    path = tmp_path / "source.dng"
    write_dng(path, RawFile(path, mosaic, SENSOR), mosaic)
    assert exposed(path, tmp_path / f"result.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("order", ["<", ">"])
@PICTURES
def test_long_fields_are_left_out(dark: RawFile, tmp_path: Path, suffix: str, order: str) -> None:
    """A JPEG has room for 64 KiB of EXIF; a comment may hold more."""
    comment = Entry(UNDEFINED, 70_000, b"ASCII\0\0\0" + b"x" * 69_992)
    text, long = Entry(ASCII, 4, b"you\0"), Entry(ASCII, LONGEST + 1, b"y" * LONGEST + b"\0")
    told = Metadata(order, description={315: text, 270: long}, exif={37510: comment, 42033: text})
    path = tmp_path / f"result.{suffix}"
    output.write(
        path, replace(dark, metadata=told), Recipe(ratio=8).finish(dark, Answer(dark.mosaic, dark.sensor), CHOICE)
    )
    with Image.open(path) as picture:
        exif = picture.getexif()
        assert exif[315] == "you"
        assert 270 not in exif
        assert exif.get_ifd(34665)[42033] == "you"
        assert 37510 not in exif.get_ifd(34665)


def test_the_linear_profile_is_srgbs_with_a_straight_curve() -> None:
    """Through LittleCMS, a level of the TIFF becomes what sRGB's own curve makes of it."""
    levels = np.arange(256, dtype=np.uint8)
    grey = Image.fromarray(np.repeat(levels[:, None, None], 3, axis=2))
    linear, srgb = (ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile(linear=flag))) for flag in (True, False))
    seen = ImageCms.profileToProfile(grey, linear, srgb)
    assert seen is not None
    fine = np.linspace(0, 1, 10_000)
    expected = 255 * np.interp(levels / 255, linear_light(fine), fine)
    assert np.abs(np.asarray(seen, float)[:, 0, 0] - expected).max() <= 1  # of 255: a rounding, and LittleCMS's tables
    assert srgb_profile() == srgb_profile()
