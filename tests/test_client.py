"""Talking to Triton: several servers, retries on what is retryable, TLS, headers, deadlines; nothing leaks."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from conftest import CFAS, PROJECT, shared_memory
from numpy.typing import NDArray
from test_server import FREE, dark
from tritonclient.utils import InferenceServerException

import exposure.client.server as launcher
from exposure import Sensor
from exposure.client import (
    AsyncClient,
    Client,
    ServerBusyError,
    ServerError,
    ServerGoneError,
    command,
    connection,
    reach,
    triton,
)
from exposure.client.access import ROOTS, Access, ServerSlowError, is_gone
from exposure.client.connection import SPARED_S, Connection, Request, _tensors, smallest_request
from exposure.client.registered import LAST_CALL_TIMEOUT_S
from exposure.client.server import ServerOptions, running_server
from exposure.client.shared_memory import PREFIX, SHARED_MEMORY, Region, remove_abandoned_regions
from exposure.schedule import SERVED_PASSES
from exposure.tiles import SMALLEST_TILE, plan_tiles

SENSOR = Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"])
PHYSICS: dict[str, Any] = {"ratio": 50, "gain": 3, "passes": 1}


def regions(address: str) -> set[str]:
    """What the server holds of clients' shared memory."""
    status = grpc.InferenceServerClient(address).get_system_shared_memory_status(as_json=True)
    return {name for name in status.get("regions", {}) if name.startswith(PREFIX)}


def ours(before: set[str]) -> set[str]:
    """Regions of clients; not those that were there before, of other programs on this machine."""
    return {name for name in shared_memory() - before if PREFIX in name}


def answered(client: Client) -> int:
    """How many frames and tiles its first server has answered."""
    (unpack,) = [model for model in client._connections[0].statistics() if model["name"] == "unpack"]
    return int(unpack["inference_stats"].get("success", {}).get("count", 0))


