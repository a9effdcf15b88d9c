"""Tags from source to result: everything with a home in a DNG arrives, judged by exiftool, exiv2 and LibRaw."""

import contextlib
import errno
import json
import resource
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
import tifffile
from conftest import CFAS, tagged
from PIL import Image

from exposure import Sensor
from exposure import __version__ as version
from exposure.client import output
from exposure.client.dng import adobes_name, write_dng
from exposure.client.metadata import MAKER_NOTE, Entry, Metadata, exif_block, read_metadata
from exposure.client.picture import write_tiff
from exposure.client.rawfile import RawFile, read, render
from exposure.client.recipe import Choice, Recipe, finer
from exposure.client.triton import Answer

SENSOR = Sensor((512, 512, 512, 512), 4095, CFAS["RGGB"])
CHOICE = Choice(8, "as given", 1.77, "as given")
exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool (libimage-exiftool-perl) is not here")
exiv2 = pytest.mark.skipif(shutil.which("exiv2") is None, reason="exiv2 is not here")
DESCRIBED = {
    **{"GPSLatitude": 48.1, "GPSLatitudeRef": "N", "GPSLongitude": 11.5, "GPSLongitudeRef": "E", "GPSAltitude": 520},
    **{"ExposureTime": "1/30", "FNumber": 2.8, "ISO": 1600, "FocalLength": 50, "UserComment": "hello"},
    **{"LensModel": "50mm F1.4", "LensMake": "Maker", "DNGLensInfo": "50 50 1.4 1.4"},
    **{"DateTimeOriginal": "2024:01:02 03:04:05", "OffsetTimeOriginal": "+01:00", "Orientation#": 6},
    **{"XMP:Rating": 4, "XMP-dc:Subject": "night", "IPTC:Keywords": "star", "ImageDescription": "a dark field"},
    **{"Artist": "Somebody", "Copyright": "CC0"},
}
# What describes the file and its coding, not the exposure; the blacks are written once a cell position.
OF_THE_FILE = {
    *("SourceFile", "FileName", "Directory", "FileSize", "FileModifyDate", "FileAccessDate", "FileInodeChangeDate"),
    *("FilePermissions", "BitsPerSample", "TileWidth", "TileLength", "TileOffsets", "TileByteCounts", "DNGVersion"),
    *("LinearizationTable", "BlackLevelRepeatDim", "BlackLevel", "TIFF-EPStandardID"),
}


def tags(path: Path, *flags: str) -> dict[str, Any]:
    """What exiftool reads, by tag name."""
    told = subprocess.run(["exiftool", "-j", "-s", "-struct", *flags, path], capture_output=True, check=True).stdout
    found: dict[str, Any] = json.loads(told)[0]
    return found


def exposed(source: Path, out: Path) -> Path:
    file = read(source)
    output.write(out, file, Recipe(ratio=8).finish(file, Answer(file.mosaic, file.sensor), CHOICE))
    return out


