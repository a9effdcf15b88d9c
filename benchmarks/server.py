"""What serving adds to the engine, layer by layer, and how the server behaves under load.

python benchmarks/server.py [--rounds 3] [--megapixels 12] [--quick] [--out FILE.json]
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from frames import FRAMES, GAIN, RATIO, SENSOR, dark_mosaic
from harness import Benchmark, interleaved, peak_gib, ratio, rounded, summary
from numpy.typing import NDArray
from peers import ENGINE_FOLDER

from exposure import pack, unpack, unroll
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import AsyncClient, Client, ServerBusyError
from exposure.export.arithmetic import installed_engine
from exposure.kernels.manifest import read_manifest
from exposure.schedule import SERVED_PASSES
from exposure.training.loop import keep_freed_memory

PASSES = 3
ENGINE = "engine, 1 pass"
CONCURRENCY = (1, 2, 4, 8, 16)
LOAD_SIDES = (512, 512)  # of the mosaics that the load is made of
LOAD_PASSES = 1
ENGINE_LOOKS = 5
REQUESTS = 48  # at each concurrency, shared among the callers
FULL_MEGAPIXELS = 2  # seven frames of the load
REFUSED_PAUSE_S = 0.1  # of a caller who was refused


Engine = Callable[..., NDArray[np.float32]]


@dataclass(frozen=True)
class Frame:
    """A mosaic, and the same as the engine takes it in the first pass: image, photon gain, packed input."""

    mosaic: NDArray[np.uint16]
    inputs: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(cls, height: int, width: int) -> "Frame":
        manifest = read_manifest(ENGINE_FOLDER)
        mosaic = dark_mosaic(height, width)
        image = pack(mosaic, SENSOR, RATIO, multiple=manifest.multiple)[None]
        step = unroll(RATIO, GAIN, SENSOR.saturation, 1, photon_unit=manifest.photon_unit)[0]
        return cls(mosaic, (image, np.array([step.photon_gain], np.float32), image))


def main() -> None:
    """One server for all questions; one pass, and each transport, is verified before anything is timed."""
    benchmark = Benchmark("server", __doc__, rounds=3, megapixels=(12, 6, 3))
    keep_freed_memory()  # the engine alone is to have what the server has
    engine = installed_engine(ENGINE_FOLDER)
    large = FRAMES[1 if benchmark.quick else benchmark.megapixels]
    with running_server(ServerOptions(grpc_port=0, http_port=0, metrics_port=0)) as server:
        with Client(server.address) as client:
            small = Frame.of(*(LOAD_SIDES if benchmark.quick else FRAMES[1]))
            layers = waterfall(engine, client, server.address, small, benchmark.rounds)
            benchmark.say("waterfall timed")
            request = whole_request(engine, client, Frame.of(*large), 2 * benchmark.rounds)  # all rests on their ratio
            request["server_peak_gib"] = peak_gib(server.process.pid)
            benchmark.say("whole request timed")
        requests = 16 if benchmark.quick else REQUESTS
        under_load = load(engine, server.address, Frame.of(*LOAD_SIDES), requests)
    under_load["full"] = beyond_its_bound(Frame.of(*LOAD_SIDES), requests)
    benchmark.finish({"precision": engine.precision, "waterfall": layers, "request": request, "load": under_load})


def waterfall(engine: Engine, client: Client, address: str, frame: Frame, rounds: int) -> dict[str, Any]:
    """The engine alone, Triton's model of it, the ensembles of 1 to 4 passes, each way to send the pixels."""
    leaf, remote = grpc.InferenceServerClient(address), Client(address, shared_memory=False)
    names = [tensor.name for tensor in leaf.get_model_metadata("denoiser").inputs]
    works: dict[str, Callable[[], Any]] = {
        ENGINE: lambda: engine(*frame.inputs),
        "Triton model, gRPC": lambda: _leaf(leaf, names, frame),
    }
    for passes in SERVED_PASSES:
        works[_ensemble(passes)] = _request(client, frame, passes)
    works[f"{_ensemble(PASSES)}, gRPC"] = _request(remote, frame, PASSES)
    _verify(engine, works[_ensemble(1)], frame)
    if not np.array_equal(works[_ensemble(PASSES)](), works[f"{_ensemble(PASSES)}, gRPC"]()):
        sys.exit("the same request is answered differently over gRPC: nothing was timed")
    if not np.array_equal(_leaf(leaf, names, frame), engine(*frame.inputs)):
        sys.exit("Triton's model does not compute what the engine computes: nothing was timed")
    seconds = interleaved(works, rounds)
    leaf.close()
    remote.close()
    alone = seconds[ENGINE]
    added = {str(n): [t - n * a for t, a in zip(seconds[_ensemble(n)], alone, strict=True)] for n in SERVED_PASSES}
    return {
        "frame_mp": rounded(frame.mosaic.size / 1e6),
        "seconds": {name: summary(taken) for name, taken in seconds.items()},
        "added_to_passes_s": {passes: summary(taken) for passes, taken in added.items()},
    }