KILLED = """
import os, signal, sys
import numpy as np
from exposure import Sensor
from exposure.client import Client
client = Client(sys.argv[1])
sensor = Sensor((0,) * 4, 4095, ((0, 1), (1, 2)))
client.denoise(np.arange(4096, dtype=np.uint16).reshape(64, 64), sensor, ratio=2, gain=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_clients_leak_nothing(address: str) -> None:
    """Clients killed while they hold shared memory: the next one frees it here and makes the server forget it."""
    before = shared_memory()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: subprocess.run([sys.executable, "-c", KILLED, address], cwd=PROJECT), range(6)))
    assert 1 <= len(regions(address)) == len(ours(before)) <= 2  # the last ones; they had removed those before
    with Client(address) as client:
        client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)
        assert len(regions(address)) == len(ours(before)) == 1  # its own
    assert regions(address) == ours(before) == set()


def test_a_living_clients_memory_is_left_alone() -> None:
    region = Region(4096)
    remove_abandoned_regions()
    assert (SHARED_MEMORY / region.name).exists()
    region.close()
    assert not (SHARED_MEMORY / region.name).exists()


def test_a_frame_of_another_size_reuses_or_replaces_memory(client: Client, address: str) -> None:
    before = shared_memory()
    for side in (64, 32, 96, 64):
        client.denoise(dark((side, side), SENSOR), SENSOR, **PHYSICS)
        assert len(ours(before)) == 1
    client.close()
    assert regions(address) == set()
    with pytest.raises(ServerError, match="closed"):
        client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)


def test_a_restarted_server_is_found_again(small_repository: Path) -> None:
    """Killed and started anew on its port: the request waits for it, and none of what it had registered is used."""
    mosaic = dark((64, 64), SENSOR)
    with running_server(ServerOptions(small_repository, **FREE)) as server:
        address = server.address
        client = Client(address)
        expected = client.denoise(mosaic, SENSOR, **PHYSICS)
        with ThreadPoolExecutor(2) as threads:
            while len(regions(address)) < 2:  # until two requests have met
                list(threads.map(lambda _: client.denoise(mosaic, SENSOR, **PHYSICS), range(2)))
        server.process.kill()
        server.process.wait()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(client.denoise, mosaic, SENSOR, **PHYSICS)
            again = ServerOptions(small_repository, **{**FREE, "grpc_port": int(address.rpartition(":")[2])})
            with running_server(again):
                np.testing.assert_array_equal(waiting.result(timeout=60), expected)
                client.close()


def test_patience_begins_when_a_server_is_missed() -> None:
    """However long it had computed before; and a request that ends servers is not tried without end."""
    with Client(["127.0.0.1:1", "127.0.0.1:2"], patience_s=0.5) as client:
        for connection in client._connections:
            connection.has_answered = True
        asked: list[float] = []

        def ask(_: Connection) -> str:
            asked.append(time.monotonic())
            if len(asked) == 1:
                time.sleep(0.7)
            if len(asked) < 3:
                raise ServerGoneError("it was restarted")
            return "an answer"

        assert client._patiently(ask) == "an answer"
        assert len(asked) == 3

        def ends_servers(connection: Connection) -> str:
            asked.append(time.monotonic())
            time.sleep(0.3)
            connection.resting_until = 0.0  # other requests are answered meanwhile
            raise ServerGoneError("it was ended")

        asked.clear()
        with pytest.raises(ServerGoneError, match="it was ended"):
            client._patiently(ends_servers)
        assert len(asked) <= 3


def test_authorities_may_be_given_as_text(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"absent\.pem cannot be read"):
        Client("127.0.0.1:1", authorities=str(tmp_path / "absent.pem"))


def test_a_server_that_is_being_stopped_is_waited_for(small_repository: Path) -> None:
    """In order, with requests under way: Triton refuses new ones, then forgets its models, then closes its port."""
    mosaic = dark((600, 600), SENSOR)
    with running_server(ServerOptions(small_repository, **FREE)) as server, ThreadPoolExecutor(3) as threads:
        address = server.address
        with Client(address, in_flight=3) as client:
            expected = client.denoise(mosaic, SENSOR, **PHYSICS)
            asked = [threads.submit(client.denoise, mosaic, SENSOR, **PHYSICS) for _ in range(9)]
            asked[2].result(timeout=60)
            server.process.terminate()
            server.process.wait(timeout=30)
            again = ServerOptions(small_repository, **{**FREE, "grpc_port": int(address.rpartition(":")[2])})
            with running_server(again):
                for answer in asked:
                    np.testing.assert_array_equal(answer.result(timeout=60), expected)


def test_what_triton_says_while_it_stops_is_no_refusal() -> None:
    for sentence in (
        "Request for unknown model: 'exposure_3' has no available versions",
        "Socket closed",
        "Stub process 'denoiser_0_0' is not healthy.",
        "The stub process has exited unexpectedly.",
    ):
        assert is_gone(InferenceServerException(sentence, status="StatusCode.NOT_FOUND"))
    assert not is_gone(InferenceServerException("RATIO is 0", status="StatusCode.INVALID_ARGUMENT"))


def test_a_dead_server_among_several_loses_no_request(address: str) -> None:
    mosaic = dark((64, 64), SENSOR)
    with Client(["127.0.0.1:9", address]) as client:
        assert client.is_ready()
        for _ in range(4):
            client.denoise(mosaic, SENSOR, **PHYSICS)
    with Client(["127.0.0.1:9", "127.0.0.1:10"]) as client, pytest.raises(ServerGoneError):
        client.denoise(mosaic, SENSOR, **PHYSICS)


def test_a_silent_server_among_several_is_not_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: what the others run is known in seconds."""
    monkeypatch.setattr(triton, "READY_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, Client(address) as alone:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with Client([where, address]) as client:
            assert client.checkpoint() == alone.checkpoint()
            assert time.monotonic() - started < 5
        with Client([where, where], patience_s=0, timeout_s=1) as client, pytest.raises(ServerError, match="took more"):
            client.checkpoint()


def test_a_silent_server_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence tells how long it was waited for, and another try may help."""
    monkeypatch.setattr(connection, "READY_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(where) as client, pytest.raises(ServerGoneError, match=r"did not answer within 0\.5 s"):
            client.check()


def test_servers_that_are_all_slow_are_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(address) as alone, Client([address, address]) as both:
        monkeypatch.setattr(triton, "READY_TIMEOUT_S", 1e-6)
        assert both.checkpoint() == alone.checkpoint()


def ask_for_ever(client: Client, mosaic: NDArray[np.uint16]) -> None:
    """However fast the server is, a request is under way when the client is closed."""
    while True:
        client.denoise(mosaic, SENSOR, ratio=50, gain=3, passes=4)


def test_a_full_server_refuses_and_loses_nothing(small_repository: Path) -> None:
    """It holds so many pixels and no more; who waits is served, and what was given up does not count for ever."""
    mosaic = dark((512, 512), SENSOR)
    options = ServerOptions(small_repository, **FREE, megapixels_in_flight=1)  # three such frames
    sentences = set()

    def refused(client: Client) -> list[bool]:
        def ask(_: int) -> bool:
            try:
                client.denoise(mosaic, SENSOR, ratio=50, gain=3, passes=4)
            except ServerBusyError as error:
                sentences.add(str(error))
                return True
            return False

        with ThreadPoolExecutor(12) as threads:
            return list(threads.map(ask, range(12)))

    with running_server(options) as server:
        with Client(server.address, in_flight=12, patience_s=0) as client:
            assert 0 < sum(refused(client)) < 12
            assert all("the server is busy: requests of 0." in sentence for sentence in sentences)
        with Client(server.address, in_flight=12) as client:
            assert not any(refused(client))
        hasty = Client(server.address, in_flight=3)
        with ThreadPoolExecutor(3) as threads:
            abandoned = [threads.submit(ask_for_ever, hasty, mosaic) for _ in range(3)]
            time.sleep(0.1)
            while len(hasty._connections[0]._calls) < 3:  # until all are with the server
                time.sleep(0.001)
            hasty.close()
            assert [str(one.exception()) for one in abandoned] == ["the client is closed"] * 3
        with Client(server.address, in_flight=3) as client:
            assert not any(refused(client))
        entering = _tensors({"MOSAIC": mosaic, **smallest_request("pack").small})
        with grpc.InferenceServerClient(server.address) as raw:
            for _ in range(3):  # let in, and never to leave
                raw.infer("pack", entering, outputs=[grpc.InferRequestedOutput("IMAGE")])
        with Client(server.address, timeout_s=20) as client:
            assert not any(refused(client))  # however often it asks meanwhile


def test_refusals_are_not_retried(client: Client) -> None:
    started = time.monotonic()
    with pytest.raises(ServerError, match="GAIN is -1") as caught:
        client.denoise(dark((64, 64), SENSOR), SENSOR, ratio=2, gain=-1)
    assert not isinstance(caught.value, ServerGoneError)
    assert time.monotonic() - started < 5


def test_a_deadline_is_one_sentence_and_mixes_nothing(address: str) -> None:
    """The server still writes the late answer; the next request has memory of its own."""
    slow, quick = dark((256, 256), SENSOR), dark((64, 64), SENSOR)
    with Client(address) as patient:
        expected = patient.denoise(quick, SENSOR, **PHYSICS)
    with Client(address, timeout_s=0.05) as client, pytest.raises(ServerError, match=r"took more than 0\.05 s"):
        client.denoise(slow, SENSOR, ratio=50, gain=3, passes=4)
    with Client(address) as patient:
        np.testing.assert_array_equal(patient.denoise(quick, SENSOR, **PHYSICS), expected)


def test_what_is_nearly_done_is_not_cancelled(small_repository: Path) -> None:
    """Triton can end when a request is cancelled in the moment it is answered: neither close nor a deadline do that."""

    def asked(client: Client) -> Future[Any]:
        call = thread.submit(client.denoise, dark((1024, 1024), SENSOR), SENSOR, **PHYSICS)
        while not client._connections[0]._calls and not call.done():
            time.sleep(0.001)
        return call

    with running_server(ServerOptions(small_repository, **FREE)) as server, Client(server.address) as watcher:
        before = len(SERVED_PASSES)  # what was asked to see whether it is ready; Triton may yet have to count it
        with ThreadPoolExecutor(1) as thread:
            client = Client(server.address)
            call = asked(client)
            client.close()
            assert call.result().shape == (1024, 1024)
            error, tries = None, 0
            with Client(server.address, timeout_s=0.001) as hasty:
                while error is None and tries < 5:  # who waits may be held up until the answer is there
                    error, tries = asked(hasty).exception(), tries + 1
            assert isinstance(error, ServerError)
        deadline = time.monotonic() + 5  # Triton counts after it answers
        while answered(watcher) < before + 1 + tries and time.monotonic() < deadline:
            time.sleep(0.05)
        assert answered(watcher) == before + 1 + tries
        assert regions(server.address) == set()  # neither left any behind


def test_ctrl_c_while_a_client_closes_leaves_nothing(address: str) -> None:
    """Somebody is impatient with the moment that it takes: the request is given up, and the memory is free."""
    before = shared_memory()
    program = f"""
import os, signal, threading, time
import numpy as np
from exposure import Sensor
from exposure.client import Client
client = Client({address!r})
sensor = Sensor((600, 600, 600, 600), 15520, ((0, 1), (1, 2)))
frame = np.full((2800, 2800), 700, np.uint16)
threading.Thread(target=client.denoise, args=(frame, sensor), kwargs={{"ratio": 20, "gain": 3, "passes": 4}}).start()
calls, before = client._connections[0]._calls, None
while not calls or list(calls) != before:  # the first is short: whether a server is there
    before = list(calls)
    time.sleep(0.2)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
client.close()
"""
    started = time.monotonic()
    told = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, timeout=60, check=False)
    assert b"KeyboardInterrupt" in told.stderr
    assert b"the client is closed" in told.stderr
    assert time.monotonic() - started < 15  # the frame takes longer
    assert ours(before) == set()


def test_a_server_that_hangs_is_not_waited_for_at_the_end(small_repository: Path) -> None:
    with running_server(ServerOptions(small_repository, **FREE)) as server:
        client = Client(server.address)
        client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)
        client._connections[0]._access = Access(timeout_s=1)
        server.process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(ServerSlowError, match="took more than 1 s"):
                client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)
            assert time.monotonic() - started < 3
            started = time.monotonic()
            client.close()
            assert time.monotonic() - started < SPARED_S + LAST_CALL_TIMEOUT_S + 2
        finally:
            server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timeout_s": float("inf")}, "the timeout is inf; it is in seconds"),
        ({"timeout_s": -1}, "the timeout is -1"),
        ({"timeout_s": float("nan")}, "the timeout is nan"),
        ({"headers": {"x y": "1"}}, 'the header "x y" is no text'),
        ({"headers": {"x": "Ä"}}, 'the header "x" is no text'),
        ({"address": "a:8001,b:8001"}, 'server is "a:8001,b:8001"; write HOST:PORT'),
    ],
)
def test_what_a_client_cannot_be_made_with_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ServerError, match=re.escape(sentence)):
        Client(**{"address": "localhost:8001", **options})


def test_a_request_that_does_not_fit_costs_itself(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for again while others may hold the memory; then that file fails, not all that come after it."""
    asked = []

    def full(*_: object, **__: object) -> None:
        asked.append(time.monotonic())
        sentence = "the card's memory does not suffice now (CUDA error 2: out of memory)"
        raise InferenceServerException(sentence, "StatusCode.UNAVAILABLE")

    mosaic = dark((64, 64), SENSOR)
    client.denoise(mosaic, SENSOR, **PHYSICS)
    client._patience_s = 0.5
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "_infer", full)
        with pytest.raises(ServerError, match="the card's memory does not suffice now") as told:
            client.denoise(mosaic, SENSOR, **PHYSICS)
    assert not isinstance(told.value, ServerGoneError)
    assert len(asked) > 1
    client.denoise(mosaic, SENSOR, **PHYSICS)


