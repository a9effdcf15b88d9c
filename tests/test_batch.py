"""Batches: folders, going on after every kind of death, two at once, servers that go and come, disks that are full."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import CFAS, PROJECT, shared_memory
from test_server import FREE

from exposure import Sensor
from exposure.assets import CHECKPOINT
from exposure.client import batch, command, denoise_command, output, reader
from exposure.client.access import ServerSlowError
from exposure.client.dng import write_dng
from exposure.client.inputs import Source, find_sources
from exposure.client.rawfile import RawFile, RawFileError, read
from exposure.client.recipe import Recipe
from exposure.client.results import LOCK_SUFFIX, NAME, OutputError, Results, TakenError, claimed, remove_leftovers
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import Answer, Client, ServerError, ServerGoneError
from exposure.files import sha256

SENSOR = Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"])
FLAGS = ["--ratio", "20", "--gain", "3", "--passes", "1"]


def make_files(folder: Path, count: int, side: int = 64) -> list[Path]:
    """Small dark RAW files, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        path = folder / f"DSC{i:04}.dng"
        mosaic = np.random.default_rng(i).integers(500, 1200, (side, side)).astype(np.uint16)
        write_dng(path, RawFile(path, mosaic, SENSOR, white_balance=(2, 1, 1.5)), mosaic)
        paths.append(path)
    return paths


def denoise(*arguments: object) -> int:
    return command.main(["denoise", *FLAGS, *map(str, arguments)])


def started(*arguments: object) -> "subprocess.Popen[bytes]":
    """The command as a process of its own."""
    program = [sys.executable, "-m", "exposure.client.command", "denoise", *FLAGS, *map(str, arguments)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT)


def visible(folder: Path) -> list[str]:
    """Everything in a folder but for the table of results."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != NAME)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def wait_for_results(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*_exposed.dng"))) < count and time.monotonic() < deadline:
        time.sleep(0.005)


def test_folders_and_patterns(tmp_path: Path) -> None:
    first = make_files(tmp_path / "night", 2)
    deeper = make_files(tmp_path / "night" / "later", 1)
    (tmp_path / "night" / "DSC0000.JPG").touch()
    (tmp_path / "night" / ".DSC0009.dng").touch()
    make_files(tmp_path / "night" / ".Trashes" / "501", 1)  # where a card's deleted pictures are
    (tmp_path / "night" / "DSC0000_exposed.dng").touch()
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "night"
    first.insert(1, folder / "DSC0000_exposed.dng")  # whether it is a result, the output folder knows
    assert [source.path for source in find_sources([folder], recursive=False)] == first
    sources = find_sources([folder, first[0]], recursive=True)
    assert {source.path for source in sources} == {*first, *deeper}
    assert next(source.folder for source in sources if source.path == deeper[0]) == Path("later")
    pattern = find_sources([tmp_path / "**" / "DSC0000.dng"], recursive=False)
    assert [source.path for source in pattern] == [first[0], deeper[0]]
    assert [source.path for source in find_sources([folder / "*.dng"], recursive=False)] == first
    with pytest.raises(ValueError, match=r"empty: it holds no RAW files$"):
        find_sources([tmp_path / "empty"], recursive=False)
    with pytest.raises(ValueError, match=r"it holds no RAW files; --recursive looks into its sub-folders$"):
        find_sources([tmp_path], recursive=False)
    for absent in ("*.NEF", "empt?"):
        with pytest.raises(ValueError, match=rf"{re.escape(absent)}: no file matches it$"):
            find_sources([tmp_path / absent], recursive=False)


def test_a_linked_folder_is_told_and_not_followed(tmp_path: Path) -> None:
    """But for a link into the folder itself, where everything is found at its own place."""
    make_files(tmp_path / "other", 1)
    (inside,) = make_files(tmp_path / "card" / "100", 1)
    for name, target in {"DCIM": "../other", "up": "..", "same": ".", "again": "100"}.items():
        (tmp_path / "card" / name).symlink_to(target)
    found = find_sources([tmp_path / "card"], recursive=True)
    assert [source.path for source in found if not source.problem] == [inside]
    told = {source.path.name: source.problem for source in found if source.problem}
    assert told.keys() == {"DCIM", "up"}
    assert "a link to a folder elsewhere, which is not followed" in told["DCIM"]


def test_what_cannot_be_opened_in_a_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link whose target is elsewhere, as of git-annex, is a file that one believes to be done."""
    make_files(tmp_path / "in", 1)
    (tmp_path / "in" / "lost.dng").symlink_to("nowhere")
    (tmp_path / "in" / "circle.dng").symlink_to("circle.dng")
    os.mkfifo(tmp_path / "in" / "pipe.dng")
    assert denoise(tmp_path / "in", "--out", tmp_path / "out", "--dry-run", "--json") == 1
    told = {Path(line["file"]).name: line.get("reason", "") for line in lines(capsys)}
    assert told == {
        "DSC0000.dng": "",
        "circle.dng": "it cannot be opened (too many levels of symbolic links)",
        "lost.dng": "it cannot be opened (no such file or directory)",
        "pipe.dng": "it is not a regular file",
    }


