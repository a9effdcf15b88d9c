"""The examples, run as their headers say, against the project's own client."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CFAS, PROJECT
from test_server import dark

from exposure import Sensor
from exposure.client import Client
from exposure.client.server import ServerOptions, running_server

SENSOR = Sensor((800, 800, 800, 800), 16383, CFAS["RGGB"])


def test_plain_tritonclient(address: str, tmp_path: Path) -> None:
    mosaic = dark((64, 96), SENSOR)
    np.save(tmp_path / "mosaic.npy", mosaic)
    example = PROJECT / "examples" / "plain_tritonclient.py"
    files = [tmp_path / "mosaic.npy", tmp_path / "denoised.npy"]
    subprocess.run([sys.executable, example, address, *files], check=True)
    with Client(address) as client:
        np.testing.assert_array_equal(np.load(files[1]), client.denoise(mosaic, SENSOR, ratio=100, gain=3))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not here")
def test_http_client(small_repository: Path, tmp_path: Path) -> None:
    program = tmp_path / "http_client"
    source = PROJECT / "examples" / "http_client.cpp"
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    mosaic = dark((64, 96), SENSOR)
    mosaic.astype("<u2").tofile(tmp_path / "mosaic.u16")
    with socket.socket() as one, socket.socket() as other:  # at once, so that they differ
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        port, grpc_port = one.getsockname()[1], other.getsockname()[1]
    files = [tmp_path / "mosaic.u16", tmp_path / "denoised.u16"]

    def ask(gain: str) -> "subprocess.CompletedProcess[str]":
        command = [program, "127.0.0.1", str(port), "96", "64", *files, "800", "16383", "100", gain]
        return subprocess.run(command, capture_output=True, text=True)

    options = ServerOptions(small_repository, grpc_port=grpc_port, http_port=port, metrics_port=0)
    with running_server(options) as server, Client(server.address) as client:
        assert ask("3").returncode == 0
        denoised = np.fromfile(files[1], "<u2").reshape(64, 96)
        np.testing.assert_array_equal(denoised, client.denoise(mosaic, SENSOR, ratio=100, gain=3))
        refused = ask("-3")
        assert refused.returncode == 1
        assert "GAIN is -3" in refused.stderr
    absent = ask("3")
    assert (absent.returncode, absent.stderr) == (1, f"http_client: no server answers at 127.0.0.1:{port}\n")