@pytest.fixture(scope="module")
def described(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Blackmagic file with everything that a photographer's file has."""
    path = tmp_path_factory.mktemp("described") / "source.dng"
    path.write_bytes((data / "raw" / "blackmagic_dark_GBRG_12bit.dng").read_bytes())
    flags = [f"-{name}={value}" for name, value in DESCRIBED.items()]
    subprocess.run(["exiftool", "-q", "-overwrite_original", *flags, path], check=True)
    return path


@pytest.mark.parametrize(
    ("make", "model", "name"),
    [
        ("Canon", "Canon EOS 5D Mark IV", "Canon EOS 5D Mark IV"),
        ("NIKON CORPORATION", "NIKON D850", "Nikon D850"),
        ("SONY", "ILCE-7SM2", "Sony ILCE-7SM2"),
        ("OLYMPUS IMAGING CORP.", "E-M5", "Olympus E-M5"),
        ("RICOH IMAGING COMPANY, LTD.", "PENTAX K-1", "Pentax K-1"),
        ("OM Digital Solutions", "OM-1", "OM Digital Solutions OM-1"),
        ("EASTMAN KODAK COMPANY", "KODAK EASYSHARE Z981", "Kodak EASYSHARE Z981"),
        ("", "Camera", "Camera"),
        ("", "", "unknown camera"),
    ],
)
def test_a_camera_bears_adobes_name(make: str, model: str, name: str) -> None:
    """Programs find a camera's profiles by it."""
    assert adobes_name(make, model) == name


@exiftool
def test_every_tag_arrives(described: Path, tmp_path: Path) -> None:
    before, after = tags(described), tags(exposed(described, tmp_path / "result.dng"))
    lost = {name: (value, after.get(name)) for name, value in before.items() if after.get(name) != value}
    assert set(lost) <= OF_THE_FILE
    assert (after["OriginalRawFileName"], after["BitsPerSample"]) == ("source.dng", 16)
    assert after["NoiseReductionApplied"] == 1
    assert [float(part) for part in after["NoiseProfile"].split()] == pytest.approx([1.77 / 50824, 0], rel=1e-4)
    assert after["Orientation"] == "Rotate 90 CW"


@exiftool
def test_what_makes_it_again_is_told(tmp_path: Path) -> None:
    """By the program's name, where every reader shows it; ratio and gain as the server got them, in FP32."""
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    file, ratio, gain = RawFile(tmp_path / "a.arw", mosaic, SENSOR), 100 / 3, 3.0
    made_with = output.asked_for(ratio, gain, 3, 2**64 - 1, "26a4dc355b8e42248c0c7220")
    exposed = replace(Recipe(ratio=8).finish(file, Answer(mosaic, file.sensor), CHOICE), made_with=made_with)
    output.write(tmp_path / "b.dng", file, exposed)
    request = f"ratio 33.333332, gain 3 DN/e-, passes 3, seed {2**64 - 1}, checkpoint 26a4dc355b8e"
    assert np.float32("33.333332") == np.float32(ratio)
    assert tags(tmp_path / "b.dng")["Software"] == f"exposure {version} ({request})"
    assert "Warning" not in tags(tmp_path / "b.dng", "-validate", "-warning")
    assert output.asked_for(1e-7, 1.5e6, 1, 0) == "ratio 0.0000001, gain 1500000 DN/e-, passes 1, seed 0"


@exiftool
def test_exiftool_finds_nothing_wrong(described: Path, tmp_path: Path) -> None:
    result = exposed(described, tmp_path / "result.dng")
    told = subprocess.run(["exiftool", "-validate", "-warning", "-error", "-a", result], capture_output=True, text=True)
    assert told.stdout.split(":")[1].strip() == "OK", told.stdout
    picture = subprocess.run(["exiftool", "-b", "-PreviewImage", result], capture_output=True, check=True).stdout
    (tmp_path / "preview.jpg").write_bytes(picture)
    with Image.open(tmp_path / "preview.jpg") as preview:
        assert 900 < max(preview.size) <= 1024
        assert preview.width > preview.height  # as the sensor lies


@exiv2
@exiftool
def test_exiv2_reads_the_same(described: Path, tmp_path: Path) -> None:
    def read_by_exiv2(path: Path) -> dict[str, str]:
        told = subprocess.run(["exiv2", "-PEkt", path], capture_output=True, text=True)
        assert told.stderr == ""
        return dict(line.split(None, 1) for line in told.stdout.splitlines() if len(line.split(None, 1)) == 2)

    before, after = read_by_exiv2(described), read_by_exiv2(exposed(described, tmp_path / "result.dng"))
    carried = {name for name in before if name.startswith(("Exif.Photo", "Exif.GPSInfo"))}
    assert len(carried) >= 12
    assert {name: after.get(name) for name in carried} == {name: before[name] for name in carried}


@exiftool
def test_a_camera_of_the_nineties(data: Path, tmp_path: Path) -> None:
    """Big-endian, TIFF/EP tags in the first directory."""
    source = data / "raw" / "kodak_dc50_GRBG.kdc"
    before, after = tags(source), tags(exposed(source, tmp_path / "result.dng"))
    for name in ("Make", "Model", "ModifyDate", "Copyright", "ExposureTime", "FNumber", "Flash", "FocalLength"):
        assert after[name] == before[name], name
    assert "Warning" not in tags(tmp_path / "result.dng", "-validate", "-warning")


@exiftool
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("exiftool_Nikon.nef", "Quality"),
        ("exiftool_CanonRaw.cr2", "CanonImageType"),
        ("exiftool_FujiFilm.raf", "Sharpness"),
        ("Canon-R6-pruned.CR3", "LensModel"),
    ],
)
def test_maker_notes_arrive(data: Path, tmp_path: Path, name: str, note: str) -> None:
    """Notes of three makers, of which Canon's count their offsets from the old file, or from a box of it."""
    source, result = data / "corrupt" / name, tmp_path / "result.dng"
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    metadata = read_metadata(source)
    assert metadata is not None
    named: dict[str, Any] = {"make": metadata.text(271), "model": metadata.text(272)}
    file = RawFile(source, mosaic, SENSOR, metadata=metadata, **named)
    write_dng(result, file, mosaic)
    before, after = tags(source, "-MakerNotes:all"), tags(result, "-MakerNotes:all")
    assert note in before
    same = [tag for tag in before if tag in after and after[tag] == before[tag]]
    assert len(same) >= 0.95 * (len(before) - 1)  # SourceFile differs
    np.testing.assert_array_equal(read(result).mosaic, mosaic)