def test_close_ends_what_runs(address: str) -> None:
    client = Client(address)
    threading.Timer(0.1, client.close).start()
    started = time.monotonic()
    with pytest.raises(ServerError, match="the client is closed"):
        ask_for_ever(client, dark((384, 384), SENSOR))
    assert time.monotonic() - started < 3


def test_close_ends_a_frame_whose_tiles_all_wait(address: str) -> None:
    """The tiles of one frame keep all threads busy; those of another have none yet."""
    client = Client(address, in_flight=1, tile_pixels=1 << 20)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(client.denoise, dark((3200, 3200), SENSOR), SENSOR, **PHYSICS) for _ in range(2)]
        time.sleep(0.3)
        client.close()
        assert [str(call.exception(timeout=20)) for call in calls] == ["the client is closed"] * 2


def test_many_threads_share_a_client(client: Client) -> None:
    mosaics = [dark((32 + 32 * (i % 2), 64), SENSOR, seed=i) for i in range(8)]
    alone = [client.denoise(mosaic, SENSOR, **PHYSICS) for mosaic in mosaics]
    with ThreadPoolExecutor(6) as threads:
        for own, together in zip(
            alone, threads.map(lambda m: client.denoise(m, SENSOR, **PHYSICS), mosaics), strict=True
        ):
            np.testing.assert_array_equal(own, together)


