"""Reading and judging real RAW files; DNGs that come back as they were."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
import tifffile
from conftest import CFAS, plain_tags, tagged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exposure import Sensor
from exposure.client import dng
from exposure.client.dng import write_dng
from exposure.client.output import brightened
from exposure.client.rawfile import RawFile, RawFileError, read, render
from exposure.client.reader import Reader, readers
from exposure.client.sample import make_sample
from exposure.files import whole
from exposure.noise import choose_gain


def written(path: Path, sensor: Sensor, shape: tuple[int, int] = (64, 80), **described: Any) -> RawFile:
    """A DNG of random DN within the sensor's levels, and what it was written from."""
    mosaic = np.random.default_rng(0).integers(int(min(sensor.black)), int(sensor.white) + 1, shape).astype(np.uint16)
    file = RawFile(path=path, mosaic=mosaic, sensor=sensor, **described)
    write_dng(path, file, mosaic)
    return file


def test_blackmagic(data: Path) -> None:
    file = read(data / "raw" / "blackmagic_dark_GBRG_12bit.dng")
    assert file.mosaic.shape == (1112, 1952)
    assert file.sensor == Sensor((256, 256, 256, 256), 51080, CFAS["GBRG"])
    assert file.crop == (16, 16, 1920, 1080)
    assert file.model == "Blackmagic Pocket Cinema Camera"
    assert file.white_balance == pytest.approx((10000 / 8722, 1, 10000 / 5928))  # AsShotNeutral


def test_kodak(data: Path) -> None:
    file = read(data / "raw" / "kodak_dc50_GRBG.kdc")
    assert file.mosaic.shape == (512, 768)
    assert file.sensor == Sensor((0, 0, 0, 0), 16383, CFAS["GRBG"])
    assert file.iso == 84


@pytest.mark.parametrize("name", ["blackmagic_dark_GBRG_12bit.dng", "kodak_dc50_GRBG.kdc"])
def test_a_result_opens_like_its_source(data: Path, tmp_path: Path, name: str) -> None:
    source = read(data / "raw" / name)
    write_dng(tmp_path / "copy.dng", source, source.mosaic)
    copy = read(tmp_path / "copy.dng")
    np.testing.assert_array_equal(copy.mosaic, source.mosaic)
    assert (copy.sensor, copy.crop, copy.orientation) == (source.sensor, source.crop, source.orientation)
    assert (copy.model, copy.make, copy.iso) == (source.model, source.make, source.iso)
    assert copy.white_balance == pytest.approx(source.white_balance, rel=1e-5)
    with rawpy.imread(str(source.path)) as a, rawpy.imread(str(copy.path)) as b:
        if np.any(a.color_matrix):
            np.testing.assert_allclose(b.color_matrix, a.color_matrix, atol=1e-4)
        else:  # a DNG must have one: a monitor's
            np.testing.assert_allclose(b.color_matrix[:, :3], np.eye(3), atol=1e-4)
        assert b.raw_pattern is not None
        assert a.raw_pattern is not None
        np.testing.assert_array_equal(b.raw_pattern, a.raw_pattern)
    if name.endswith(".dng"):  # for the Kodak, LibRaw has a matrix built in that it tells nobody
        np.testing.assert_array_equal(render(copy, copy.mosaic), render(source, source.mosaic))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    phase=st.sampled_from(list(CFAS)),
    black=st.tuples(*[st.integers(0, 8000).map(lambda quarters: quarters / 4)] * 4),  # fractions, as phones tell them
    white=st.integers(4000, 65535),
    shape=st.tuples(st.integers(32, 90), st.integers(32, 90)),
    orientation=st.integers(1, 8),
)
def test_dng_round_trip(
    tmp_path: Path, phase: str, black: Any, white: int, shape: tuple[int, int], orientation: int
) -> None:
    described = {"orientation": orientation, "make": "Maker", "model": "Model 1", "white_balance": (2.0, 1.0, 1.5)}
    file = written(tmp_path / "a.dng", Sensor(black, white, CFAS[phase]), shape, **described)
    back = read(file.path)
    np.testing.assert_array_equal(back.mosaic, file.mosaic)
    assert (back.sensor, back.orientation, back.model) == (file.sensor, orientation, "Model 1")
    assert back.white_balance == pytest.approx(file.white_balance, rel=1e-5)