def test_a_maker_note_stays_where_its_other_place_is_taken(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    source = read(tagged(tmp_path / "a.dng", mosaic, (50740, 1, 6, b"Vendor", True)))
    assert source.metadata is not None
    described = replace(source.metadata, exif={MAKER_NOTE: Entry(7, 8, b"\5\0a note", offset=1234)})
    write_dng(tmp_path / "b.dng", replace(source, metadata=described), mosaic)
    back = read(tmp_path / "b.dng")
    assert back.tags["DNGPrivateData"] == (1, b"Vendor")
    assert back.metadata is not None
    assert back.metadata.exif[MAKER_NOTE].data == b"\5\0a note"
    assert back.tags["MakerNoteSafety"] == (3, 0)


@pytest.mark.parametrize("hundredths", [6400, 6413, 6437, 6499])  # as Android's cameras tell it
@pytest.mark.parametrize("keep_exposure", [False, True])
def test_black_levels_of_any_fraction_are_written(tmp_path: Path, hundredths: int, keep_exposure: bool) -> None:
    mosaic = np.random.default_rng(0).integers(70, 1000, (64, 80)).astype(np.uint16)
    source = read(tagged(tmp_path / "a.dng", mosaic, (50714, 5, 1, (hundredths, 100), True)))
    assert source.sensor.black == pytest.approx((hundredths / 100,) * 4, abs=1 / 2048)
    recipe = Recipe(ratio=8, keep_exposure=keep_exposure)
    output.write(tmp_path / "b.dng", source, recipe.finish(source, Answer(mosaic, source.sensor), CHOICE))


@pytest.mark.parametrize(("note", "safe"), [(b"Nikon\0\2x", False), (b"\x05\0a note", True), (b"\x05\0a note", False)])
def test_a_maker_note_moves_or_takes_its_old_place_along(tmp_path: Path, note: bytes, safe: bool) -> None:
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    metadata = Metadata("<", exif={MAKER_NOTE: Entry(7, len(note), note, offset=1234)}, note_is_safe=safe)
    write_dng(tmp_path / "a.dng", RawFile(tmp_path / "a.dng", mosaic, SENSOR, metadata=metadata), mosaic)
    back = read(tmp_path / "a.dng")
    assert back.metadata is not None
    if safe or note.startswith(b"Nikon"):
        assert back.metadata.exif[MAKER_NOTE].data == note
        assert back.metadata.note_is_safe
    else:
        assert MAKER_NOTE not in back.metadata.exif
        place = struct.pack(">I", 6 + len(note)) + b"II" + struct.pack(">I", 1234)
        assert back.tags["DNGPrivateData"] == (1, b"Adobe\0MakN" + place + note)
    write_dng(tmp_path / "b.dng", back, mosaic)  # once more loses nothing
    again = read(tmp_path / "b.dng")
    assert again.tags.get("DNGPrivateData") == back.tags.get("DNGPrivateData")
    assert again.metadata is not None
    assert (
        again.metadata.exif.get(MAKER_NOTE, Entry(0, 0, b"")).data
        == back.metadata.exif.get(MAKER_NOTE, Entry(0, 0, b"")).data
    )


@pytest.mark.parametrize(
    ("name", "model", "exif", "gps"),
    [
        ("Canon-R6-pruned.CR3", "Canon EOS R6", 30, 1),
        ("exiftool_FujiFilm.raf", "FinePix S5Pro", 30, 1),
        ("IMG_1361.dng", "iPhone 12 Pro", 30, 14),
    ],
)
def test_metadata_of_other_containers(data: Path, name: str, model: str, exif: int, gps: int) -> None:
    metadata = read_metadata(data / "corrupt" / name)
    assert metadata is not None
    assert metadata.text(272) == model
    assert len(metadata.exif) >= exif
    assert len(metadata.gps) == gps
    assert MAKER_NOTE in metadata.exif


@exiftool
def test_xmp_of_a_cr3_arrives(data: Path, tmp_path: Path) -> None:
    source, result = data / "corrupt" / "Canon-R6-pruned.CR3", tmp_path / "result.dng"
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    write_dng(result, RawFile(source, mosaic, SENSOR, metadata=read_metadata(source)), mosaic)
    packets = [
        subprocess.run(["exiftool", "-b", "-XMP", path], capture_output=True).stdout for path in (source, result)
    ]
    assert b"xmp:Rating" in packets[0]
    assert packets[1] == packets[0]


def test_private_data_are_those_of_a_dng(tmp_path: Path) -> None:
    """Elsewhere the codes mean other things, as in Sony's files: their maker note goes where others go."""
    note = b"SONY DSC \0\0\0a note"
    place = 8 + 2 + 3 * 12 + 4
    fields = [(34665, 4, 1, place), (50740, 1, 4, 1234), (50741, 3, 1, 1)]
    first = struct.pack("<H", 3) + b"".join(struct.pack("<HHII", *entry) for entry in fields) + bytes(4)
    exif = struct.pack("<HHHII", 1, MAKER_NOTE, 7, len(note), place + 18) + bytes(4)
    (tmp_path / "a.arw").write_bytes(b"II*\0\x08\0\0\0" + first + exif + note)
    metadata = read_metadata(tmp_path / "a.arw")
    assert metadata is not None
    assert metadata.private_data.endswith(b"II" + struct.pack(">I", place + 18) + note)
    assert MAKER_NOTE not in metadata.movable_exif


@pytest.mark.parametrize("damaged", [False, True])
def test_what_only_the_jpeg_in_an_rw2_tells_arrives(tmp_path: Path, damaged: bool) -> None:
    """Maker note and lens; what the RW2 tells itself goes before it."""
    note = b"Panasonic\0\0\0a note"
    inner = {MAKER_NOTE: Entry(7, len(note), note), 42036: Entry(2, 8, b"A lens.\0"), 34855: Entry(3, 1, b"\x64\0")}
    block = exif_block(Metadata("<", {315: Entry(2, 4, b"you\0")}, inner, {1: Entry(2, 2, b"N\0")}, note_is_safe=True))
    jpeg = b"\xff\xd8\xff\xe1" + struct.pack(">H", 2 + len(block)) + block
    jpeg = jpeg.replace(b"Exif\0\0II*\0", b"Exif\0\0II*\1") if damaged else jpeg
    mosaic = np.zeros((64, 80), np.uint16)
    tags = [(0x2E, 7, len(jpeg), jpeg, True), (34855, 3, 1, 3200, True)]
    tifffile.imwrite(tmp_path / "a.rw2", mosaic, byteorder="<", metadata=None, extratags=tags)
    with (tmp_path / "a.rw2").open("r+b") as file:
        file.write(b"IIU\0")
    metadata = read_metadata(tmp_path / "a.rw2")
    assert metadata is not None
    assert metadata.exif[34855].data == struct.pack("<H", 3200)
    if damaged:
        assert metadata.exif.keys() == {34855}
    else:
        assert (metadata.text(315), metadata.gps[1].data, metadata.exif[42036].data) == ("you", b"N\0", b"A lens.\0")
        assert metadata.private_data.endswith(b"II" + struct.pack(">I", block.index(note) - len(b"Exif\0\0")) + note)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (512, 512), (513, 529), (700, 1030), (64, 1024), (1024, 1024)])