def test_overwriting_spares_what_was_named(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An original that is called like a result is left out, and is nevertheless no result that may be replaced."""
    (original,) = make_files(tmp_path, 1)
    like_a_result = original.with_stem("DSC0000_exposed")
    like_a_result.write_bytes(make_files(tmp_path / "other", 2)[1].read_bytes())
    before = like_a_result.read_bytes()
    base = ("--out", tmp_path, "--server", address, "--overwrite")
    assert denoise(original, like_a_result, *base) == 1
    assert "its result DSC" not in (told := capsys.readouterr().err)
    assert f"its result {like_a_result} is an input too; choose another --out" in told
    assert like_a_result.read_bytes() == before
    like_a_result.unlink()
    assert denoise(original, *base) == denoise(original, like_a_result, *base) == 0  # one of ours is replaced


def test_paths_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Wherever that is: in the name of the folder that one is in, or of the one for results."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (file,) = make_files(tmp_path, 1)
    shutil.copy(file, folder / "a.dng")
    for named, out, sentence in (
        ("a.dng", tmp_path / "out", "a.dng: its path is not in UTF-8, as LibRaw and the table of results want it"),
        (file, folder, f"--out {tmp_path}/caf\\udce9 is not in UTF-8, as the table of results wants it"),
    ):
        program = [sys.executable, "-m", "exposure.client.command", "denoise", *FLAGS, str(named), "--out", str(out)]
        result = subprocess.run([*program, "--dry-run"], capture_output=True, text=True, check=False, cwd=folder)
        assert result.returncode == 1
        assert sentence in result.stderr


def test_where_there_is_nothing_costs_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    make_files(tmp_path / "in", 1)
    nothing = (tmp_path / "empty", tmp_path / "*.NEF")
    base = ("--out", tmp_path / "out", "--dry-run")
    assert denoise(*nothing, tmp_path / "in", *base) == 1
    told = capsys.readouterr()
    assert told.out.count("would write") == 1
    assert f"{nothing[0]}: it holds no RAW files\n" in told.err
    assert f"{nothing[1]}: no file matches it\n" in told.err
    assert denoise(nothing[0], *base) == 1
    assert capsys.readouterr().err == f"exposure: {nothing[0]}: it holds no RAW files\n"


def test_a_repeated_command_takes_no_results(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`exposure denoise *.dng` in the folder of the files: the shell names the results, too."""
    first, second = make_files(tmp_path, 2)
    base = ("--out", tmp_path, "--server", address)
    assert denoise(first, second, *base) == 0
    second.unlink()
    named = sorted(tmp_path.glob("*.dng"))
    capsys.readouterr()
    assert denoise(*named, *base) == 0
    told = capsys.readouterr()
    left = f"{tmp_path / 'DSC0000_exposed.dng'} and 1 more are made by this command in {tmp_path}, left out"
    assert left in told.err
    assert told.out == f"{first}: already done\n"
    assert denoise(tmp_path, *base) == 0
    told = capsys.readouterr()
    assert left in told.err
    assert told.out == f"{first}: already done\n"
    (tmp_path / NAME).unlink()  # then names tell
    assert denoise(*named, *base) == 1
    assert "DSC0000_exposed.dng is named like results of this command" in capsys.readouterr().err
    assert denoise(named[1], *base) == 0  # as asked, since nobody knows it
    assert denoise(tmp_path / "DSC0000_exposed_exposed.dng", *base) == 1
    assert "another --out exposes results once more" in capsys.readouterr().err


def test_an_original_may_be_named_like_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A photographer's double exposure: nobody but the table of results knows what was made here."""
    one, double = make_files(tmp_path / "in", 2)
    double = double.rename(double.with_name("double_exposed.dng"))
    for named in (tmp_path / "in", tmp_path / "in" / "*.dng"):
        for out in (tmp_path, tmp_path / "in"):
            assert denoise(named, "--out", out, "--dry-run", "--json") == 0
            told = capsys.readouterr()
            done = {Path(line["file"]).name: line["status"] for line in map(json.loads, told.out.splitlines())}
            assert done == {one.name: "planned", double.name: "planned"}
            assert told.err == ""


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="rights do not bind root")
def test_what_cannot_be_looked_at_costs_itself(address: str, tmp_path: Path) -> None:
    """A folder below one that was named, a file below one that was not, for a user whom rights bind."""
    files = [make_files(tmp_path / name, 2)[1] for name in ("in", "in/locked")]
    files.append(make_files(tmp_path / "other/locked", 1)[0])
    (tmp_path / "in" / "DSC0000.dng").unlink()
    for path in files[1:]:
        path.parent.chmod(0)
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    flags = ["-r", tmp_path / "in", files[2], "--out", tmp_path / "out", "--server", address, "--json"]
    program = [*bound, sys.executable, "-m", "exposure.client.command", "denoise", *FLAGS, *flags]
    try:
        told = subprocess.run(list(map(str, program)), capture_output=True, text=True, cwd=PROJECT, check=False)
    finally:
        for path in files[1:]:
            path.parent.chmod(0o755)
    outcomes = {line["file"]: line.get("reason") for line in map(json.loads, told.stdout.splitlines())}
    assert outcomes == {
        str(files[0]): None,
        str(files[1].parent): "it cannot be looked into (permission denied)",
        str(files[2]): "it cannot be opened (permission denied)",
    }
    assert told.returncode == 1