@pytest.mark.parametrize(
    ("top", "left", "black"), [(2, 4, (500, 510, 520, 530)), (1, 1, (500, 500, 500, 500)), (3, 2, (500, 510, 520, 530))]
)
def test_the_visible_area_has_its_own_phase(tmp_path: Path, top: int, left: int, black: tuple[int, ...]) -> None:
    """CFA pattern and black of a DNG count from its active area; LibRaw trims an odd margin to the next even one."""
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    tags = [
        (50829, 4, 4, (top, left, 64, 80), True),  # ActiveArea
        (50713, 3, 2, (2, 2), True),  # BlackLevelRepeatDim
        (50714, 4, 4, black, True),  # BlackLevel
    ]
    file = read(tagged(tmp_path / "a.dng", mosaic, *tags, cfa="BGGR"))
    row, column = top % 2, left % 2  # of the first visible pixel, counted from the active area
    height, width = file.mosaic.shape
    np.testing.assert_array_equal(file.mosaic, mosaic[top + row :, left + column :][:height, :width])
    np.testing.assert_array_equal(file.sensor.cfa, np.roll(CFAS["BGGR"], (-row, -column), (0, 1)))
    assert file.sensor.black == tuple(np.roll(np.reshape(black, (2, 2)), (-row, -column), (0, 1)).ravel())


@pytest.mark.parametrize("tenths", [2001, 2009])  # LibRaw cuts off, and adds rounded means
def test_black_that_slopes_is_taken_out(tmp_path: Path, tenths: int) -> None:
    """BlackLevel + BlackLevelDeltaH of the column + BlackLevelDeltaV of the row: no stripes are left."""
    signal = np.random.default_rng(0).integers(100, 3000, (64, 80))
    across, down = np.arange(80) % 7 + np.arange(80) // 20, np.arange(64) % 5
    mosaic = np.rint(signal + tenths / 10 + across + down[:, None]).astype(np.uint16)
    path = tagged(
        tmp_path / "a.dng",
        mosaic,
        (50714, 5, 1, (tenths, 10), True),  # BlackLevel
        (50715, 10, 80, tuple(int(n) for step in across for n in (step, 1)), True),  # BlackLevelDeltaH
        (50716, 10, 64, tuple(int(n) for step in down for n in (step, 1)), True),  # BlackLevelDeltaV
    )
    file = read(path)
    black = np.tile(np.reshape(file.sensor.black, (2, 2)), (32, 40))
    assert np.abs(file.mosaic - black - signal).max() <= 0.11  # DN: the sensor's own rounding; whole steps leave none
    assert np.mean(black) == pytest.approx(tenths / 10 + across.mean() + down.mean(), abs=1)
    write_dng(tmp_path / "b.dng", file, file.mosaic)
    assert read(tmp_path / "b.dng").sensor.black == pytest.approx(file.sensor.black, abs=1e-3)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ([(50714, 4, 4, (500, 500, 500, 500), True)], r"4 numbers for cells of \[1, 1\]"),
        ([(50713, 3, 1, 2, True), (50714, 4, 1, 500, True)], r"1 numbers for cells of \[2\]"),
        ([(50714, 4, 1, 500, True), (50715, 10, 80, (0, 0) * 80, True)], "its BlackLevelDeltaH holds numbers that are"),
    ],
)
def test_odd_black_tags_are_refused(tmp_path: Path, tags: list[Any], reason: str) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    with pytest.raises(RawFileError, match=reason):
        read(tagged(tmp_path / "a.dng", mosaic, *tags))