def test_compression_is_lossless(tmp_path: Path, shape: tuple[int, int], order: str, compressed: bool) -> None:
    """Tiles at the borders are padded; a reader sees none of it. Extremes included: the differences take 17 bits."""
    random = np.random.default_rng(0)
    mosaic = random.integers(0, 65536, shape).astype(np.uint16)
    mosaic[::3] = random.choice([0, 65535], mosaic[::3].shape)
    sensor = Sensor((0, 0, 0, 0), 65535, CFAS["BGGR"])
    file = RawFile(tmp_path / "a.dng", mosaic, sensor, metadata=Metadata(order))
    write_dng(tmp_path / "a.dng", file, mosaic, compressed=compressed)
    np.testing.assert_array_equal(read(tmp_path / "a.dng").mosaic, mosaic)
    with tifffile.TiffFile(tmp_path / "a.dng") as tif:  # a second reader, which goes by the tags
        assert tif.byteorder == order
        assert tif.pages.first.tags["BitsPerSample"].value == 16
        np.testing.assert_array_equal(tif.pages.first.asarray(), mosaic)


def test_a_smooth_file_is_smaller(tmp_path: Path) -> None:
    mosaic = (np.add.outer(np.arange(1024), np.arange(1024)) + 512).astype(np.uint16)
    write_dng(tmp_path / "a.dng", RawFile(tmp_path / "a.dng", mosaic, SENSOR), mosaic)
    assert (tmp_path / "a.dng").stat().st_size < mosaic.nbytes / 4


