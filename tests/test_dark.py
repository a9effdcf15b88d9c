"""Dark frames: what is found in them, and what is refused."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CFAS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exposure import Sensor
from exposure.client import command
from exposure.client.darkframes import DarkFrames
from exposure.client.dng import write_dng
from exposure.client.rawfile import RawFile, RawFileError, read
from exposure.dark import check_dark, dark_excess, without_dark

SENSOR = Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"])
READ_NOISE, PATTERN = 6.0, 3.0  # DN


def excess(height: int = 240, width: int = 320) -> NDArray[np.float32]:
    """Black that is off by colour, an amplifier's glow, a pattern of pixels, and some hot ones."""
    random = np.random.default_rng(0)
    row, column = np.mgrid[:height, :width]
    smooth = 1.5 + 0.5 * (row % 2) + 4 * (column / width) ** 2
    return (smooth + random.normal(0, PATTERN, smooth.shape) + hot(height, width)).astype(np.float32)


def hot(height: int = 240, width: int = 320) -> NDArray[np.float32]:
    random = np.random.default_rng(1)
    return np.where(random.random((height, width)) < 1e-3, random.uniform(200, 2000, (height, width)), 0)


def frames(count: int, beyond: NDArray[np.float32] | None = None) -> list[NDArray[np.uint16]]:
    random, true = np.random.default_rng(2), 512 + (excess() if beyond is None else beyond)
    return [np.rint(true + random.normal(0, READ_NOISE, true.shape)).astype(np.uint16) for _ in range(count)]


def found(dark: list[NDArray[np.uint16]]) -> NDArray[np.float32]:
    return dark_excess((frame, SENSOR) for frame in dark)


@pytest.mark.parametrize("count", [1, 4, 25])
def test_as_much_is_found_as_frames_can_tell(count: int) -> None:
    """The error of a Wiener filter, of which one frame knows no more than that there is noise; and no bias."""
    mean, true, sound = found(frames(count)), excess(), hot() == 0
    variance = READ_NOISE**2 / count
    least = PATTERN if count == 1 else (PATTERN**2 * variance / (PATTERN**2 + variance)) ** 0.5
    assert np.std((mean - true)[sound]) == pytest.approx(least, rel=0.05)
    assert abs(np.mean((mean - true)[sound])) < 0.1  # DN; 16000 pixels of a colour tell 0.06 at most
    assert np.std((mean - true)[~sound]) < 1.5 * READ_NOISE  # single pixels keep the noise of the mean


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(4, 90), width=st.integers(4, 90), offset=st.integers(-20, 20), count=st.integers(1, 3), seed=...
)
def test_a_level_more_in_all_frames_is_a_level_more(
    height: int, width: int, offset: int, count: int, seed: int
) -> None:
    random = np.random.default_rng(abs(seed))
    dark = [random.integers(500, 520, (height, width)).astype(np.uint16) for _ in range(count)]
    more = [(frame + offset).astype(np.uint16) for frame in dark]
    np.testing.assert_allclose(found(more), found(dark) + offset, atol=1e-3)


def test_the_mean_of_what_is_subtracted_is_black() -> None:
    left = without_dark(frames(1)[0], found(frames(9)[1:]), SENSOR.white)
    assert np.mean(left) == pytest.approx(512, abs=0.1)
    assert left.max() < 512 + 8 * READ_NOISE  # no hot pixel


@pytest.mark.parametrize("drift", [2, 20, 200])
def test_a_level_that_drifts_from_frame_to_frame_changes_nothing_else(drift: int) -> None:
    """The mean of all is subtracted, and as much of the pattern; differences that are no noise do not tell it."""
    dark = frames(8)
    drifted = [frame + np.uint16(drift * (number % 2)) for number, frame in enumerate(dark)]
    sound = hot() == 0  # of the others, the mean without the extremes counts
    np.testing.assert_allclose(found(drifted)[sound], found(dark)[sound] + drift / 2, atol=0.1)


def test_less_than_a_level_is_subtracted_too() -> None:
    mosaic = frames(1, np.zeros((240, 320), np.float32))[0]
    left = without_dark(mosaic, np.full(mosaic.shape, 0.4, np.float32), SENSOR.white)
    assert np.mean(mosaic - left.astype(float)) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("count", [1, 16])
def test_an_amplifiers_glow_is_smooth_however_strong(count: int) -> None:
    row, column = np.mgrid[:240, :320]
    glow = (100 * np.exp(-((240 - row) ** 2 + (320 - column) ** 2) / 2 / 150**2)).astype(np.float32)
    off = found(frames(count, glow)) - glow
    assert np.abs(off).max() < 16  # in the corner, beyond the last centre of a block
    assert np.std(off) < 2