@pytest.mark.parametrize("magic", [b"IIRO", b"IIRS", b"MMOR"])
def test_olympus_declares_its_mosaics_grayscale(tmp_path: Path, magic: bytes) -> None:
    mosaic = np.random.default_rng(0).integers(300, 4000, (64, 80)).astype(np.uint16)
    bits = (mosaic[..., None] >> np.arange(12)[::-1] & 1).astype(np.uint8)
    packed = np.packbits(bits).reshape(-1, 4)[:, ::-1].tobytes()  # in words of four bytes
    layout: dict[str, Any] = {"shape": mosaic.shape, "dtype": np.uint16, "bitspersample": 12, "rowsperstrip": 64}
    camera = [(271, 2, 0, "OLYMPUS IMAGING CORP.", True), (272, 2, 0, "E-M10", True)]
    with tifffile.TiffWriter(tmp_path / "a.orf", byteorder=">" if magic[:1] == b"M" else "<") as tif:
        tif.write(iter([packed]), photometric="minisblack", metadata=None, extratags=camera, **layout)
    with (tmp_path / "a.orf").open("r+b") as file:
        file.write(magic)
    back = read(tmp_path / "a.orf")
    np.testing.assert_array_equal(back.mosaic, mosaic)
    assert (back.model, back.sensor) == ("E-M10", Sensor((0, 0, 0, 0), 4095, CFAS["RGGB"]))


@pytest.mark.parametrize(
    ("corner", "origin", "size", "crop"),
    [
        ((0, 0), (5, 3), (40, 30), (5, 3, 40, 30)),
        ((2, 4), (5, 3), (40, 30), (5, 3, 40, 30)),
        ((1, 1), (4, 4), (40, 30), (3, 3, 40, 30)),  # LibRaw begins a pixel later
        ((0, 0), (4.5, 3.25), (40, 30.5), (4.5, 3.25, 40, 30.5)),
        ((0, 0), (4, 4), (90, 30), None),  # wider than the mosaic
        ((0, 0), (4, 4), (0, 30), None),
    ],
)
def test_the_crop_of_a_dng_stays_exactly_as_it_is(
    tmp_path: Path, corner: tuple[int, int], origin: Any, size: Any, crop: Any
) -> None:
    """LibRaw moves odd origins by one; the specification allows fractions."""
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    pairs = ((50719, origin), (50720, size))  # DefaultCropOrigin, DefaultCropSize, in quarters of a pixel
    tags = [(code, 5, 2, (int(4 * x), 4, int(4 * y), 4), True) for code, (x, y) in pairs]
    active_area = (50829, 4, 4, (*corner, 64, 80), True)
    source = read(tagged(tmp_path / "a.dng", mosaic, active_area, *tags))
    write_dng(tmp_path / "b.dng", source, source.mosaic)
    assert source.crop == read(tmp_path / "b.dng").crop == crop