def test_opcodes_and_profiles_stay_as_they_are(tmp_path: Path) -> None:
    opcodes = struct.pack(">IIIII", 1, 1, 0x01030000, 1, 0)
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    extra = [
        (50730, 10, 1, (-1, 2), True),  # BaselineExposure
        (50936, 2, 0, "A profile", True),  # ProfileName
        (50879, 3, 1, 1, True),  # ColorimetricReference: of the output
        (52529, 3, 1, 255, True),  # CalibrationIlluminant3: none that has a number
        *((code, 7, 4, bytes([code % 256] * 4), True) for code in (52533, 52534, 52535)),  # IlluminantData1 to 3
        *((code, 7, len(opcodes), opcodes, True) for code in (51008, 51009, 51022)),  # OpcodeList1 to 3
    ]
    source = read(tagged(tmp_path / "a.dng", mosaic, *extra))
    for whole, carried in ((True, {1, 2, 3}), (False, {2, 3})):
        write_dng(tmp_path / "b.dng", replace(source, whole_sensor=whole), mosaic)
        result = read(tmp_path / "b.dng").tags
        assert {number for number in (1, 2, 3) if result.get(f"OpcodeList{number}") == (7, opcodes)} == carried
        assert result["BaselineExposure"] == (10, (-1, 2))
        assert result["ProfileName"][1] == "A profile"
        assert (result["ColorimetricReference"][1], result["CalibrationIlluminant3"][1]) == (1, 255)
        for name, code in (("IlluminantData1", 52533), ("IlluminantData2", 52534), ("52535", 52535)):
            assert result[name] == (7, bytes([code % 256] * 4))
        assert bytes(result["DNGVersion"][1]) == bytes([1, 6, 0, 0])  # the first that knows them


def test_the_first_opcodes_stay_where_levels_do(tmp_path: Path) -> None:
    """They may hold levels: a table of them, or the constant that marks a bad pixel."""
    opcodes = struct.pack(">IIIII", 1, 1, 0x01030000, 1, 0)
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    source = read(tagged(tmp_path / "a.dng", mosaic, *((code, 7, 20, opcodes, True) for code in (51008, 51009))))
    for answer, carried in (((mosaic, source.sensor), {1, 2}), (finer(mosaic, source.sensor, 1.0)[:2], {2})):
        output.write(tmp_path / "b.dng", source, Recipe(ratio=8).finish(source, Answer(*answer), CHOICE))
        tags = read(tmp_path / "b.dng").tags
        assert {number for number in (1, 2) if f"OpcodeList{number}" in tags} == carried