def whole_request(engine: Engine, client: Client, frame: Frame, rounds: int) -> dict[str, Any]:
    """The request that people wait for, against the engine's own passes; where its time goes."""
    request = _request(client, frame, PASSES)
    _verify(engine, _request(client, frame, 1), frame)

    def passes() -> None:
        for _ in range(PASSES):
            engine(*frame.inputs)

    passes()
    request()
    before = _settled_stage_seconds(client)
    seconds = interleaved({"engine": passes, "request": request}, rounds, warm_up=0)
    after = _settled_stage_seconds(client)
    stages = {name: (after[name] - before[name]) / rounds for name in after}
    stages["Triton, transport, client"] = float(np.mean(seconds["request"])) - sum(stages.values())
    return {
        "frame_mp": rounded(frame.mosaic.size / 1e6),
        "passes": PASSES,
        "transport": "shared memory" if client.shared_memory else "gRPC",
        "seconds": {name: summary(taken) for name, taken in seconds.items()},
        "request_over_engine": ratio(seconds["request"], seconds["engine"]),
        "mean_stage_s": {name: rounded(spent) for name, spent in stages.items()},
    }


def _settled_stage_seconds(client: Client) -> dict[str, float]:
    """Triton counts a request after it is answered: asked until nothing is added any more."""
    told = client.stage_seconds()
    while True:
        time.sleep(0.5)
        if told == (now := client.stage_seconds()):
            return told
        told = now


def load(engine: Engine, address: str, frame: Frame, requests: int) -> dict[str, Any]:
    """1 to 16 callers who ask again as soon as they are answered; what the engine alone would reach, in every step."""
    levels: dict[str, Any] = {}
    for callers in CONCURRENCY:
        engine_s = interleaved({"": lambda: engine(*frame.inputs)}, ENGINE_LOOKS)[""]
        levels[str(callers)] = asyncio.run(_under(address, frame, callers, requests))
        engine_s += interleaved({"": lambda: engine(*frame.inputs)}, ENGINE_LOOKS)[""]  # the machine drifts meanwhile
        limit = 1 / float(np.median(engine_s)) / LOAD_PASSES
        levels[str(callers)]["engine_limit_per_s"] = rounded(limit)
    return {"frame_mp": rounded(frame.mosaic.size / 1e6), "passes": LOAD_PASSES, "callers": levels}


def beyond_its_bound(frame: Frame, requests: int) -> dict[str, Any]:
    """The most callers at a server that holds fewer frames: those who wait for their turn, those who give up."""
    options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0, megapixels_in_flight=FULL_MEGAPIXELS)
    callers = CONCURRENCY[-1]
    with running_server(options) as server:
        waiting = asyncio.run(_under(server.address, frame, callers, requests))
        giving_up = asyncio.run(_under(server.address, frame, callers, requests, patience_s=0))
    return {
        "megapixels_in_flight": FULL_MEGAPIXELS,
        "callers": callers,
        "who wait": waiting,
        "who give up": giving_up,
    }


async def _under(address: str, frame: Frame, callers: int, requests: int, patience_s: float = 60.0) -> dict[str, Any]:
    """Throughput, latency and queueing with so many callers of one asyncio client."""
    async with AsyncClient(address, in_flight=callers, patience_s=patience_s) as client:

        async def ask() -> float | None:
            """Seconds until the answer; None when it is a refusal."""
            started = time.perf_counter()
            try:
                await client.denoise(frame.mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=LOAD_PASSES)
            except ServerBusyError:
                await asyncio.sleep(REFUSED_PAUSE_S)
                return None
            return time.perf_counter() - started

        async def caller() -> list[float | None]:
            return [await ask() for _ in range(requests // callers)]

        await asyncio.gather(*(ask() for _ in range(callers)))  # connections, shared memory
        queued = _queue_seconds(address)
        started = time.perf_counter()
        asked = [
            latency for several in await asyncio.gather(*(caller() for _ in range(callers))) for latency in several
        ]
        wall = time.perf_counter() - started
        queued = _queue_seconds(address) - queued
    answered = [latency for latency in asked if latency is not None]
    return {
        "requests_per_s": rounded(len(answered) / wall),
        "latency_s": summary(answered),
        "mean_queued_s": rounded(queued / len(answered)),
        "refused": len(asked) - len(answered),
    }


def _queue_seconds(address: str) -> float:
    """What requests have waited for a model so far, all models together."""
    with contextlib.closing(grpc.InferenceServerClient(address)) as client:
        models = client.get_inference_statistics(as_json=True)["model_stats"]
    leaves = [model for model in models if not model["name"].startswith("exposure_")]
    return sum(int(model["inference_stats"].get("queue", {}).get("ns", 0)) for model in leaves) / 1e9


def _ensemble(passes: int) -> str:
    return f"ensemble, {passes} pass{'es' * (passes > 1)}"


def _request(client: Client, frame: Frame, passes: int) -> Callable[[], NDArray[np.uint16]]:
    return lambda: client.denoise(frame.mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=passes)


def _leaf(client: Any, names: Sequence[str], frame: Frame) -> NDArray[np.float32]:
    """One pass in the `denoiser` model alone."""
    inputs = []
    for name, array in zip(names, frame.inputs, strict=False):
        inputs.append(grpc.InferInput(name, array.shape, "FP32"))
        inputs[-1].set_data_from_numpy(array)
    return client.infer("denoiser", inputs).as_numpy("CLEAN")


def _verify(engine: Engine, request: Callable[[], NDArray[np.uint16]], frame: Frame) -> None:
    expected = unpack(engine(*frame.inputs)[0], SENSOR, frame.mosaic.shape)
    if np.abs(request().astype(int) - expected).max() > 1:  # DN: a rounding
        sys.exit("the server does not compute what the engine computes: nothing was timed")


if __name__ == "__main__":
    main()