def test_asyncio(address: str) -> None:
    mosaics = [dark((64, 64), SENSOR, seed=i) for i in range(4)]

    async def all_at_once() -> list[Any]:
        async with AsyncClient(address) as client:
            assert await client.is_ready()
            return await asyncio.gather(*(client.denoise(mosaic, SENSOR, **PHYSICS) for mosaic in mosaics))

    with Client(address) as client:
        for mosaic, answer in zip(mosaics, asyncio.run(all_at_once()), strict=True):
            np.testing.assert_array_equal(answer, client.denoise(mosaic, SENSOR, **PHYSICS))


def test_asyncio_keeps_as_many_requests_in_flight_as_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than asyncio has threads: each request waits here until all are there."""
    wanted = (os.cpu_count() or 1) + 8
    together, infer = threading.Barrier(wanted), Connection.infer

    def met(self: Connection, request: Request) -> Any:
        together.wait(timeout=30)
        return infer(self, request)

    async def all_at_once() -> list[Any]:
        async with AsyncClient(address, in_flight=wanted) as client:
            mosaics = (dark((32, 32), SENSOR, seed=i) for i in range(wanted))
            return await asyncio.gather(*(client.denoise(mosaic, SENSOR, **PHYSICS) for mosaic in mosaics))

    monkeypatch.setattr(Connection, "infer", met)
    assert len(asyncio.run(all_at_once())) == wanted
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("exposure-")]


def test_asyncio_closes_under_its_calls(address: str) -> None:
    """Calls that run, wait for a thread or come later: all end, with one sentence."""

    async def closed() -> list[Any]:
        client = AsyncClient(address, in_flight=2)
        calls = [asyncio.ensure_future(client.denoise(dark((512, 512), SENSOR), SENSOR, **PHYSICS)) for _ in range(12)]
        await asyncio.sleep(0.05)
        await client.close()
        calls.append(asyncio.ensure_future(client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)))
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = [answer for answer in asyncio.run(closed()) if not isinstance(answer, np.ndarray)]
    assert len(answers) >= 9
    assert {type(answer) for answer in answers} == {ServerError}
    assert "the client is closed" in str(answers[-1])


def test_a_cancelled_call_sends_no_further_tile(address: str) -> None:
    frame = dark((704, 6 * 704), SENSOR)

    async def cancelled() -> int:
        async with AsyncClient(address, in_flight=1, tile_pixels=SMALLEST_TILE) as client:
            before = answered(client._client)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.denoise(frame, SENSOR, **PHYSICS), 0.05)
            await client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)  # when its one thread is free again
            return answered(client._client) - before

    assert asyncio.run(cancelled()) < len(plan_tiles((704, 6 * 704), SMALLEST_TILE)) / 2


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for this machine that vouches for itself, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}_key.pem"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject],
        check=True,
        capture_output=True,
    )
    return certificate, key


@contextlib.contextmanager
def guarded_server(repository: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], **access: Any) -> Iterator[str]:
    """Address of a server with more flags, once it answers a client with such access."""
    plain = launcher._command
    monkeypatch.setattr(launcher, "_command", lambda *given: [*plain(*given), *flags])
    monkeypatch.setattr(launcher, "_wait_until_ready", lambda _: None)
    with running_server(ServerOptions(repository, **FREE)) as server:
        address = "localhost:" + server.address.rpartition(":")[2]
        with Client(address, **access) as client:
            deadline = time.monotonic() + 60
            while not client.is_ready() and time.monotonic() < deadline:
                time.sleep(0.2)
        yield address


openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@openssl
def test_tls_and_a_token(small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that encrypts and wants a header; clients that do not trust it or lack the header are told so."""
    certificate, key = self_signed(tmp_path, "server")
    flags = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificate}",
        f"--grpc-server-key={key}",
        "--grpc-restricted-protocol=inference:token=secret",
    ]
    access: dict[str, Any] = {"authorities": certificate, "headers": {"triton-grpc-protocol-token": "secret"}}
    with guarded_server(small_repository, monkeypatch, flags, **access) as address:
        with Client(address, **access) as client:
            assert client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS).shape == (64, 64)
        flags = ["--server", address, "--ca", str(certificate), "--header", "Triton-Grpc-Protocol-Token: secret"]
        with reach.client_for(command._parser([]).parse_args(["demo", *flags])) as client:
            assert client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS).shape == (64, 64)
        with Client(address, authorities=certificate) as client, pytest.raises(ServerError, match="token"):
            client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)
        with Client(address, tls=True) as client, pytest.raises(ServerError, match="not trusted"):
            client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)
        monkeypatch.delenv(ROOTS, raising=False)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # as if the system trusted it
        with Client(address, tls=True, headers=access["headers"]) as client:
            assert client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS).shape == (64, 64)
    with pytest.raises(ServerError, match="cannot be read"):
        Client(address, authorities=tmp_path / "absent.pem")
    with pytest.raises(ServerError, match="cannot be read"):
        Client(address, authorities=tmp_path)


