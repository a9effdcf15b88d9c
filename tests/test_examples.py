"""The examples, as their headers say, and what documents tell other programs, against the project's own client."""

import re
import shutil
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import CFAS, PROJECT
from numpy.typing import NDArray
from test_server import FREE, dark
from tritonclient.grpc import service_pb2, service_pb2_grpc

from exposure import Sensor
from exposure.client import Client
from exposure.client.rawfile import read
from exposure.client.recipe import Recipe
from exposure.client.sample import make_sample
from exposure.client.server import Server, ServerOptions, running_server

SENSOR = Sensor((800, 800, 800, 800), 16383, CFAS["RGGB"])
PLAIN = PROJECT / "examples" / "plain_tritonclient.py"


@pytest.fixture(scope="module")
def server(small_repository: Path) -> Iterator[Server]:
    """What a client must do is the same with any network; this one is quick."""
    with running_server(ServerOptions(small_repository, **FREE)) as server:
        yield server


def test_plain_tritonclient(server: Server, tmp_path: Path) -> None:
    mosaic = dark((64, 96), SENSOR)
    np.save(tmp_path / "mosaic.npy", mosaic)
    files = [tmp_path / "mosaic.npy", tmp_path / "denoised.npy"]
    subprocess.run([sys.executable, PLAIN, server.address, *files], check=True)
    with Client(server.address) as client:
        np.testing.assert_array_equal(np.load(files[1]), client.denoise(mosaic, SENSOR, ratio=100, gain=3))
    usage = subprocess.run([sys.executable, PLAIN], capture_output=True, text=True)
    assert (usage.returncode, usage.stderr) == (1, "plain_tritonclient: give HOST:PORT MOSAIC.npy DENOISED.npy\n")


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not here")
def test_http_client(server: Server, tmp_path: Path) -> None:
    program = tmp_path / "http_client"
    source = PROJECT / "examples" / "http_client.cpp"
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    mosaic = dark((64, 96), SENSOR)
    mosaic.astype("<u2").tofile(tmp_path / "mosaic.u16")
    files = [tmp_path / "mosaic.u16", tmp_path / "denoised.u16"]

    def ask(address: str, gain: str) -> "subprocess.CompletedProcess[str]":
        command = [str(program), *address.split(":"), "96", "64", *map(str, files), "800", "16383", "100", gain]
        return subprocess.run(command, capture_output=True, text=True)

    assert ask(server.http, "3").returncode == 0
    denoised = np.fromfile(files[1], "<u2").reshape(64, 96)
    with Client(server.address) as client:
        np.testing.assert_array_equal(denoised, client.denoise(mosaic, SENSOR, ratio=100, gain=3))
    foreign = b'{"inputs":[{"name":"MOSAIC","datatype":"UINT16","shape":[2147483648,2147483648],"data":[600]}]}'
    page = urllib.request.Request(f"http://{server.http}/v2/models/pack/infer", foreign, {"Content-Type": "text/plain"})
    with pytest.raises(urllib.error.HTTPError, match="403"):  # as any page in a browser could send it
        urllib.request.urlopen(page)
    refused = ask(server.http, "-3")
    assert refused.returncode == 1
    assert "GAIN is -3" in refused.stderr
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{unused.getsockname()[1]}"
        absent = ask(nowhere, "3")
    assert (absent.returncode, absent.stderr) == (1, f"http_client: no server answers at {nowhere}\n")


def asked(
    address: str,
    mosaic: NDArray[np.uint16],
    gain: float = 3,
    outputs: Sequence[str] = (),
    largest: int | None = None,
    model: str = "exposure_3",
) -> Mapping[str, bytes]:
    """A request as examples/README.md tells it to other languages: the stubs of the protocol and gRPC alone."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensors: dict[str, tuple[str, Any]] = {
        "MOSAIC": ("UINT16", mosaic.astype("<u2")),
        "CFA": ("UINT8", np.array([[0, 1], [1, 2]], np.uint8)),
        "BLACK": ("FP32", np.full(4, 800, "<f4")),
        "WHITE": ("FP32", np.array([16383], "<f4")),
        "RATIO": ("FP32", np.array([100], "<f4")),
        "GAIN": ("FP32", np.array([gain], "<f4")),
        "SEED": ("UINT64", np.array([0], "<u8")),
        "ORIGIN": ("INT32", np.array([0, 0], "<i4")),
    }
    for name, (datatype, array) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    options = [] if largest is None else [("grpc.max_receive_message_length", largest)]
    with grpc.insecure_channel(address, options=options) as channel:
        reply = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    return dict(zip((output.name for output in reply.outputs), reply.raw_output_contents, strict=True))


def test_another_language(server: Server) -> None:
    """A frame whose answer is above the 4 MiB that gRPC libraries receive by themselves."""
    mosaic = dark((1200, 1800), SENSOR)
    with pytest.raises(grpc.RpcError) as small:
        asked(server.address, mosaic)
    assert small.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = asked(server.address, mosaic, largest=1 << 28)
    assert set(answer) == {"DENOISED", "CHECKPOINT"}
    assert len(answer["DENOISED"]) == 2 * mosaic.size > 4 << 20
    length = int.from_bytes(answer["CHECKPOINT"][:4], "little")
    with Client(server.address) as client:
        expected = client.denoise(mosaic, SENSOR, ratio=100, gain=3)
        assert (length, answer["CHECKPOINT"][4:].decode()) == (64, client.checkpoint())
    np.testing.assert_array_equal(np.frombuffer(answer["DENOISED"], "<u2").reshape(mosaic.shape), expected)


def test_what_another_language_is_told(server: Server) -> None:
    mosaic = dark((32, 32), SENSOR)
    assert set(asked(server.address, mosaic, outputs=["DENOISED"])) == {"DENOISED"}
    with pytest.raises(grpc.RpcError) as refused:
        asked(server.address, mosaic, gain=-3)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "in ensemble 'exposure_3', GAIN is -3; it must be positive and finite"
    with pytest.raises(grpc.RpcError) as absent:
        asked(server.address, mosaic, model="exposure_9")
    assert absent.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_program_of_the_readme(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first snippet of "Other programs", as it stands there."""
    part = (PROJECT / "client" / "README.md").read_text().partition("## Other programs\n")[2]
    snippet = re.match(r"\n((?:    .*\n|\n)+)", part)
    assert snippet
    monkeypatch.chdir(tmp_path)
    make_sample(tmp_path).dark.rename("night.ARW")
    exec(textwrap.dedent(snippet[1]).replace("localhost:8001", server.address), {})
    file = read("night.ARW")
    choice = Recipe(auto=True).choose(file)
    assert choice.defects is not None
    with Client(server.address) as client:
        mosaic = choice.defects.corrected(file.mosaic)
        expected = client.denoise(mosaic, file.sensor, ratio=choice.ratio, gain=choice.gain)
    np.testing.assert_array_equal(read("night_exposed.dng").mosaic, expected)
