"""The command as people run it, on real files, with the real server."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import CFAS, shared_memory
from PIL import Image

from exposure.client import batch, command, denoise_command, reach
from exposure.client.dng import write_dng
from exposure.client.rawfile import RawFile, read
from exposure.client.results import NAME
from exposure.client.sample import make_sample
from exposure.sensor import Sensor

# Photon transfer on the file itself: the variance of second differences along rows, against the mean, within each
# plane. The line through the 19 brightness classes has slope 1.7 to 1.8 DN per electron in all four planes.
BLACKMAGIC_GAIN = 1.77


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample")).dark


def exposure(address: str, *arguments: object) -> int:
    return command.main(["denoise", "--server", address, *map(str, arguments)])


def results(folder: Path) -> set[str]:
    """Names in a folder but for the table of results; temporary files count."""
    return {path.name for path in folder.iterdir()} - {NAME}


def test_blackmagic(address: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data / "raw" / "blackmagic_dark_GBRG_12bit.dng"
    formats = ["--format", "dng,tiff,png", "--preview", "--passes", 1]  # each takes a processor seconds
    assert exposure(address, source, "--ratio", 8, "--gain", BLACKMAGIC_GAIN, "--out", tmp_path, *formats) == 0
    stem = "blackmagic_dark_GBRG_12bit"
    names = {f"{stem}_exposed.dng", f"{stem}_exposed.tiff", f"{stem}_exposed.png", f"{stem}_preview.png"}
    assert results(tmp_path) == names
    before, after = read(source), read(tmp_path / f"{stem}_exposed.dng")
    assert (after.sensor, after.crop, after.white_balance) == (before.sensor, before.crop, before.white_balance)
    signal = [np.median(file.mosaic.astype(float) - 256) for file in (before, after)]
    assert signal[1] / signal[0] == pytest.approx(8, rel=0.15)  # exposed 8 times longer, medians nearly keep
    tiff = tifffile.imread(tmp_path / f"{stem}_exposed.tiff")
    with Image.open(tmp_path / f"{stem}_exposed.png") as png, Image.open(tmp_path / f"{stem}_preview.png") as pair:
        assert tiff.dtype == np.uint16
        assert tiff.shape[:2] == (png.height, png.width)
        assert (pair.width, pair.height) == (2 * png.width, png.height)
    assert "gain 1.77 DN/e- (as given)" in capsys.readouterr().out


def test_kodak(address: str, data: Path, tmp_path: Path) -> None:
    source = data / "raw" / "kodak_dc50_GRBG.kdc"
    assert exposure(address, source, "--ratio", 2, "--gain", 10, "--out", tmp_path) == 0
    assert read(tmp_path / "kodak_dc50_GRBG_exposed.dng").sensor == read(source).sensor


def test_the_sample_gets_cleaner(address: str, sample: Path, tmp_path: Path) -> None:
    from exposure.client.demo import quality
    from exposure.sensor import pack

    assert exposure(address, sample, "--ratio", 100, "--out", tmp_path) == 0
    noisy, result, truth = read(sample), read(tmp_path / "sample_exposed.dng"), read(sample.with_stem("sample_clean"))
    clean = pack(truth.mosaic, truth.sensor)
    psnr_before, ssim_before = quality(pack(noisy.mosaic, noisy.sensor, 100), clean)
    psnr_after, ssim_after = quality(pack(result.mosaic, result.sensor), clean)
    assert psnr_after > psnr_before + 7  # of 7.5 with the shipped network
    assert ssim_after > ssim_before + 0.1


def test_refused_files_leave_nothing(
    address: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        *sorted((data / "corrupt").iterdir()),
        *sorted((data / "raw").glob("*linear*")),
        data / "raw/canon_g1_cmyg.crw",
    ]
    assert exposure(address, *files, "--ratio", 10, "--gain", 2, "--out", tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    sentences = capsys.readouterr().err.splitlines()
    assert len(sentences) == len(files) + 1
    assert sentences[-1].startswith(f"exposure: {len(files)} of {len(files)} files failed, for reasons told above: ")
    assert sum(str(path) in sentences[-1] for path in files) == 10  # in any order: files finish as they finish
    assert sentences[-1].endswith(f" and {len(files) - 10} more")
    for path in files:
        assert sum(sentence.startswith(f"exposure: {path}: ") for sentence in sentences) == 1


def test_one_bad_file_is_skipped(
    address: str, sample: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = (data / "corrupt" / "lfs_pointer.dng", sample)
    assert exposure(address, *files, "--ratio", 20, "--out", tmp_path) == 1
    assert results(tmp_path) == {"sample_exposed.dng"}
    assert "1 of 2 files failed" in capsys.readouterr().err


def test_two_files_of_one_name_do_not_overwrite(
    address: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = shutil.copy(sample, tmp_path / "other")
    assert exposure(address, sample, other, sample, "--ratio", 20, "--out", tmp_path) == 1
    complaint = capsys.readouterr().err
    assert "sample_exposed.dng is also that of" in complaint
    assert "; do it alone, with another --out" in complaint
    assert "1 of 2 files failed" in complaint


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ratio", "0.5"], "--ratio is 0.5; a target exposure is at least the file's own (1)"),
        (["--ratio", "nan"], "--ratio is nan"),
        (["--ratio", "10", "--gain", "0"], "--gain is 0; it must be positive, in DN per electron"),
        (["--ratio", "10", "--gain", "-2"], "--gain is -2"),
        (["--ratio", "10", "--seed", "-1"], "seed is -1"),
        (["--ratio", "10", "--format", "dng,bmp"], '--format "bmp" is unknown; choose from dng,tiff,png,jpg'),
    ],
)
def test_misuse_is_one_sentence(
    address: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert exposure(address, sample, "--out", tmp_path, *arguments) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("exposure: ")
    assert complaint.count("\n") == 1
    assert sentence in complaint
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_sentence(
    address: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/nowhere")):
        assert exposure(address, sample, "--ratio", 20, "--out", folder) == 1
        complaint = capsys.readouterr().err
        assert complaint.startswith(f"exposure: --out {folder} cannot be written to (")
        assert complaint.count("\n") == 1


def test_refused_files_start_no_server(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "running_server", lambda _: pytest.fail("a server was started"))
    monkeypatch.setattr(reach, "LOCAL", "127.0.0.1:9")
    bad = data / "corrupt" / "lfs_pointer.dng"
    assert command.main(["denoise", str(bad), "--ratio", "2", "--out", str(tmp_path)]) == 1
    assert "starting" not in capsys.readouterr().err


def test_a_refusal_of_the_server_costs_one_file(
    address: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = read(sample)
    odd = tmp_path / "odd.dng"
    write_dng(odd, good, good.mosaic, noise_profile=(1e-30, 0.0))
    assert exposure(address, odd, sample, "--ratio", 20, "--out", tmp_path) == 1
    assert (tmp_path / "sample_exposed.dng").exists()
    complaint = capsys.readouterr().err
    assert f"exposure: {odd}: GAIN is" in complaint
    assert "1 of 2 files failed" in complaint


def test_a_result_never_replaces_an_input(
    address: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, link = (tmp_path / f"{name}.dng" for name in ("x", "x_exposed", "link"))
    for path in (first, second):
        shutil.copy(sample, path)
    link.symlink_to(second)
    assert exposure(address, first, link, "--ratio", 20, "--out", tmp_path) == 1
    assert "is an input too" in capsys.readouterr().err
    assert second.read_bytes() == sample.read_bytes()
    assert (tmp_path / "link_exposed.dng").exists()


def test_what_the_caller_ignores_stays_ignored() -> None:
    """`nohup exposure denoise ...` goes on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit):
            command.main(["--version"])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_iso_needs_a_calibrated_camera(
    address: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exposure(address, sample, "--ratio", 20, "--iso", 1600, "--out", tmp_path) == 1
    assert (
        "--iso works for SonyA7S2, NikonD850, CanonEOS5D4, CanonEOS70D, CanonEOS700D alone" in capsys.readouterr().err
    )


def test_an_unknown_gain_is_asked_for(
    address: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exposure(address, data / "raw" / "kodak_dc50_GRBG.kdc", "--ratio", 2, "--out", tmp_path) == 1
    assert "give --gain in DN per electron" in capsys.readouterr().err


def test_an_absent_server_is_one_sentence(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be there later: the status says that the command may be repeated."""
    sentence = (
        "no exposure server answers at 127.0.0.1:9; start one with: exposure serve (the port is gRPC's, not HTTP's)"
    )
    base = (sample, "--ratio", 2, "--out", tmp_path)
    assert exposure("127.0.0.1:9", *base) == os.EX_TEMPFAIL
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"exposure: {sentence}\n")
    assert exposure("127.0.0.1:9", *base, "--json") == os.EX_TEMPFAIL
    assert json.loads(capsys.readouterr().out) == {"status": "ended", "reason": sentence}


def test_a_bar_makes_room_for_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar's stream and the standard output are two, and one terminal."""
    reader, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream, os.fdopen(os.dup(terminal), "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        report = denoise_command.Report(2, False, stream)
        report.progress(0.5)
        for status in (batch.HELD, batch.FAILED):
            report.outcome(batch.Outcome(Path("a.dng"), status, reason="it is odd"))
        report.summary()
        told = b""
        while b"it is odd\r\n" not in told:  # a busy kernel hands it on in pieces
            told += os.read(reader, 100_000)
        shown = told.decode().split("\r\n")
    os.close(reader)
    lines = [line.rpartition("\r")[2] for line in shown]  # what a terminal leaves of them
    assert "%|" in shown[0]
    assert lines[:2] == ["a.dng: already done", "exposure: a.dng: it is odd"]


def test_a_standard_error_that_is_closed(address: str, sample: Path, tmp_path: Path) -> None:
    flags = [sample, "--out", tmp_path / "out", "--server", address]
    flags += ["--ratio", 20, "--passes", 1, "--preview", "--json"]
    program = [sys.executable, "-m", "exposure.client.command", "denoise", *map(str, flags)]
    told = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *program], capture_output=True, check=False)
    assert told.returncode == 0
    assert [json.loads(line)["status"] for line in told.stdout.splitlines()] == ["done"]
    assert results(tmp_path / "out") == {"sample_exposed.dng", "sample_preview.png"}


@pytest.mark.parametrize("where", ["/dev/full", "a pipe that nobody reads"])
def test_a_standard_output_that_takes_nothing(sample: Path, tmp_path: Path, where: str) -> None:
    """The files are done nevertheless; nothing is said about it, at the end neither."""
    other = shutil.copy(sample, tmp_path / "other.dng")
    program = [sys.executable, "-m", "exposure.client.command", "denoise", str(sample), str(other)]
    flags = ["--ratio", "20", "--dry-run", "--out", str(tmp_path / "out")]
    if where == "/dev/full":
        out = os.open(where, os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    told = subprocess.run([*program, *flags], stdout=out, stderr=subprocess.PIPE, check=False)
    os.close(out)
    assert (told.returncode, told.stderr) == (0, b"")


REACH = [
    (["--header", "secret"], '--header is "secret"; write "NAME: VALUE"'),
    (["--header", "x y: secret"], '--header is "x y: secret"; write "NAME: VALUE"'),
    (["--header", "x-bin: secret"], '--header is "x-bin: secret"; write "NAME: VALUE"'),
    (["--header", "x: Ä"], '--header "x" has a value that is not printable ASCII'),
    (["--tile", "inf"], "--tile is inf; it is in megapixels, at least 0.4096"),
    (["--tile", "nan"], "--tile is nan"),
    (["--tile", "0"], "--tile is 0"),
    (["--tile", "-1"], "--tile is -1"),
    (["--requests", "0"], "--requests is 0; it is 1 to 1024 at each server"),
    (["--timeout", "0"], "--timeout is 0; it is in seconds, above 0 and at most 1000000"),
    (["--timeout", "-1"], "--timeout is -1"),
    (["--timeout", "nan"], "--timeout is nan"),
    (["--timeout", "inf"], "--timeout is inf"),
    (["--server", "gpu1"], '--server is "gpu1"; write HOST:PORT of a gRPC service, such as localhost:8001'),
    (["--server", "http://gpu1:8000"], '--server is "http://gpu1:8000"; write HOST:PORT'),
    (["--server", "gpu1:8001,gpu2:65536"], '--server is "gpu2:65536"; write HOST:PORT'),
    (["--server", ""], '--server is ""; write HOST:PORT'),
    (["--ca", "absent.pem"], "absent.pem cannot be read"),
]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--host", ""], "--host is empty; it is an address to listen on"),
        (["--in-flight", "0"], "--in-flight is 0; it is 1 to 1000000 megapixels"),
        (["--instances", "0"], f"--instances is 0; it is 1 to {os.cpu_count()}, the cores of this machine"),
        (["--instances", "9999"], "--instances is 9999"),
    ],
)
def test_a_server_that_cannot_be_meant_is_not_started(
    capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert command.main(["serve", *flags]) == 1
    assert capsys.readouterr().err.startswith(f"exposure: {sentence}")


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(("flags", "sentence"), REACH)
def test_a_server_that_cannot_be_meant_is_told_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    sentence: str,
    more: list[str],
) -> None:
    """Before any file is looked at, and before a server is started."""
    monkeypatch.setattr(reach, "running_server", lambda _: pytest.fail("a server was started"))
    monkeypatch.setattr(reach, "LOCAL", "127.0.0.1:9")
    absent = [str(tmp_path / name) for name in ("a.dng", "b.dng")]
    assert command.main(["denoise", *absent, "--ratio", "2", "--out", str(tmp_path / "out"), *flags, *more]) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"exposure: {sentence}")
    assert (told.err.count("\n"), told.out) == (1, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["denoise", "--ratio", "2", "--dry-run", "", "--out", "here"],
        ["denoise", "--ratio", "2", "--dry-run", "a.dng", "--out", ""],
        ["denoise", "--ratio", "2", "--dry-run", "a.dng", "", "--out", "here"],
        ["sample", "--out", ""],
        ["demo", "--out", ""],
    ],
)
def test_an_empty_path_is_not_this_folder(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert capsys.readouterr().err.endswith(": the path is empty\n")


@pytest.mark.parametrize("name", ["sample.dng", "sample_clean.dng"])
def test_a_sample_replaces_samples_only(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = data / "raw" / "blackmagic_dark_GBRG_12bit.dng"
    shutil.copy(source, tmp_path / name)
    assert command.main(["sample", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(f"{name} exists, and is not of the simulated camera; give another --out\n")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == source.read_bytes()
    (tmp_path / name).unlink()
    assert command.main(["sample", "--out", str(tmp_path)]) == 0
    assert command.main(["sample", "--out", str(tmp_path), "--seed", "1"]) == 0


def test_a_demo_replaces_demos_only(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sample.dng", "sample_exposed.dng", "before_after.png"):
        (tmp_path / name).write_text("of somebody")
        assert command.main(["demo", "--server", address, "--out", str(tmp_path)]) == 1
        assert f"{name} exists, and " in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    for _ in range(2):
        assert command.main(["demo", "--server", address, "--out", str(tmp_path)]) == 0


def test_defective_pixels_are_counted_or_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sensor = Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"])
    mosaic = np.random.default_rng(0).normal(600, 10, (64, 64)).astype(np.uint16)
    mosaic[10, 20], mosaic[40, 41] = 4000, 16383
    path = tmp_path / "hot.dng"
    write_dng(path, RawFile(path, mosaic, sensor), mosaic, (2e-4, 1e-6))
    plan = ["denoise", str(path), "--ratio", "20", "--out", str(tmp_path), "--dry-run"]
    for flags, count in (([], 2), (["--keep-defects"], None)):
        assert command.main([*plan, *flags, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["defective_pixels"] == count
        assert command.main([*plan, *flags]) == 0
        assert ("2 defective pixels corrected" in capsys.readouterr().out) == bool(count)


def test_formats_have_several_names(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ratio", "20", "--out", str(tmp_path), "--dry-run", "--json", "--format", "dng, DNG,tif,jpeg,JPG"]
    assert command.main(["denoise", str(sample), *flags]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results == [str(tmp_path / f"sample_exposed.{suffix}") for suffix in ("dng", "tiff", "jpg")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        *(
            (["--ratio", ratio], f"--ratio is {ratio}; it must be at least 1")
            for ratio in ("0", "-1", "0.5", "nan", "inf")
        ),
        *(
            (["--iso", iso], f"--iso is {iso}; the simulated camera goes from 50")
            for iso in ("0", "-1", "nan", "1e+300")
        ),
        (["--seed", "-1"], "--seed is -1; it must not be negative"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere cannot be written to (no such file or directory)"),
    ],
)
def test_a_senseless_sample_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert command.main(["sample", "--out", str(tmp_path), *flags]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"exposure: {sentence}")
    assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_the_extremes_of_a_sample(tmp_path: Path) -> None:
    for flags in (["--iso", "50"], ["--iso", "409600"], ["--ratio", "1e300"]):
        assert command.main(["sample", "--out", str(tmp_path / "new"), *flags]) == 0


@pytest.mark.usefixtures("repository")  # it builds the project's own engine
def test_without_a_server_one_is_started(sample: Path, tmp_path: Path) -> None:
    """The installed command, from anywhere; nothing stays in shared memory."""
    before = shared_memory()
    program = Path(sys.executable).with_name("exposure")
    result = subprocess.run(
        [program, "denoise", sample, "--ratio", "100", "--passes", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "EXPOSURE_SERVER": "127.0.0.1:9"},
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr.startswith("starting a server for this call (")
    assert "127.0.0.1:9" in result.stderr  # the one that the environment named, and that is gone
    assert result.stderr.endswith("the engine for the processor is used ...\n")
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "sample_exposed.dng").exists()
    assert shared_memory() <= before


def test_demo_reports(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["demo", "--server", address, "--out", str(tmp_path)]) == 0
    report = capsys.readouterr().out
    for word in ("PSNR", "SSIM", "brightened", "denoised", "pack", "denoiser", "expose", "unpack", "before_after.png"):
        assert word in report
    with Image.open(tmp_path / "before_after.png") as pair:
        assert pair.size == (1024, 512)