def test_headers_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPOSURE_TOKEN", "abc")
    assert reach._headers(["X-One: a: b"], named=True) == {"x-one": "a: b", "authorization": "Bearer abc"}
    assert reach._headers(["X-One: a"], named=False) == {"x-one": "a"}  # whoever listens here is not told
    assert reach._headers(["Authorization: Basic x"], named=True) == {"authorization": "Basic x"}
    with pytest.raises(ValueError, match='write "NAME: VALUE"'):
        reach._headers(["secret"], named=True)
    monkeypatch.setenv("EXPOSURE_TOKEN", "a\nb")
    with pytest.raises(ValueError, match=r"^\$EXPOSURE_TOKEN is not printable ASCII$"):
        reach._headers([], named=True)


def test_a_token_that_is_sent_in_clear_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    options = command._parser([]).parse_args(
        ["demo", "--server", "192.0.2.1:8001", "--header", "Authorization: Bearer abc"]
    )
    token = reach.checked(options)
    reach._tell_open(token, ["192.0.2.1:8001", "localhost:8001"])
    assert capsys.readouterr().err == "exposure: the token goes to 192.0.2.1:8001 unencrypted; --tls encrypts\n"
    reach._tell_open({**token, "tls": True}, ["192.0.2.1:8001"])
    reach._tell_open({**token, "headers": {}}, ["192.0.2.1:8001"])
    assert capsys.readouterr().err == ""