@pytest.mark.parametrize(("corner", "kept"), [((2, 4), True), ((3, 5), False)])
def test_opcodes_of_another_corner_are_left_out(tmp_path: Path, corner: tuple[int, int], kept: bool) -> None:
    """From an odd side LibRaw begins a pixel later; a gain map of red would then lie on blue."""
    opcodes = struct.pack(">IIIII", 1, 1, 0x01030000, 1, 0)
    mosaic = np.random.default_rng(0).integers(600, 4000, (80, 96)).astype(np.uint16)
    extra = [(50829, 4, 4, (*corner, 68, 84), True), *((code, 7, 20, opcodes, True) for code in (51009, 51022))]
    source = read(tagged(tmp_path / "a.dng", mosaic, *extra))
    assert (source.at_active_area, source.whole_sensor) == (kept, False)
    write_dng(tmp_path / "b.dng", source, source.mosaic)
    assert {f"OpcodeList{number}" in read(tmp_path / "b.dng").tags for number in (2, 3)} == {kept}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_preview_lies_as_the_mosaic(tmp_path: Path, orientation: int) -> None:
    mosaic = np.full((128, 192), 600, np.uint16)
    mosaic[:32, :48] = 12000  # top left on the sensor
    sensor = Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"])
    path = tmp_path / "source.dng"
    described = RawFile(path, mosaic, sensor, orientation=orientation, white_balance=(1, 1, 1))
    write_dng(path, described, mosaic)
    exposed(path, tmp_path / "result.dng")
    with rawpy.imread(str(tmp_path / "result.dng")) as raw:
        (tmp_path / "preview.jpg").write_bytes(bytes(raw.extract_thumb().data))
    with Image.open(tmp_path / "preview.jpg") as preview:
        levels = np.asarray(preview.convert("L"))
    assert levels.shape == (64, 96)
    assert levels[4, 4] > 150 > 100 > levels[-4, -4]
    assert max(levels[4, -4], levels[-4, 4]) < 100


