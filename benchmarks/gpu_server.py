"""The real server from pip on a card, against the same server on the CPU: our models there, then the denoiser too."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from frames import SENSOR
from gpu_build import PROJECT
from gpu_machine import NotCheckedError
from gpu_torch import PHYSICS, dark

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.kernels.library import BACKEND, built

NEEDED = ("pytriton", "tritonclient", "openvino")
PASSES = (1, 3)
ON_CARD = ("pack", "expose", "unpack")
FRAMES = ((1021, 770), (4240, 2832))  # width and height
ROUNDS = 10
MOST_MEAN_DN = 16.0  # a thousandth of white


def server_check() -> dict[str, Any]:
    """exposure_1 and exposure_3 with pack, expose and unpack on the card and the denoiser on the CPU."""
    _require()
    from exposure.client.triton import ServerError

    mosaic = dark((770, 1021))
    result: dict[str, Any] = {}
    with _served(MODEL_REPOSITORY) as client:
        expected = {passes: client.denoise(mosaic, SENSOR, passes=passes, **PHYSICS) for passes in PASSES}
    with _copied() as repository, _served(_on_card(repository)) as client:
        for passes in PASSES:
            difference = np.abs(client.denoise(mosaic, SENSOR, passes=passes, **PHYSICS).astype(int) - expected[passes])
            result[f"passes_{passes}"] = {
                "differing": round(float(np.mean(difference > 0)), 6),
                "largest_dn": int(difference.max()),
            }
            if difference.max() > 1:
                raise RuntimeError(f"exposure_{passes} differs from the CPU server's: {result}")
        try:
            client.denoise(mosaic, SENSOR, passes=1, **(PHYSICS | {"ratio": 0.5}))
        except ServerError as error:
            if "RATIO is 0.5" not in str(error):
                raise
        else:
            raise RuntimeError("a ratio of 0.5 was not refused")
        result["concurrent"] = _concurrently(client.address, mosaic[:128, :192], clients=4, requests=5)
        seconds = client.stage_seconds()
        if not all(seconds[name] > 0 for name in ON_CARD):
            raise RuntimeError(f"statistics say that a model on the card took no time: {seconds}")
    return {"on_card": list(ON_CARD), "against_cpu_server": result}


def deployed_check() -> dict[str, Any]:
    """What a user of the card deploys: `build_engine.py --target tensorrt-rtx`, then every model of rtx.pbtxt on it."""
    _require()
    from exposure.kernels.machine import rtx_hindrance, this_machine

    if hindrance := rtx_hindrance(this_machine()):
        raise NotCheckedError(hindrance)
    from exposure.export.build_engine import build
    from exposure.export.recipes import Settings
    from exposure.kernels.manifest import read_manifest

    mosaic = dark((770, 1021))
    with _copied() as repository:
        build(CHECKPOINT, "openvino", repository)  # kept, where it is of this checkpoint
        with _served(repository) as client:
            expected = {passes: client.denoise(mosaic, SENSOR, passes=passes, **PHYSICS) for passes in PASSES}
        manifest = read_manifest(build(CHECKPOINT, "tensorrt-rtx", repository, Settings(frames=FRAMES)))
        if manifest.accuracy["ran_on"] != this_machine().card:
            raise RuntimeError(f"the gate did not run on the card: {manifest.accuracy['ran_on']}")
        with _served(repository, "rtx") as client:
            answers = {passes: client.denoise(mosaic, SENSOR, passes=passes, **PHYSICS) for passes in PASSES}
            seconds = {f"{width}x{height}": _latency(client, (height, width)) for width, height in FRAMES}
            # whole frames, so that the card's memory pool is nearly as full as the server lets it be
            concurrent = _concurrently(client.address, dark(FRAMES[-1][::-1]), clients=10, requests=2)
    return {
        "against_cpu_server": {f"passes_{passes}": _judged(answers[passes], expected[passes]) for passes in PASSES},
        "concurrent": concurrent,
        "accuracy": manifest.accuracy,
        "build_seconds": manifest.build_seconds,
        "seconds_per_request_of_3_passes": seconds,
    }


def _judged(answer: Any, expected: Any) -> dict[str, float]:
    """FP16 may tip a draw; the frame as a whole stays within a thousandth of white."""
    difference = np.abs(answer.astype(int) - expected)
    mean = float(difference.mean())
    if mean > MOST_MEAN_DN:
        raise RuntimeError(f"the server on the card is off by {mean:.2f} DN in the mean")
    return {"mean_dn": round(mean, 4), "dn_of_999_in_1000": round(float(np.quantile(difference, 0.999)), 2)}


def _latency(client: Any, shape: tuple[int, int]) -> dict[str, float]:
    """Median and extremes of whole requests from this machine, after two that warm up; and of their mean, what each of
    our models took and what is left for Triton, transport and client.
    """
    mosaic = dark(shape)

    def request() -> float:
        started = time.perf_counter()
        client.denoise(mosaic, SENSOR, passes=3, **PHYSICS)
        return time.perf_counter() - started

    for _ in range(2):
        request()
    before = client.stage_seconds()
    times = [request() for _ in range(ROUNDS)]
    after = client.stage_seconds()
    result = {name: round(of(times), 5) for name, of in (("median", median), ("least", min), ("most", max))}
    models = {f"mean of {name}": (after[name] - before[name]) / ROUNDS for name in after}
    models["mean of the rest"] = sum(times) / ROUNDS - sum(models.values())
    return result | {name: round(seconds, 5) for name, seconds in models.items()}


def _concurrently(address: str, mosaic: Any, clients: int, requests: int) -> str:
    """Clients with a seed each, at once: everybody gets their own."""
    from exposure.client.triton import Client

    def ask(seed: int, requests: int = requests) -> list[Any]:
        with Client(address) as client:
            physics = PHYSICS | {"seed": seed}
            return [client.denoise(mosaic, SENSOR, passes=2, **physics) for _ in range(requests)]

    alone = [ask(seed, 1)[0] for seed in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        for own, answers in zip(alone, threads.map(ask, range(clients)), strict=True):
            if not all(np.array_equal(answer, own) for answer in answers):
                raise RuntimeError("concurrent requests did not get the answer that each gets alone")
    return f"{clients * requests} requests of {clients} clients, each as alone"


def _require() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotCheckedError(f"{', '.join(missing)} not installed; with pip: pip install -e '.[server]'")
    try:
        built(BACKEND)
    except OSError as error:
        raise NotCheckedError(str(error)) from error
    if not (MODEL_REPOSITORY / "denoiser" / "1" / "openvino" / "manifest.json").is_file():
        command = [sys.executable, str(PROJECT / "export" / "build_engine.py"), "--target", "openvino"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if result.returncode:
            raise NotCheckedError(f"no engine for the CPU, and building one failed: {result.stderr.strip()[-300:]}")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


@contextmanager
def _copied() -> Iterator[Path]:
    """A copy of the model repository."""
    with tempfile.TemporaryDirectory(prefix="exposure_gpu_check_") as folder:
        copy = Path(folder) / "model_repository"
        shutil.copytree(MODEL_REPOSITORY, copy, ignore=shutil.ignore_patterns("tensorrt*"))
        yield copy


def _on_card(repository: Path) -> Path:
    """Its pack, expose and unpack are moved to the card."""
    for name in ON_CARD:
        config = repository / name / "configs" / "cpu.pbtxt"
        config.write_text(config.read_text().replace("KIND_CPU count: 1", "KIND_GPU count: 1 gpus: [ 0 ]"))
    return repository


@contextmanager
def _served(repository: Path, config_name: str = "cpu") -> Iterator[Any]:
    from exposure.client.server import ServerOptions, running_server
    from exposure.client.triton import Client

    options = ServerOptions(repository, config_name, grpc_port=0, http_port=0, metrics_port=0)
    with running_server(options) as server, Client(server.address) as client:
        yield client
