"""The commands of client/README.md, as they stand there, on small files, through a real server."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT
from test_evaluate import mosaic_of, save, scene

from exposure.client.command import main
from exposure.client.rawfile import read
from exposure.client.server import ServerOptions, running_server

TEXT = (PROJECT / "client" / "README.md").read_text().partition("## Ten commands")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"^    exposure (denoise [^#\n]+)", TEXT, re.MULTILINE)
RESULTS = (  # of each command, what is there afterwards
    ["night_exposed.dng"],
    ["night_exposed.dng", "night_preview.png"],
    ["night_exposed.dng"],
    ["bright/a_exposed.dng", "bright/in/b_exposed.dng"],
    ["bright/a_exposed.dng"],
    ["bright/a_exposed.dng"],
    ["night_exposed.dng"],
    ["night_exposed.dng"],
    ["c_exposed.dng", "c_exposed.tiff", "c_exposed.jpg"],
    ["a_exposed.dng"],
)


@pytest.fixture
def address(small_repository: Path) -> Iterator[str]:
    """What the commands do is the same with any network; this one is quick."""
    with running_server(ServerOptions(small_repository, grpc_port=0, http_port=0, metrics_port=0)) as server:
        yield server.address


def test_ten_commands(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("night.ARW", "card/a.ARW", "card/in/b.ARW", "2024-05/c.NEF"):
        save(tmp_path / name, mosaic_of(scene(), 32), 0.1)
    save(tmp_path / "tripod.ARW", mosaic_of(scene()), 3.2)
    assert len(COMMANDS) == len(RESULTS)
    for command, results in zip(COMMANDS, RESULTS, strict=True):
        words = shlex.split(command.replace("gpu1:8001,gpu2:8001", f"{address},{address}"))
        again = "bright" in words  # the same results as of the command before
        for name in results if not again else ():
            (tmp_path / name).unlink(missing_ok=True)
        assert main([*words, *([] if "--server" in words else ["--server", address])]) == 0, capsys.readouterr().err
        assert [name for name in results if not (tmp_path / name).is_file()] == [], command
    dark = read(tmp_path / "night_exposed.dng")
    assert dark.sensor.white == 4 * 16383  # the last for this file keeps the exposure, in finer levels