def test_a_proxy_is_not_asked_for_this_machine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would send even 127.0.0.1 through it; for others it does, and the sentence tells."""
    for name in (*connection.PROXIES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    with Client(address) as client:
        assert client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS).shape == (64, 64)
    with Client("192.0.2.1:8001") as client, pytest.raises(ServerGoneError, match=r"\$http_proxy is set"):
        client.check()


def test_a_server_that_ended_is_told_by_who_started_it() -> None:
    with (
        Client("127.0.0.1:1", ended=lambda: "SIGKILL ended it", patience_s=0) as client,
        pytest.raises(ServerGoneError, match=r"^SIGKILL ended it$"),
    ):
        client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)


@openssl
def test_client_certificates(small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that wants to know who asks: the right certificate is served, none or another is told what it lacks."""
    certificate, key = self_signed(tmp_path, "server")
    own, own_key = self_signed(tmp_path, "client")
    foreign, foreign_key = self_signed(tmp_path, "foreign")
    flags = [
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={certificate}",
        f"--grpc-server-key={key}",
        f"--grpc-root-cert={own}",
    ]
    access: dict[str, Any] = {"authorities": certificate, "certificate": own, "key": own_key}
    with guarded_server(small_repository, monkeypatch, flags, **access) as address:
        flags = ["--server", address, "--ca", str(certificate), "--client-certificate", str(own), "--client-key"]
        options = command._parser([]).parse_args(["demo", *flags, str(own_key)])
        with reach.client_for(options) as client:
            assert client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS).shape == (64, 64)
        strangers: list[dict[str, Any]] = [{}, {"certificate": foreign, "key": foreign_key}]
        for shown in strangers:
            with (
                Client(address, authorities=certificate, patience_s=0, **shown) as client,
                pytest.raises(ServerError, match="answers no other; see --client-certificate"),
            ):
                client.denoise(dark((64, 64), SENSOR), SENSOR, **PHYSICS)


@openssl
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no key", "a client certificate and its key belong together"),
        ("another key", r"own\.pem and .*server_key\.pem cannot be used \(key_values_mismatch\)"),
        ("an absent key", r"absent\.pem cannot be used \(no such file or directory\)"),
        ("a locked key", r"locked\.pem cannot be used \(.*\); they must be a certificate and its key, unencrypted"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_one_sentence(tmp_path: Path, what: str, sentence: str) -> None:
    own, own_key = self_signed(tmp_path, "own")
    locked = tmp_path / "locked.pem"
    encrypt = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(own_key), "-out", str(locked)]
    subprocess.run(encrypt, check=True, capture_output=True)
    keys = {"no key": None, "an absent key": tmp_path / "absent.pem", "a locked key": locked}
    key = self_signed(tmp_path, "server")[1] if what == "another key" else keys[what]
    with pytest.raises(ServerError, match=sentence) as caught:
        Client("localhost:1", certificate=own, key=key)
    assert "\n" not in str(caught.value)