@pytest.mark.parametrize("width", [1023, 1024, 1025, 2048, 2049, 2050, 2051])
def test_results_of_every_width_are_what_was_written(tmp_path: Path, width: int) -> None:
    """Also where the small copy that becomes the preview is 1024 pixels wide."""
    mosaic = np.random.default_rng(0).integers(512, 1000, (256, width)).astype(np.uint16)
    file = RawFile(tmp_path / "nowhere.dng", mosaic, SENSOR)
    output.write(tmp_path / "result.dng", file, Recipe(ratio=8).finish(file, Answer(mosaic, file.sensor), CHOICE))
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint16) + 512, mosaic.shape)
    small = output._thumbnail(file, ramp, tmp_path / "small.dng")
    assert (np.diff(small[small.shape[0] // 2, :, 1].astype(int)) >= -1).all()  # no tile of another place


@pytest.mark.parametrize(
    ("make", "model"),
    [("LEICA CAMERA AG", "LEICA SL2"), ("Panasonic", "DMC-LX100"), ("LEICA CAMERA AG", "D-LUX (Typ 109)")],
)
@pytest.mark.parametrize("width", [320, 4480])
def test_margins_that_libraw_knows_by_a_cameras_name_are_no_part_of_a_result(
    tmp_path: Path, make: str, model: str, width: int
) -> None:
    mosaic = np.random.default_rng(0).integers(512, 1000, (160, width)).astype(np.uint16)
    file = RawFile(tmp_path / "nowhere.raw", mosaic, SENSOR, make=make, model=model, white_balance=(2, 1, 1.5))
    output.write(tmp_path / "result.dng", file, Recipe(ratio=8).finish(file, Answer(mosaic, SENSOR), CHOICE))
    with tifffile.TiffFile(tmp_path / "result.dng") as tif:
        assert tif.pages.first.tags["Model"].value == model
    other = output._thumbnail(replace(file, make="Maker", model="Model 1"), mosaic, tmp_path / "small.dng")
    np.testing.assert_array_equal(output._thumbnail(file, mosaic, tmp_path / "small.dng"), other)


@exiftool
@pytest.mark.parametrize("name", ["plain.dng", "Nacht über Köln.dng", "夜.dng"])
def test_the_name_of_the_source_arrives(tmp_path: Path, name: str) -> None:
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    write_dng(tmp_path / "a.dng", RawFile(tmp_path / name, mosaic, SENSOR), mosaic)
    assert tags(tmp_path / "a.dng")["OriginalRawFileName"] == name
    write_dng(tmp_path / "b.dng", read(tmp_path / "a.dng"), mosaic)  # once more keeps the first
    assert tags(tmp_path / "b.dng")["OriginalRawFileName"] == name


def test_a_name_that_is_no_text_is_written_nevertheless(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    write_dng(tmp_path / "a.dng", RawFile(Path("night\udcff.arw"), mosaic, SENSOR), mosaic)
    assert read(tmp_path / "a.dng").tags["OriginalRawFileName"] == (1, b"night?.arw\0")


def test_a_matrix_that_is_not_carried_over_does_not_take_the_place_of_ours(tmp_path: Path) -> None:
    """Colour tags are carried from a DNG only; a TIFF of another kind may bear one of their numbers."""
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    stray = {"ColorMatrix1": (10, bytes(72)), "AsShotNeutral": (5, bytes(24))}
    file = RawFile(tmp_path / "a.arw", mosaic, SENSOR, tags=stray, white_balance=(2, 1, 1.5))
    write_dng(tmp_path / "a.dng", file, mosaic)
    written = read(tmp_path / "a.dng").tags
    assert any(written["ColorMatrix1"][1])
    assert any(written["AsShotNeutral"][1])


def test_the_preview_of_a_large_frame_is_its_development(data: Path, tmp_path: Path) -> None:
    """Reduced before it is developed, not after: gamma and means do not commute, so noise costs a level in places."""
    source = read(data / "raw" / "blackmagic_dark_GBRG_12bit.dng")
    mosaic = np.tile(output.brightened(source, 8.0), (2, 2))
    large = replace(source, path=tmp_path / "large.dng", stamp=(), mosaic=mosaic)
    write_dng(large.path, large, mosaic)
    preview = output._thumbnail(large, mosaic, tmp_path / "small.dng").astype(int)
    assert preview.shape == (556, 976, 3)
    developed = Image.fromarray(render(large, mosaic, half_size=True)).resize((976, 556), Image.Resampling.BOX)
    difference = np.abs(preview - np.asarray(developed))
    assert difference.mean() < 1  # of 255
    assert np.percentile(difference, 99) < 8


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files end at `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["dng", "tiff", "png", "jpg"])
def test_what_the_system_says_of_a_failed_write_is_kept(tmp_path: Path, suffix: str) -> None:
    """Its number: by it a run knows that no later file will fare better."""
    mosaic = np.random.default_rng(0).integers(600, 4000, (256, 256)).astype(np.uint16)
    path = tmp_path / "source.dng"
    write_dng(path, RawFile(path, mosaic, SENSOR), mosaic)
    with largest_file(4096), pytest.raises(OSError, match="File too large") as failed:
        exposed(path, tmp_path / f"result.{suffix}")
    assert failed.value.errno == errno.EFBIG
    assert [entry.name for entry in tmp_path.iterdir()] == ["source.dng"]


def test_a_result_needs_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    path = tmp_path / "source.dng"
    write_dng(path, RawFile(path, mosaic, SENSOR), mosaic)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    exposed(path, tmp_path / "result.dng")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["result.dng", "source.dng"]


@pytest.mark.parametrize("suffix", ["dng", "tiff", "png"])
def test_what_reads_differently_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    path = tmp_path / "source.dng"
    write_dng(path, RawFile(path, mosaic, SENSOR), mosaic)
    save = Image.Image.save
    monkeypatch.setattr(output, "write_dng", lambda part, file, mosaic, *_, **__: write_dng(part, file, mosaic ^ 1))
    monkeypatch.setattr(output, "write_tiff", lambda part, picture, *told: write_tiff(part, picture ^ 1, *told))
    monkeypatch.setattr(Image.Image, "save", lambda image, part, **_: save(image.point(lambda level: level ^ 1), part))
    with pytest.raises(OSError, match="reads differently than it was written"):
        exposed(path, tmp_path / f"result.{suffix}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source.dng"]


@pytest.fixture
def dark(tmp_path: Path) -> RawFile:
    mosaic = (600 + np.add.outer(np.arange(64), np.arange(80))).astype(np.uint16)
    path = tmp_path / "dark.dng"
    write_dng(path, RawFile(path, mosaic, SENSOR, white_balance=(1, 1, 1)), mosaic)
    return read(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("most", [1000, 8000])  # pixels: Pillow warns above, and refuses twice as many
def test_pictures_larger_than_pillow_opens_are_written(
    dark: RawFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """As before and after of a 100 MP sensor, side by side."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    result = output.Exposed(dark.sensor, dark.mosaic, (1, 0), 1.0)
    output.write_preview(tmp_path / "preview.png", dark, result, 8.0)
    output.write(tmp_path / "result.jpg", dark, result)
    assert most == Image.MAX_IMAGE_PIXELS  # foreign pictures stay as they were


@pytest.mark.parametrize("suffix", ["tiff", "png", "jpg"])
def test_pictures_show_the_result(dark: RawFile, tmp_path: Path, suffix: str) -> None:
    result, path = output.brightened(dark, 8), tmp_path / f"result.{suffix}"
    output.write(path, dark, Recipe(ratio=8).finish(dark, Answer(result, dark.sensor), CHOICE))
    if suffix == "tiff":
        np.testing.assert_array_equal(tifffile.imread(path), render(dark, result, bits=16, linear=True))
    else:
        with Image.open(path) as picture:
            difference = np.abs(np.asarray(picture, int) - render(dark, result))
        assert difference.mean() <= (2 if suffix == "jpg" else 0)  # of 255


def test_pictures_of_coarse_files_have_the_levels_of_the_result(tmp_path: Path) -> None:
    """Ten bits with a black of 63.97, as phones have: black is black, not magenta, and a ramp has its finer steps."""
    sensor = Sensor((63.97,) * 4, 1023, CFAS["RGGB"])
    mosaic = np.random.default_rng(0).integers(60, 90, (64, 1000)).astype(np.uint16)
    write_dng(tmp_path / "a.dng", RawFile(tmp_path / "a.dng", mosaic, sensor, white_balance=(2, 1, 1.6)), mosaic)
    file, recipe, choice = read(tmp_path / "a.dng"), Recipe(ratio=8), CHOICE
    asked = recipe.request(file, choice)
    np.testing.assert_array_equal(render(file, asked["mosaic"], asked["sensor"]), render(file, mosaic))  # as bright
    black = np.full_like(mosaic, round(asked["sensor"].black[0]))
    ramp = np.tile(np.linspace(black[0, 0], black[0, 0] + 800, 1000), (64, 1)).astype(np.uint16)
    shown = [recipe.finish(file, Answer(answer, asked["sensor"]), choice) for answer in (black, ramp)]
    output.write(tmp_path / "black.tiff", file, shown[0])
    output.write(tmp_path / "ramp.tiff", file, shown[1])
    assert tifffile.imread(tmp_path / "black.tiff").max() <= 5  # of 65535
    assert len(np.unique(tifffile.imread(tmp_path / "ramp.tiff")[32, :, 1])) > 400  # 51 with the steps of the source


def test_the_preview_shows_before_and_after(dark: RawFile, tmp_path: Path) -> None:
    result = np.full_like(dark.mosaic, 3000)
    output.write_preview(tmp_path / "preview.png", dark, output.Exposed(dark.sensor, result, (1, 0), 1.0), 8.0)
    with Image.open(tmp_path / "preview.png") as preview:
        before, after = np.hsplit(np.asarray(preview), 2)
    np.testing.assert_array_equal(before, render(dark, output.brightened(dark, 8.0)))
    np.testing.assert_array_equal(after, render(dark, result))