def test_the_crop_of_a_preview_is_not_the_mosaics(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    path = tagged(tmp_path / "a.dng", mosaic)
    crop = [(50719, 4, 2, (4, 4), True), (50720, 4, 2, (8, 8), True)]
    tifffile.imwrite(path, np.ones((32, 40), np.uint8), append=True, metadata=None, subfiletype=1, extratags=crop)
    assert read(path).crop is None


@pytest.mark.parametrize(("aspect", "scale"), [(0.5, (1, 1, 2, 1)), (1.5, (3, 2, 1, 1))])
def test_pixels_that_are_no_squares_keep_their_shape(tmp_path: Path, aspect: float, scale: tuple[int, ...]) -> None:
    """As those of Nikon's D1X, which are twice as high as they are wide."""
    mosaic = np.random.default_rng(0).integers(512, 4000, (64, 80)).astype(np.uint16)
    camera = [(271, 2, 0, "NIKON CORPORATION", True), (272, 2, 0, "NIKON D1X", True)]
    not_a_dng = [tag for tag in plain_tags() if tag[0] != 50706]
    tifffile.imwrite(tmp_path / "a.nef", mosaic, photometric="cfa", metadata=None, extratags=[*not_a_dng, *camera])
    file = read(tmp_path / "a.nef")
    assert file.pixel_aspect == 0.5
    write_dng(tmp_path / "b.dng", replace(file, pixel_aspect=aspect), file.mosaic)
    back = read(tmp_path / "b.dng")
    assert (back.pixel_aspect, back.tags["DefaultScale"]) == (aspect, (5, scale))
    write_dng(tmp_path / "c.dng", back, back.mosaic)  # carried
    assert read(tmp_path / "c.dng").tags["DefaultScale"] == (5, scale)
    height, width, _ = render(back, back.mosaic).shape
    assert width / height == pytest.approx(aspect * back.mosaic.shape[1] / back.mosaic.shape[0], rel=0.02)


def test_other_mosaics_are_refused(tmp_path: Path) -> None:
    """A cell of 6x6, as Fujifilm's X-Trans has it, and no colour at all."""
    mosaic = np.random.default_rng(0).integers(600, 4000, (66, 84)).astype(np.uint16)
    cell = np.array([[1, 2, 1, 1, 0, 1], [0, 1, 0, 2, 1, 2], [1, 2, 1, 1, 0, 1]], np.uint8)
    cell = np.concatenate([cell, np.roll(cell, 3, axis=1)])
    plain = [tag for tag in plain_tags("RGGB") if tag[0] not in (33421, 33422)]
    tags = [(33421, 3, 2, (6, 6), True), (33422, 1, 36, tuple(cell.ravel().tolist()), True)]
    tifffile.imwrite(tmp_path / "xtrans.dng", mosaic, photometric="cfa", metadata=None, extratags=[*plain, *tags])
    with pytest.raises(RawFileError, match=r"its colour filter array is 6x6 \(X-Trans or the like\), not 2x2 Bayer"):
        read(tmp_path / "xtrans.dng")
    tifffile.imwrite(tmp_path / "mono.dng", mosaic, photometric="minisblack", metadata=None, extratags=plain)
    with tifffile.TiffFile(tmp_path / "mono.dng", mode="r+") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(34892)  # type: ignore[union-attr]  # LinearRaw
    with pytest.raises(RawFileError, match="it has no colour filter array: a monochrome picture"):
        read(tmp_path / "mono.dng")


def test_other_pictures_of_a_file_say_nothing_about_its_mosaic(tmp_path: Path) -> None:
    """A depth map of floating-point numbers, with a black level of its own."""
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    path = tagged(tmp_path / "a.dng", mosaic, (50714, 4, 1, 500, True))
    depth = [(50713, 3, 2, (2, 2), True), (50714, 4, 4, (1, 2, 3, 4), True)]
    tifffile.imwrite(path, np.ones((32, 40), np.float32), append=True, metadata=None, subfiletype=8, extratags=depth)
    assert read(path).sensor.black == (500, 500, 500, 500)


def test_black_of_a_larger_pattern_and_numbers_with_points_are_refused(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    repeat = (50713, 3, 2, (4, 4), True)  # BlackLevelRepeatDim
    even = tagged(tmp_path / "even.dng", mosaic, repeat, (50714, 4, 16, 4 * (64, 66, 64, 66), True))
    assert read(even).sensor.black == (64, 66, 64, 66)
    uneven = tagged(tmp_path / "uneven.dng", mosaic, repeat, (50714, 4, 16, tuple(range(64, 128, 4)), True))
    with pytest.raises(RawFileError, match="its black level repeats every 4x4 pixels"):
        read(uneven)
    with pytest.raises(RawFileError, match="floating-point"):
        read(tagged(tmp_path / "float.dng", (mosaic / 4095).astype(np.float32)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raw/nikon_d500_linear_rgb.dng", "already demosaiced"),
        ("raw/canon_6d_linear_lossy.dng", "already demosaiced"),
        ("raw/canon_g1_cmyg.crw", "four kinds of filters .GMCY"),
        ("corrupt/notbayer_DJI_FLIR_thermal.tif", "grayscale"),
        ("corrupt/notbayer_gray16_512.tif", "grayscale"),
        ("corrupt/notbayer_palette_73x43.tif", "palette"),
        ("corrupt/exiftool_DNG.dng", "truncated"),
        ("corrupt/twelvemonkeys_1952x1112_GBRG_trunc1k.dng", "truncated"),
        ("corrupt/lfs_pointer.dng", "does not begin like a RAW file"),
        ("corrupt/empty.arw", "it is empty"),
        ("corrupt", "it is a folder"),
        ("nowhere.arw", "no such file"),
        ("raw/dslr_768x512_rggb.u16", "does not begin like a RAW file"),
    ],
)
def test_refusals_tell_the_reason(data: Path, name: str, reason: str) -> None:
    with pytest.raises(RawFileError, match=reason):
        read(data / name)


def test_every_corrupt_file_is_refused(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = sorted((data / "corrupt").iterdir())
    assert len(files) >= 30
    for path in files:
        with pytest.raises(RawFileError) as caught:
            read(path)
        assert "\n" not in str(caught.value), path
    assert capfd.readouterr().err == ""  # neither LibRaw nor tifffile speaks for itself


def test_other_paths_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.dng"):
        with pytest.raises(RawFileError):
            read(path)


@pytest.mark.parametrize("fill", [0, 512, 16383])
def test_constant_data_is_refused(tmp_path: Path, fill: int) -> None:
    file = written(tmp_path / "a.dng", Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"]))
    write_dng(file.path, file, np.full_like(file.mosaic, fill))
    with pytest.raises(RawFileError, match=f"every pixel reads {fill} DN"):
        read(file.path)


def test_lightless_and_small_files_are_refused(tmp_path: Path) -> None:
    sensor = Sensor((5000, 5000, 5000, 5000), 16383, CFAS["RGGB"])
    file = written(tmp_path / "a.dng", sensor)
    write_dng(file.path, file, (file.mosaic // 8).astype(np.uint16))
    with pytest.raises(RawFileError, match="holds no light"):
        read(file.path)
    written(file.path, sensor, (30, 80))
    with pytest.raises(RawFileError, match="30x80; both sides must be at least 32"):
        read(file.path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_dngs_are_refused(tmp_path: Path, keep: float) -> None:
    file = written(tmp_path / "a.dng", Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"]))
    content = file.path.read_bytes()
    file.path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(RawFileError):
        read(file.path)


def test_the_sample_is_what_it_says(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, ratio=100, iso=3200, seed=1)
    dark, clean = read(sample.dark), read(sample.clean)
    gain, reason = choose_gain(dark.model, dark.iso, dark.noise_profile, dark.sensor.saturation)
    assert gain == pytest.approx(sample.gain, rel=1e-6)
    assert reason == "noise profile of the file"
    assert clean.noise_profile == ()
    expected = (clean.mosaic.astype(float) - 800) / 100
    error = dark.mosaic.astype(float) - 800 - expected
    variance = gain * expected + 6.13**2 + 1 / 12  # shot, read (A7S2 at K = 3.0), quantisation
    assert abs(np.mean(error**2 / variance) - 1) < 0.02
    assert abs(np.mean(error)) < 5 * np.sqrt(variance.mean() / error.size)


def test_an_existing_file_survives_a_failed_write(tmp_path: Path) -> None:
    target = tmp_path / "a.dng"
    target.write_text("precious")
    with contextlib.suppress(ValueError), whole(target) as part:
        part.write_text("half")
        raise ValueError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["a.dng"]
    assert target.read_text() == "precious"


def test_brightening_keeps_the_levels(tmp_path: Path) -> None:
    file = written(tmp_path / "a.dng", Sensor((500, 510, 520, 530), 4095, CFAS["GRBG"]), (33, 47))
    black = np.tile([[500, 510], [520, 530]], (17, 24))[:33, :47]
    np.testing.assert_array_equal(brightened(file, 1), file.mosaic.clip(black, 4095))
    assert brightened(file, 1000).max() == 4095


@pytest.mark.parametrize(
    ("code", "kind", "count", "value"),
    [
        (50728, 3, 3, (1, 2, 3)),  # AsShotNeutral as SHORT, which the DNG specification allows
        (50721, 12, 9, tuple(0.1 * i for i in range(1, 10))),  # ColorMatrix1 as DOUBLE
        (50708, 1, 5, b"Maker"),  # UniqueCameraModel as BYTE
        (34855, 2, 0, "many"),  # ISOSpeedRatings as ASCII
        (51041, 2, 0, "low"),  # NoiseProfile as ASCII
    ],
)
def test_oddly_typed_tags_are_carried_or_ignored(tmp_path: Path, code: int, kind: int, count: int, value: Any) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    source = read(tagged(tmp_path / "odd.dng", mosaic, (code, kind, count, value, True)))
    write_dng(tmp_path / "copy.dng", source, source.mosaic)
    copy = read(tmp_path / "copy.dng")
    np.testing.assert_array_equal(copy.mosaic, mosaic)
    assert copy.white_balance == source.white_balance
    assert (source.iso, source.noise_profile) == (0, ())


def test_brightness_does_not_depend_on_the_brightest_pixel(tmp_path: Path) -> None:
    """LibRaw would take a picture's maximum for white when it lies a little below: pictures could not be compared."""
    file = written(tmp_path / "a.dng", Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"]), white_balance=(1, 1, 1))
    flat = np.full_like(file.mosaic, 8000)
    spotted = flat.copy()
    spotted[:4, :4] = 13500
    medians = [np.median(render(file, mosaic, bits=16, linear=True)) for mosaic in (flat, spotted)]
    assert medians[0] == medians[1]


def test_a_linear_development_keeps_proportions_and_makes_grey_grey(tmp_path: Path) -> None:
    file = written(tmp_path / "a.dng", Sensor((512,) * 4, 16383, CFAS["RGGB"]), white_balance=(2.0, 1.0, 1.5))
    grey = np.tile(2000 / np.array([[2.0, 1.0], [1.0, 1.5]]), (32, 40))
    mosaics = (np.rint(512 + exposure * grey).astype(np.uint16) for exposure in (1, 2))
    once, twice = (render(file, mosaic, bits=16, linear=True)[32, 40].astype(float) for mosaic in mosaics)
    np.testing.assert_allclose(once / once[1], 1, rtol=0.02)
    np.testing.assert_allclose(twice / once, 2, rtol=0.02)


def test_aperture_and_margins_are_read(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    f_number, active_area = (33437, 5, 1, (28, 10), True), (50829, 4, 4, (2, 4, 64, 80), True)
    file = read(tagged(tmp_path / "a.dng", mosaic, f_number, active_area))
    assert file.aperture == pytest.approx(2.8)
    assert not file.whole_sensor
    assert read(tagged(tmp_path / "b.dng", mosaic)).whole_sensor


def test_what_was_replaced_meanwhile_is_not_developed(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(600, 4000, (64, 80)).astype(np.uint16)
    file = read(tagged(tmp_path / "a.dng", mosaic))
    render(file, mosaic)
    tagged(tmp_path / "b.dng", mosaic).replace(tmp_path / "a.dng")
    with pytest.raises(RawFileError, match="it has changed since it was read"):
        render(file, mosaic)
    file.path.unlink()
    with pytest.raises(RawFileError, match=r"it cannot be opened once more, .*\(no such file or directory\)"):
        render(file, mosaic)


@pytest.fixture(scope="module")
def child() -> Iterator[Reader]:
    """The process that reads files for the command."""
    reader = Reader()
    yield reader
    reader.close()


def test_an_empty_tag_is_left_out(tmp_path: Path) -> None:
    """As a flipped byte makes them: what cannot be carried does not cost the result."""
    file = written(tmp_path / "a.dng", Sensor((9, 9, 9, 9), 4095, CFAS["RGGB"]))
    tags = {"DNGVersion": (1, (1, 4, 0, 0)), "CalibrationIlluminant1": (3, ()), "ColorMatrix2": (10, (1, 2, 3))}
    write_dng(tmp_path / "b.dng", replace(file, tags=tags), file.mosaic)
    np.testing.assert_array_equal(read(tmp_path / "b.dng").mosaic, file.mosaic)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data_of=st.sampled_from(["kodak", "blackmagic", "written"]), damage=st.data())
def test_damage_is_judged_in_time(
    tmp_path: Path, child: Reader, data: Path, data_of: str, damage: st.DataObject
) -> None:
    """Flipped bytes, mostly in the headers, and cut ends: a file that makes sense or a sentence; no crash, no hang."""
    real = {"kodak": "kodak_dc50_GRBG.kdc", "blackmagic": "blackmagic_dark_GBRG_12bit.dng"}
    if data_of in real:
        content = bytearray((data / "raw" / real[data_of]).read_bytes())
    else:
        content = bytearray(written(tmp_path / "a.dng", Sensor((9, 9, 9, 9), 4095, CFAS["RGGB"])).path.read_bytes())
    places = st.one_of(st.integers(0, 2000), st.integers(0, len(content) - 1))
    for place, value in damage.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        content[place] = value
    keep = damage.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / "damaged.dng"
    path.write_bytes(content[:keep])
    started = time.monotonic()
    try:
        file = child.read(path)
    except RawFileError as error:
        sentence = str(error)
    else:
        sentence = ""
        assert file.mosaic.dtype == np.uint16
        assert min(file.mosaic.shape) >= 32
        assert file.mosaic.max() > min(file.sensor.black)
        write_dng(tmp_path / "result.dng", file, file.mosaic)  # odd tags must not break writing
    for word in ("\n", "crashed", "busy", "it cannot be read ("):
        assert word not in sentence
    assert time.monotonic() - started < 20


def test_what_reads_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile that ends early: LibRaw leaves the rest of its memory as it was."""
    whole_tiles = dng._tiles
    mosaic = np.random.default_rng(0).integers(600, 4000, (512, 512)).astype(np.uint16)
    monkeypatch.setattr(dng, "_tiles", lambda mosaic, _: whole_tiles(mosaic[:64], (64, 512)))
    write_dng(tmp_path / "a.dng", RawFile(tmp_path / "a.dng", mosaic, Sensor((9,) * 4, 4095, CFAS["RGGB"])), mosaic)
    with readers(1) as one, readers(2) as two:
        for read_it in (read, one.read, two.read):
            with pytest.raises(RawFileError, match=r"read differently each time"):
                read_it(tmp_path / "a.dng")


def test_a_file_that_was_not_filled_is_refused(tmp_path: Path) -> None:
    """As an interrupted download leaves it: of full length, the rest zeros. A few dead rows are a camera's own."""
    for black, rows, refused in ((512, 16, True), (512, 15, False), (0, 40, False)):
        file = written(tmp_path / "a.dng", Sensor((black,) * 4, 16383, CFAS["RGGB"]))
        file.mosaic[-rows:] = 0
        write_dng(file.path, file, file.mosaic)
        if refused:
            with pytest.raises(RawFileError, match=r"missing: 16 rows read 0 DN, where black is 512"):
                read(file.path)
        else:
            np.testing.assert_array_equal(read(file.path).mosaic, file.mosaic)


def test_data_above_white_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.dng", Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"]))
    write_dng(file.path, replace(file, sensor=Sensor((512, 512, 512, 512), 900, CFAS["RGGB"])), file.mosaic)
    with pytest.raises(RawFileError, match=r"most pixels are above white \(900 DN\)"):
        read(file.path)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_every_depth(tmp_path: Path, bits: int) -> None:
    """Packed samples of 10 to 16 bit and a linearisation table, as cameras write them."""
    mosaic = np.random.default_rng(0).integers(0, 2**bits, (64, 80)).astype(np.uint16)
    table = (np.arange(2**bits) * max(65535 // 2**bits, 1)).astype(np.uint16)
    linearization = (50712, 3, len(table), tuple(table.tolist()), True)
    tags = [*plain_tags(white=int(table[-1])), linearization]
    packed = np.packbits((mosaic[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8), axis=None).tobytes()
    path = tmp_path / "a.dng"
    with tifffile.TiffWriter(path, byteorder=">") as tif:
        tif.write(mosaic.astype(">u2"), photometric="cfa", metadata=None, extratags=tags)
    with tifffile.TiffFile(path) as tif:
        depth, offset, count = (tif.pages.first.tags[code] for code in (258, 273, 279))
        place = tif.pages.first.dataoffsets[0]
    with path.open("r+b") as file:
        for tag, value in ((depth, bits), (count, len(packed))):
            file.seek(tag.valueoffset)
            file.write(value.to_bytes(2 if tag.dtype == 3 else 4, "big"))
        file.seek(place)
        file.write(packed if bits != 16 else mosaic.astype(">u2").tobytes())
    assert offset.count == 1
    back = read(path)
    np.testing.assert_array_equal(back.mosaic, table[mosaic])
    assert back.sensor.white == table[-1]