def test_what_hit_a_pixel_once_is_not_subtracted() -> None:
    dark = frames(9, np.zeros((240, 320), np.float32))
    dark[4][100:103, 200] += 3000
    assert np.abs(found(dark)[100:103, 200]).max() < READ_NOISE


def test_white_stays_white() -> None:
    mosaic = frames(1)[0]
    mosaic[:20] = 16383
    np.testing.assert_array_equal(without_dark(mosaic, excess(), SENSOR.white)[:20], mosaic[:20])


def test_what_is_no_dark_frame_is_refused() -> None:
    dark = frames(1)[0]
    check_dark(dark, SENSOR)
    lit = dark.copy()
    lit[::2, ::2] += 400
    with pytest.raises(ValueError, match=r"no dark frame: pixels of one colour are \+40\d DN from black on average"):
        check_dark(lit, SENSOR)
    with pytest.raises(ValueError, match="cut off at black"):
        check_dark(np.maximum(dark, 512), SENSOR)
    with pytest.raises(ValueError, match="there is no dark frame"):
        dark_excess([])


def saved(path: Path, mosaic: NDArray[np.uint16], iso: float = 800) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_dng(path, RawFile(path, mosaic, SENSOR, model="A camera", iso=iso), mosaic)
    return path


@pytest.mark.parametrize(
    ("seconds", "dark_seconds", "refused"),
    [(300, 30, True), (1 / 60, 30, True), (30, 32, False), (1 / 60, 1 / 500, False), (0, 30, False), (30, 0, False)],
)
def test_dark_frames_take_about_as_long(seconds: float, dark_seconds: float, refused: bool) -> None:
    """Where one of both is long, for charge gathers in time; unknown times are no reason."""
    dark, light = (RawFile(Path(f"{s:g}.dng"), frames(1)[0], SENSOR, exposure_s=s) for s in (dark_seconds, seconds))
    both = DarkFrames(dark, ("1",), excess())
    with pytest.raises(RawFileError, match="its exposure took") if refused else contextlib.nullcontext():
        both.subtracted_from(light)


def test_the_command_subtracts_them(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if the file had been read so; told in the DNG; and other frames do the file again."""
    dark = frames(4)
    folder = saved(tmp_path / "darks" / "1.dng", dark[0]).parent
    saved(folder / "2.dng", dark[1])
    light = (dark[2] + np.random.default_rng(3).poisson(20, dark[2].shape)).astype(np.uint16)
    file, out = saved(folder / "night.dng", light), tmp_path / "out"
    plain = saved(tmp_path / "night.dng", without_dark(light, found(dark[:2]), SENSOR.white))
    asked = ["--ratio", "20", "--gain", "3", "--passes", "1", "--server", address, "--json"]
    # a folder of all: its dark frames are no sources
    named = ["denoise", str(folder), "--dark", str(folder / "?.dng"), "--out", str(out), *asked]
    assert command.main(named) == 0
    assert [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()] == [str(file)]
    assert command.main(["denoise", str(plain), "--out", str(tmp_path / "plain"), *asked]) == 0
    result, other = read(out / "night_exposed.dng"), read(tmp_path / "plain" / "night_exposed.dng")
    np.testing.assert_array_equal(result.mosaic, other.mosaic)
    assert "2 dark frames subtracted" in str(result.tags["Software"])
    capsys.readouterr()
    more = [*named, "--dark", str(saved(tmp_path / "3.dng", dark[3]))]
    for last, status in ((named, "already done"), (more, "done")):
        assert command.main(last) == 0
        assert json.loads(capsys.readouterr().out)["status"] == status


def test_frames_of_another_kind_are_refused(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dark = frames(2)
    cap = saved(tmp_path / "cap.dng", dark[0])
    asked = ["--ratio", "20", "--gain", "3", "--out", str(tmp_path / "out"), "--server", address]
    file = saved(tmp_path / "night.dng", dark[1] + np.uint16(50), iso=1600)
    assert command.main(["denoise", str(file), "--dark", str(cap), *asked]) == 1
    assert capsys.readouterr().err == (
        f"exposure: {file}: its ISO is 1600, and that of the dark frames (cap.dng) 800\n"
    )
    other = saved(tmp_path / "other.dng", dark[1][:-2])
    assert command.main(["denoise", str(file), "--dark", str(cap), "--dark", str(other), *asked]) == 1
    assert (
        f"--dark {other}: its size is 238x320, and that of the dark frames (cap.dng) 240x320" in capsys.readouterr().err
    )
    assert command.main(["denoise", str(file), "--dark", str(tmp_path / "absent.dng"), *asked]) == 1
    assert "absent.dng" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.dng"))