def test_what_is_no_file_costs_itself(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (good,) = make_files(tmp_path / "in", 1)
    loop, pipe = tmp_path / "loop.dng", tmp_path / "pipe.dng"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    assert denoise(loop, pipe, good, "--out", tmp_path / "out", "--server", address) == 1
    complaint = capsys.readouterr().err
    assert f"{loop}: it cannot be opened (too many levels of symbolic links)" in complaint
    assert f"{pipe}: it is not a regular file" in complaint
    assert visible(tmp_path / "out") == ["DSC0000_exposed.dng"]
    like = ["denoise", str(good), "--like", str(pipe), "--out", str(tmp_path)]
    assert command.main(like) == 1
    assert capsys.readouterr().err == f"exposure: --like {pipe}: it is not a regular file\n"


def test_names_that_are_no_text(address: str, tmp_path: Path) -> None:
    odd, _ = make_files(tmp_path / "in", 2)
    odd.rename(odd.with_name(os.fsdecode(b"0\xe9.dng")))
    flags = [tmp_path / "in", "--out", tmp_path / "out", "--server", address]
    program = [sys.executable, "-m", "exposure.client.command", "denoise", *FLAGS, *map(str, flags)]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    told = subprocess.run(program, capture_output=True, cwd=PROJECT, env=strict, check=False)
    assert told.returncode == 1
    assert "0\\udce9.dng: its path is not in UTF-8" in told.stderr.decode()
    assert visible(tmp_path / "out") == ["DSC0001_exposed.dng"]


def test_who_cannot_be_told_does_not_end_the_batch(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(*_: object) -> None:
        raise BrokenPipeError

    make_files(tmp_path / "in", 3)
    for name in ("outcome", "progress"):
        monkeypatch.setattr(denoise_command.Report, name, deaf)
    assert denoise(tmp_path / "in", "--out", tmp_path / "out", "--server", address) == 0
    assert len(visible(tmp_path / "out")) == 3


def test_a_file_is_done_once(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_files(tmp_path / "in", 3)
    out = tmp_path / "out"
    base = (tmp_path / "in", "--out", out, "--server", address, "--json")
    assert denoise(*base) == 0
    assert {line["status"] for line in lines(capsys)} == {"done"}
    assert visible(out) == [f"{path.stem}_exposed.dng" for path in files]
    before = {name: (out / name).stat().st_mtime_ns for name in visible(out)}
    assert denoise(*base) == 0
    assert [line["status"] for line in lines(capsys)] == ["already done"] * 3
    assert {name: (out / name).stat().st_mtime_ns for name in visible(out)} == before
    shutil.move(files[1], files[1].with_name("DSC0001_was_renamed.dng"))  # another name, the same content: a new result
    (out / "DSC0002_exposed.dng").unlink()
    make_files(tmp_path / "new", 4)
    shutil.copy(tmp_path / "new" / "DSC0003.dng", files[0])  # the same name, other content
    assert denoise(*base) == 1
    told = {Path(line["file"]).name: line for line in lines(capsys)}
    assert {name: line["status"] for name, line in told.items()} == {
        "DSC0000.dng": "failed",
        "DSC0001_was_renamed.dng": "done",
        "DSC0002.dng": "done",
    }
    before_it = f"exists and is made from {files[0]} as it was before its content changed; --overwrite"
    assert before_it in told["DSC0000.dng"]["reason"]
    assert denoise(*base, "--overwrite") == 0
    assert [line["status"] for line in lines(capsys)] == ["done"] * 3
    assert denoise(*base, "--strength", "0.5") == 0  # other settings
    assert [line["status"] for line in lines(capsys)] == ["done"] * 3


def test_a_file_that_is_still_being_copied_is_done_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashed before its end came, and read after: it would be noted by content that it has no more."""
    (path,) = make_files(tmp_path / "in", 1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    client: Any = SimpleNamespace(
        checkpoint=lambda: "c", answer=lambda mosaic, sensor, **_: Answer(mosaic, sensor, "c"), close=lambda: None
    )
    outcomes: list[batch.Outcome] = []
    watcher: Any = SimpleNamespace(progress=lambda _: None, outcome=outcomes.append)

    def run() -> None:
        sources = find_sources([tmp_path / "in"], recursive=False)
        batch.Batch(sources, Recipe(ratio=8, gain=3), tmp_path / "out", lambda: client, watcher).run()

    def hashed_too_early(path: Path) -> str:
        found = sha256(path)
        path.write_bytes(content)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(batch, "sha256", hashed_too_early)
        run()
    assert not (tmp_path / "out").exists()
    run()
    run()
    assert [outcome.status for outcome in outcomes] == ["failed", "done", "already done"]
    assert outcomes[0].reason == "it changed while it was read; once it is whole, the same command does it"


def test_another_checkpoint_does_the_files_again(
    address: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result belongs to the network that made it, as the server tells it; servers that differ are refused."""
    shutil.copytree(repository, tmp_path / "other")
    engine = tmp_path / "other" / "denoiser" / "1" / "openvino" / "manifest.json"
    shipped, other = sha256(CHECKPOINT), 32 * "0a"
    engine.write_text(engine.read_text().replace(shipped, other))
    make_files(tmp_path / "in", 2)
    base = (tmp_path / "in", "--out", tmp_path / "out", "--json")

    def statuses(server: str) -> set[str]:
        assert denoise(*base, "--server", server) == 0
        return {line["status"] for line in lines(capsys)}

    assert [statuses(address), statuses(address)] == [{"done"}, {"already done"}]
    with running_server(ServerOptions(tmp_path / "other", **FREE)) as server, Client(server.address) as client:
        assert client.checkpoint() == other
        assert [statuses(server.address), statuses(server.address)] == [{"done"}, {"already done"}]
        assert denoise(*base, "--server", f"{address},{server.address}") == 1  # the same command will not do better
        told = capsys.readouterr()
        assert told.err.count("the servers run different checkpoints (") == 1
        assert json.loads(told.out.splitlines()[-1])["status"] == "ended"
    assert statuses(address) == {"done"}
    with Client(address) as client:
        assert client.checkpoint() == shipped


def test_what_made_a_result_is_told_by_its_own_answer(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server may be started anew, with another network, between a question and an answer: the answer counts."""
    make_files(tmp_path / "in", 1)
    base = (tmp_path / "in", "--out", tmp_path / "out", "--server", address, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(Client, "checkpoint", lambda _: "another")
        assert [denoise(*base), lines(capsys)[0]["status"]] == [0, "done"]
    assert [denoise(*base), lines(capsys)[0]["status"]] == [0, "already done"]


def test_a_foreign_file_is_not_replaced(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path / "in", 1)
    precious = tmp_path / "DSC0000_exposed.dng"
    precious.write_text("precious")
    assert denoise(tmp_path / "in", "--out", tmp_path, "--server", address) == 1
    assert "exists and is not a result of this command" in capsys.readouterr().err
    assert precious.read_text() == "precious"


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path / "in", 2)
    (tmp_path / "in" / "bad.dng").write_text("nothing")
    out = tmp_path / "out"
    assert denoise(tmp_path / "in", "--out", out, "--dry-run", "--server", "127.0.0.1:9") == 1  # and asks no server
    told = capsys.readouterr()
    assert told.out.count("would write") == 2
    assert "ratio 20 (as given), gain 3 DN/e- (as given)" in told.out
    assert "2 planned" in told.out
    assert "bad.dng: it does not begin like a RAW file" in told.err
    assert not out.exists()


def test_a_dry_run_tells_what_would_be_replaced(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path / "in", 1)
    base = (tmp_path / "in", "--out", tmp_path / "out", "--server", address)
    assert denoise(*base) == 0
    result = tmp_path / "out" / "DSC0000_exposed.dng"
    other = (*base, "--strength", "0.5", "--dry-run", "--format", "dng,tiff")
    capsys.readouterr()
    assert denoise(*other) == 0
    told = capsys.readouterr().out
    assert f"  would replace {result}\n  would write {result.with_suffix('.tiff')}\n" in told
    assert denoise(*other, "--json") == 0
    assert lines(capsys)[0]["replaces"] is True
    assert denoise(*base, "--dry-run", "--json") == 0
    (line,) = lines(capsys)
    assert (line["status"], "replaces" in line) == ("already done", False)


def test_a_dry_run_refuses_a_folder_that_cannot_be_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path / "in", 1)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc"), Path("/proc/nowhere")):
        assert denoise(tmp_path / "in", "--out", out, "--dry-run") == 1
        told = capsys.readouterr()
        assert told.err.startswith(f"exposure: --out {out} cannot be written to (")
        assert (told.err.count("\n"), told.out) == (1, "")


def test_a_refused_file_claims_no_name(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two files that would have one result, the one that can be done is done, whichever comes first."""
    (good,) = make_files(tmp_path / "in", 1)
    bad = good.with_name("img.dng")
    good = good.rename(good.with_name("img.kdc"))
    bad.write_text("nothing")
    base = ("--out", tmp_path / "out", "--server", address, "--json")
    for status in ("done", "already done"):
        assert denoise(bad, good, *base) == 1
        told = {line["file"]: line for line in lines(capsys)}
        assert told[str(good)]["status"] == status
        assert "does not begin like a RAW file" in told[str(bad)]["reason"]
    shutil.copy(make_files(tmp_path / "other", 2)[1], bad)  # now it is good, too, but another's result is there
    assert denoise(bad, good, *base) == 1
    told = {line["file"]: line for line in lines(capsys)}
    assert told[str(good)]["status"] == "already done"
    assert "img_exposed.dng" in told[str(bad)]["reason"]


def test_one_of_many_good_files_claims_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [make_files(tmp_path / f"in{i}", 1)[0] for i in range(8)]
    assert denoise(*files, "--out", tmp_path / "out", "--dry-run", "--json") == 1
    told = lines(capsys)
    (planned,) = (line["file"] for line in told if line["status"] == "planned")
    assert planned == str(files[0])
    refusals = [line["reason"] for line in told if line["status"] == "failed"]
    assert len(refusals) == 7
    sentence = f"is also that of {planned}; do it alone, with another --out"
    assert all(reason.endswith(sentence) for reason in refusals)


def test_the_first_of_two_good_files_has_the_name(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long it takes; if it fails in the end, it is the other's."""
    first, second = make_files(tmp_path / "in", 2)
    second = second.rename(make_files(tmp_path / "other", 1)[0])
    ask = Client.answer
    base = (first, second, "--out", tmp_path / "out", "--server", address, "--json")

    def first_is_slow(path: Path) -> str:
        time.sleep(0.5 if path == first else 0)
        return sha256(path)

    def first_is_refused(client: Client, mosaic: Any, *arguments: Any, **request: Any) -> Any:
        if np.array_equal(mosaic, read(first).mosaic):
            raise ServerError("it is refused")
        return ask(client, mosaic, *arguments, **request)

    monkeypatch.setattr(batch, "sha256", first_is_slow)
    for refuse, winner in ((True, second), (False, first)):
        with monkeypatch.context() as patch:
            if refuse:
                patch.setattr(Client, "answer", first_is_refused)
            assert denoise(*base, "--overwrite") == 1
        told = {line["file"]: line for line in lines(capsys)}
        assert {path: line["status"] for path, line in told.items()} == {
            str(first): "done" if winner == first else "failed",
            str(second): "done" if winner == second else "failed",
        }
    assert f"is also that of {first}" in told[str(second)]["reason"]


@pytest.mark.parametrize("victim", ["client", "server"])
def test_a_kill_in_the_middle(small_repository: Path, tmp_path: Path, victim: str) -> None:
    """50 files; kill -9; the same command again: each is there once, right, and nothing else is left."""
    files = make_files(tmp_path / "in", 50)
    out, reference = tmp_path / "out", tmp_path / "reference"
    before = shared_memory()
    ports: dict[str, Any] = {"http_port": 0, "metrics_port": 0}
    with running_server(ServerOptions(small_repository, grpc_port=0, **ports)) as server:
        port = int(server.address.rpartition(":")[2])
        process = started(tmp_path / "in", "--out", out, "--server", server.address)
        wait_for_results(out, 15)
        (process if victim == "client" else server.process).kill()
        if victim == "client":
            process.communicate()
            assert 0 < len(list(out.glob("*_exposed.dng"))) < 50
            done = {path: path.stat().st_mtime_ns for path in out.glob("*_exposed.dng")}
            again = started(tmp_path / "in", "--out", out, "--server", server.address)
            told = again.communicate(timeout=120)[0].decode()
            assert again.returncode == 0
            held = told.count(": already done")
            assert len(done) - 8 <= held <= len(done)  # those that had their name, but not yet their note, are redone
            assert sum(path.stat().st_mtime_ns != stamp for path, stamp in done.items()) <= 8
            assert denoise(*files[::10], "--out", reference, "--server", server.address) == 0
    if victim == "server":
        with running_server(ServerOptions(small_repository, grpc_port=port, **ports)) as server:
            told = process.communicate(timeout=120)[0].decode()
            assert (process.returncode, "50 done" in told) == (0, True)  # a retry, not a file
            assert denoise(*files[::10], "--out", reference, "--server", server.address) == 0
    assert len(list(reference.glob("*.dng"))) == 5
    for path in reference.glob("*.dng"):
        np.testing.assert_array_equal(read(path).mosaic, read(out / path.name).mosaic)
    assert visible(out) == [f"{path.stem}_exposed.dng" for path in files]
    for name in visible(out):
        read(out / name)
    deadline = time.monotonic() + 5
    while shared_memory() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shared_memory() <= before


def test_a_stop_ends_soon_and_leaves_nothing(address: str, tmp_path: Path) -> None:
    make_files(tmp_path / "in", 6, side=512)
    before = shared_memory()
    process = started(tmp_path / "in", "--out", tmp_path / "out", "--server", address, "--json")
    wait_for_results(tmp_path / "out", 1)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 130
    assert json.loads(told[-1]) == {"status": "ended", "reason": "it was interrupted; the same command goes on"}
    assert time.monotonic() - asked < 5
    assert all(name.endswith("_exposed.dng") for name in visible(tmp_path / "out"))
    assert shared_memory() <= before


@pytest.mark.parametrize("pause_s", [0.0, 0.01])
def test_signals_that_come_in_twos_to_a_whole_group(address: str, tmp_path: Path, pause_s: float) -> None:
    """As of `timeout`, of a terminal that closes, of a service that is stopped: children get them, too."""
    make_files(tmp_path / "in", 6, side=512)
    command = [sys.executable, "-m", "exposure.client.command", "denoise", *FLAGS, str(tmp_path / "in")]
    command += ["--out", str(tmp_path / "out"), "--server", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for_results(tmp_path / "out", 1)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(pause_s)
        try:
            complaint = process.communicate(timeout=20)[1].decode()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert complaint == "exposure: it was interrupted; the same command goes on\n"
    assert all(name.endswith("_exposed.dng") for name in visible(tmp_path / "out"))


def test_two_batches_into_one_folder(address: str, tmp_path: Path) -> None:
    """Both end in order, and each file is there once, whole."""
    files = make_files(tmp_path / "in", 8)
    out = tmp_path / "out"
    both = [started(tmp_path / "in", "--out", out, "--server", address, "--json") for _ in range(2)]
    told = [json.loads(line) for process in both for line in process.communicate(timeout=120)[0].splitlines()]
    assert {line["status"] for line in told} <= {"done", "already done", "left to another run"}
    assert {process.returncode for process in both} <= {0, os.EX_TEMPFAIL}
    assert visible(out) == [f"{path.stem}_exposed.dng" for path in files]
    assert sum(line["status"] == "done" for line in told) == 8


def test_a_server_that_is_gone_is_waited_for_once(tmp_path: Path) -> None:
    """Not by each file in its turn: who learns it first ends the batch."""
    asked = []

    def answer(*_: object, **__: object) -> None:
        asked.append(time.monotonic())
        time.sleep(0.3)  # the patience of a client
        raise ServerGoneError("no server answers")

    client: Any = SimpleNamespace(checkpoint=lambda: "c", answer=answer, close=lambda: None)
    sources = [Source(path) for path in make_files(tmp_path / "in", 8)]
    watcher: Any = SimpleNamespace(progress=lambda _: None, outcome=lambda _: None)
    (tmp_path / "out").mkdir()
    with pytest.raises(ServerGoneError, match="no server answers"):
        batch.Batch(sources, Recipe(ratio=8, gain=3), tmp_path / "out", lambda: client, watcher, in_flight=1).run()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "may_pass"), [(ServerSlowError, True), (ServerGoneError, True), (ServerError, False)]
)
def test_a_server_that_hangs_may_answer_later(tmp_path: Path, error: type[ServerError], may_pass: bool) -> None:
    def hang() -> str:
        raise error("the server took more than 600 s")

    client: Any = SimpleNamespace(checkpoint=hang, close=lambda: None)
    sources = [Source(path) for path in make_files(tmp_path / "in", 1)]
    watcher: Any = SimpleNamespace(progress=lambda _: None, outcome=lambda _: None)
    with pytest.raises(ServerGoneError, match="more than 600 s") as ended:
        batch.Batch(sources, Recipe(ratio=8, gain=3), tmp_path, lambda: client, watcher).run()
    assert denoise_command._may_pass(ended.value) == may_pass


def test_what_another_run_is_at_has_not_failed(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows yet that it will be done: the status asks to repeat the command."""
    mine, theirs = make_files(tmp_path / "in", 2)
    out = tmp_path / "out"
    base = (tmp_path / "in", "--out", out, "--server", address)
    with claimed([out / "DSC0001_exposed.dng"]):
        assert denoise(*base) == os.EX_TEMPFAIL
        told = capsys.readouterr()
        assert "1 done, 1 left to another run in " in told.out
        assert told.err == f"exposure: {theirs}: another run is writing DSC0001_exposed.dng\n"
        assert denoise(*base, "--json") == os.EX_TEMPFAIL
        assert {line["file"]: line["status"] for line in lines(capsys)} == {
            str(mine): "already done",
            str(theirs): "left to another run",
        }
        assert denoise(tmp_path / "absent.dng", *base) == 1
    assert denoise(*base) == 0


def test_a_claim_ends_with_its_holder(tmp_path: Path) -> None:
    target = tmp_path / "a_exposed.dng"
    lock = tmp_path / f".a_exposed{LOCK_SUFFIX}"
    with claimed([target, tmp_path / "a_preview.png"]):
        assert lock.read_text().split("\n") == ["a_exposed.dng", "a_preview.png"]  # to be tidied up after a kill
        part = tmp_path / f".a_exposed.77{output.PART}.dng"
        part.touch()
        with pytest.raises(TakenError, match=r"another run is writing a_exposed\.dng"), claimed([target]):
            pass
        remove_leftovers([tmp_path])
        assert part.exists()
    lock.write_text(target.name)  # what a killed run leaves
    remove_leftovers([tmp_path])
    assert visible(tmp_path) == []


@pytest.mark.parametrize("where", ["part", "table"])
def test_a_full_disk_ends_the_batch(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    make_files(tmp_path / "in", 6)
    out = tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "part":
        monkeypatch.setattr(output, "write_dng", full)
    else:
        monkeypatch.setattr(Results, "begin", full)
    assert denoise(tmp_path / "in", "--out", out, "--server", address, "--json") == os.EX_TEMPFAIL
    told, sentence = capsys.readouterr(), f"{out} takes no more files (no space left on device)"
    assert told.err == f"exposure: {sentence}\n"
    assert json.loads(told.out.splitlines()[-1]) == {"status": "ended", "reason": sentence}
    assert visible(out) == []
    monkeypatch.undo()
    assert denoise(tmp_path / "in", "--out", out, "--server", address) == 0
    assert len(visible(out)) == 6


def test_a_folder_is_made_for_a_result_alone(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused file leaves none; where none can be made, no other file will fare better."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "bad.dng").write_text("nothing")
    base = (tmp_path / "in", "-r", "--out", tmp_path / "out", "--server", address)
    assert denoise(*base) == 1
    assert visible(tmp_path / "out") == []
    make_files(tmp_path / "in" / "sub", 3)
    mkdir = Path.mkdir

    def full(path: Path, *rights: Any, **options: Any) -> None:
        if path.name == "sub":
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *rights, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    capsys.readouterr()
    assert denoise(*base) == os.EX_TEMPFAIL
    assert "takes no more files (no space left on device)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("free", "told", "status"),
    [(1 << 14, "takes no more files (no space left", os.EX_TEMPFAIL), (1 << 30, "write error", 1)],
)
def test_a_library_that_does_not_say_why_it_cannot_write(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
    told: str,
    status: int,
) -> None:
    make_files(tmp_path / "in", 2)

    def fail(*_: object, **__: object) -> None:
        raise OSError("write error")

    monkeypatch.setattr(output, "write_dng", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert denoise(tmp_path / "in", "--out", tmp_path / "out", "--server", address) == status
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pragma", "reason"),
    [("max_page_count = 1", "database or disk is full"), ("query_only = 1", "attempt to write a readonly database")],
)
def test_a_table_that_cannot_be_written_ends_the_batch(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pragma: str,
    reason: str,
) -> None:
    """With the reason, and not with the advice to go on without it."""
    make_files(tmp_path / "in", 6)
    connect = sqlite3.connect

    def limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA {pragma}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", limited)
    out = tmp_path / "out"
    assert denoise(tmp_path / "in", "--out", out, "--server", address) == os.EX_TEMPFAIL
    assert capsys.readouterr().err == f"exposure: the table of results {out / NAME} cannot be written ({reason})\n"
    assert visible(out) == []


def test_the_server_is_asked_what_the_recipe_says(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    class Server:
        def checkpoint(self) -> str:
            return "one"

        def close(self) -> None: ...

        def answer(self, *, tile_done: Any, **request: Any) -> Answer:
            tile_done(1.0)
            asked.append(request)
            return Answer(request.pop("mosaic"), request["sensor"], "one")

    make_files(tmp_path / "in", 1)
    sources = find_sources([tmp_path / "in"], recursive=False)
    report, recipe = denoise_command.Report(1, True, io.StringIO()), Recipe(ratio=20, gain=3, passes=2, seed=7)
    batch.Batch(sources, recipe, tmp_path / "out", Server, report).run()  # type: ignore[arg-type]
    assert asked == [{"sensor": SENSOR, "ratio": 20, "gain": 3, "passes": 2, "seed": 7}]
    assert visible(tmp_path / "out") == ["DSC0000_exposed.dng"]


def test_twelve_bits_come_out_as_fourteen(address: str, tmp_path: Path) -> None:
    """A file of 12 bits, and the same light in levels four times finer: one mosaic, to the bit."""
    coarse = np.random.default_rng(0).integers(120, 300, (64, 64))
    for name, steps, gain in (("coarse", 1, 0.7), ("fine", 4, 2.8)):
        path, sensor = tmp_path / f"{name}.dng", Sensor((128 * steps,) * 4, 4095 * steps, CFAS["RGGB"])
        mosaic = (steps * coarse).astype(np.uint16)
        write_dng(path, RawFile(path, mosaic, sensor), mosaic)
        history = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><operation>rawprepare</operation></x:xmpmeta>'
        path.with_name(f"{path.name}.xmp").write_text(history)
        assert denoise(path, "--gain", gain, "--out", tmp_path / "out", "--server", address) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.xmp")] == ["fine_exposed.dng.xmp"]  # with levels inside
    one, other = (read(tmp_path / "out" / f"{name}_exposed.dng") for name in ("coarse", "fine"))
    assert one.sensor == other.sensor
    assert one.sensor.white == 16380
    np.testing.assert_array_equal(one.mosaic, other.mosaic)
    assert (one.mosaic % 4 != 0).mean() > 0.6  # three in four are between the levels of the source


def test_the_file_that_ended_the_batch_says_why(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file before it has yet to ask the server, and ends because of it."""
    make_files(tmp_path / "in", 2)
    sources = find_sources([tmp_path / "in"], recursive=False)
    stop = threading.Event()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def first_waits(path: Path) -> str:
        assert path != sources[0].path or stop.wait(30)
        return sha256(path)

    monkeypatch.setattr(Results, "begin", full)
    monkeypatch.setattr(batch, "sha256", first_waits)
    report = denoise_command.Report(2, True, io.StringIO())
    with Client(address) as client:
        both = batch.Batch(sources, Recipe(ratio=20, gain=3), tmp_path, lambda: client, report)
        both._stop = stop
        with pytest.raises(OutputError, match="takes no more files"):
            both.run()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs the right to mount")
def test_a_really_full_disk(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path / "in", 20, side=128)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        assert denoise(tmp_path / "in", "--out", disk, "--server", address) == os.EX_TEMPFAIL
        complaint = capsys.readouterr().err
        assert "takes no more files" in complaint or "the table of results" in complaint
        for name in visible(disk):
            read(disk / name)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_broken_table_is_one_sentence(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which tells what helps."""
    make_files(tmp_path / "in", 1)
    base = (tmp_path / "in", "--out", tmp_path, "--server", address)
    assert denoise(*base) == 0
    (tmp_path / NAME).write_bytes(b"no database" * 100)
    assert denoise(*base) == 1
    remedy = "; remove it and give --overwrite, which does all anew, or another --out\n"
    assert f"cannot be used (file is not a database){remedy}" in capsys.readouterr().err
    (tmp_path / NAME).unlink()
    assert denoise(*base, "--overwrite") == 0


def test_a_table_that_cannot_be_looked_into_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Results) -> None:
        raise OutputError("the table of results cannot be written (disk I/O error)")

    make_files(tmp_path / "in", 1)
    monkeypatch.setattr(Results, "listed", fail)
    assert denoise(tmp_path / "in", "--out", tmp_path, "--json", "--dry-run") == os.EX_TEMPFAIL
    assert lines(capsys) == [{"status": "ended", "reason": "the table of results cannot be written (disk I/O error)"}]


def test_a_read_only_source(address: str, tmp_path: Path) -> None:
    (path,) = make_files(tmp_path / "in", 1)
    content = path.read_bytes()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert denoise(tmp_path / "in", "--out", tmp_path / "out", "--server", address) == 0
    finally:
        path.parent.chmod(0o755)
    assert (path.read_bytes(), visible(tmp_path / "in")) == (content, [path.name])


def write_as_a_run_does(notes: Results, target: Path, content: bytes) -> None:
    part = target.with_name(f".{target.stem}.77{output.PART}{target.suffix}")
    part.write_bytes(content)
    notes.renaming("content", target, part)
    part.replace(target)


def test_the_table_tells_what_a_result_is(tmp_path: Path) -> None:
    notes, target = Results(tmp_path), tmp_path / "a_exposed.dng"
    assert notes.made_by("content", "settings", [target]) is None
    notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=False)
    write_as_a_run_does(notes, target, b"12345")
    assert notes.made_by("content", "settings", [target]) is None  # begun, not finished
    for _ in range(2):  # after a crash, and one more before it wrote anything: its own
        notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=False)
    notes.finish([target], "checkpoint")
    assert notes.made_by("content", "settings", [target]) == "checkpoint"
    assert notes.made_by("content", "other settings", [target]) is None
    for source, made_from in (("b", "a.dng; "), ("a", "a.dng as it was before its content changed; ")):
        with pytest.raises(RawFileError, match=f"exists and is made from {tmp_path / made_from}"):
            notes.begin("other", "settings", tmp_path / f"{source}.dng", [target], overwrite=False)
    with sqlite3.connect(tmp_path / NAME) as database:
        assert database.execute("SELECT target, size FROM results").fetchall() == [("a_exposed.dng", 5)]
        assert database.execute("SELECT * FROM begun").fetchall() == []


def test_results_of_two_networks_are_those_of_none(tmp_path: Path) -> None:
    notes, targets = Results(tmp_path), [tmp_path / "a_exposed.dng", tmp_path / "a_exposed.tiff"]
    for target, checkpoint in zip(targets, ("one", "another"), strict=True):
        notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=False)
        target.write_bytes(b"12345")
        notes.finish([target], checkpoint)
    assert [notes.made_by("content", "settings", [target]) for target in targets] == ["one", "another"]
    assert notes.made_by("content", "settings", targets) is None


def test_a_result_that_was_edited_is_not_replaced(tmp_path: Path) -> None:
    """Lightroom and exiftool write what people tell them into the DNG itself."""
    notes, target = Results(tmp_path), tmp_path / "a_exposed.dng"

    def begin(overwrite: bool = False) -> None:
        notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=overwrite)

    begin()
    target.write_bytes(b"12345")
    notes.finish([target], "checkpoint")
    begin()  # for another network, say
    notes.abandon([target])  # which failed
    assert notes.made_by("content", "settings", [target]) == "checkpoint"
    written = target.stat().st_mtime_ns
    for content, later_ns in ((b"12345 and more", 0), (b"54321", 3_000_000_000)):
        target.write_bytes(content)
        os.utime(target, ns=(written, written + later_ns))
        for refused in (lambda: begin(), lambda: notes.refuse_others("content", tmp_path / "a.dng", [target])):
            with pytest.raises(RawFileError, match="exists and was changed since it was made; --overwrite"):
                refused()
        begin(overwrite=True)
        notes.abandon([target])  # it failed: the file is still what it was
        with pytest.raises(RawFileError, match="was changed"):
            begin()
    target.write_bytes(b"12345")
    os.utime(target, ns=(written, written + 1_000_000_000))  # a memory card rounds times
    begin()


def test_a_killed_run_owns_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    notes, target = Results(tmp_path), tmp_path / "a_exposed.dng"

    def begin() -> None:
        notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=False)

    begin()  # and killed; then somebody puts a file of their own there
    target.write_bytes(b"theirs")
    assert notes.listed() == set()
    with pytest.raises(RawFileError, match="exists and is not a result of this command"):
        begin()
    target.unlink()
    begin()
    write_as_a_run_does(notes, target, b"12345")  # and killed
    assert notes.listed() == {target}
    begin()
    (tmp_path / "part").write_bytes(b"123")
    notes.renaming("content", target, tmp_path / "part")  # and killed before that got its name
    begin()
    notes.finish([target], "checkpoint")
    begin()  # to do it again, and killed; then somebody edits what was there
    target.write_bytes(b"12345 and a keyword")
    with pytest.raises(RawFileError, match="exists and was changed since it was made"):
        begin()


def test_what_was_edited_after_a_kill_is_kept(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path / "in", 1)
    base = (tmp_path / "in", "--out", tmp_path, "--server", address, "--preview")

    def killed(*_: object) -> None:
        raise OutputError("killed")

    def die(*more: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Results, "finish", killed)
            assert denoise(*base, *more) == os.EX_TEMPFAIL

    die()
    assert denoise(*base) == 0  # its own
    die("--overwrite")
    result = tmp_path / "DSC0000_exposed.dng"
    edited = result.read_bytes() + b"a keyword"
    result.write_bytes(edited)
    capsys.readouterr()
    assert denoise(*base) == 1
    assert "exists and was changed since it was made" in capsys.readouterr().err
    assert result.read_bytes() == edited


def test_a_file_of_others_stays_theirs_when_replacing_it_failed(tmp_path: Path) -> None:
    notes, target = Results(tmp_path), tmp_path / "a_exposed.dng"
    target.write_bytes(b"theirs")
    with pytest.raises(RawFileError, match="is not a result of this command"):
        notes.refuse_others("content", tmp_path / "a.dng", [target])
    notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=True)
    notes.abandon([target])
    with pytest.raises(RawFileError, match="is not a result of this command"):
        notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=False)


def test_a_table_of_an_earlier_version_knows_no_checkpoint(tmp_path: Path) -> None:
    notes, target = Results(tmp_path), tmp_path / "a_exposed.dng"
    notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=False)
    target.write_bytes(b"12345")
    notes.finish([target], "checkpoint")
    with sqlite3.connect(tmp_path / NAME) as database:
        database.execute("ALTER TABLE results DROP COLUMN checkpoint")
    assert notes.made_by("content", "settings", [target]) is None
    notes.begin("content", "settings", tmp_path / "a.dng", [target], overwrite=False)
    notes.finish([target], "checkpoint")
    assert notes.made_by("content", "settings", [target]) == "checkpoint"


def test_a_crash_of_the_reader_costs_one_file(tmp_path: Path) -> None:
    files = make_files(tmp_path, 2)
    child = reader.Reader()
    with ThreadPoolExecutor(1) as thread:
        assert child.read(files[0]).mosaic.shape == (64, 64)
        os.mkfifo(tmp_path / "hangs.dng")
        hanging = thread.submit(child.read, tmp_path / "hangs.dng")
        time.sleep(0.2)
        assert child._child is not None
        child._child.send_signal(signal.SIGSEGV)
        with pytest.raises(RawFileError, match="LibRaw crashed on it"):
            hanging.result(timeout=10)
        assert child.read(files[1]).mosaic.shape == (64, 64)
    child.close()


def test_the_second_look_that_crashes_costs_one_file(tmp_path: Path) -> None:
    good, other = make_files(tmp_path, 2)
    with reader.readers(2) as children, ThreadPoolExecutor(1) as thread:
        np.testing.assert_array_equal(children.read(good).mosaic, read(good).mosaic)
        second = children._all[1]
        assert second._child is not None  # it has looked, too
        second._child.send_signal(signal.SIGSTOP)
        waiting = thread.submit(children.read, good)
        time.sleep(0.2)
        second._child.send_signal(signal.SIGKILL)
        with pytest.raises(RawFileError, match="LibRaw crashed on it"):
            waiting.result(timeout=10)
        (tmp_path / "empty.dng").touch()
        with pytest.raises(RawFileError, match="it is empty"):
            children.read(tmp_path / "empty.dng")
        assert children.read(other).mosaic.shape == (64, 64)
        assert children._idle.qsize() == 2


def test_a_file_that_hangs_the_reader_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good,) = make_files(tmp_path, 1)
    os.mkfifo(tmp_path / "hangs.dng")
    with ThreadPoolExecutor(1) as thread, contextlib.closing(reader.Reader()) as child:
        assert child.read(good).mosaic.shape == (64, 64)
        with monkeypatch.context() as patch:
            patch.setattr(reader, "READ_TIMEOUT_S", 0.3)
            hanging = thread.submit(child.read, tmp_path / "hangs.dng")
            with pytest.raises(RawFileError, match=r"LibRaw is still busy with it after 0\.3 s"):
                hanging.result(timeout=10)
        assert child.read(good).mosaic.shape == (64, 64)


def test_a_closed_reader_ends_who_waits_and_starts_nothing(tmp_path: Path) -> None:
    (good,) = make_files(tmp_path, 1)
    os.mkfifo(tmp_path / "hangs.dng")
    child = reader.Reader()
    with ThreadPoolExecutor(1) as thread:
        assert child.read(good).mosaic.shape == (64, 64)
        hanging = thread.submit(child.read, tmp_path / "hangs.dng")
        time.sleep(0.2)
        child.close()
        with pytest.raises(RawFileError, match="LibRaw crashed on it"):
            hanging.result(timeout=10)
    with pytest.raises(RawFileError, match="reading has ended"):
        child.read(good)
    assert child._child is None


def test_a_reader_takes_no_module_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    child = reader.Reader()
    assert child.read(make_files(tmp_path, 1)[0]).mosaic.shape == (64, 64)
    child.close()


@pytest.mark.parametrize("kind", [ServerError, OSError, ValueError])
def test_a_server_that_cannot_be_started_is_tried_once(kind: type[Exception]) -> None:
    tries = []

    def make() -> Client:
        tries.append(1)
        raise kind("no server")

    client = denoise_command.SharedClient(make)
    for _ in range(3):
        with pytest.raises(ServerGoneError, match="no server"):
            client()
    assert len(tries) == 1


def test_sources_know_their_targets() -> None:
    source = Source(Path("in/later/a.ARW"), Path("later"))
    assert source.targets(Path("out"), ("dng", "jpg"), preview=True) == [
        Path("out/later/a_exposed.dng"),
        Path("out/later/a_exposed.jpg"),
        Path("out/later/a_preview.png"),
    ]
