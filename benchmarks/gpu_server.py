"""The backend's GPU instances in the real server from pip: the same mosaic through them and through the CPU server."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gpu_check import PROJECT, NotCheckedError
from gpu_torch import PHYSICS, SENSOR, dark

from exposure.assets import MODEL_REPOSITORY
from exposure.kernels.library import BACKEND, built

NEEDED = ("pytriton", "tritonclient", "openvino")
PASSES = (1, 3)
ON_CARD = ("pack", "expose", "unpack")


def server_check() -> dict[str, Any]:
    """exposure_1 and exposure_3 with pack, expose and unpack on the card and the denoiser on the CPU."""
    _require()
    from exposure.client.triton import ServerError

    mosaic, result = dark((770, 1021)), {}
    with _served(MODEL_REPOSITORY) as client:
        expected = {passes: client.denoise(mosaic, SENSOR, passes=passes, **PHYSICS) for passes in PASSES}
    with _on_card() as repository, _served(repository) as client:
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
        result["concurrent"] = _concurrently(client.address, mosaic[:128, :192])
        seconds = client.stage_seconds()
        if not all(seconds[name] > 0 for name in ON_CARD):
            raise RuntimeError(f"statistics say that a model on the card took no time: {seconds}")
    return {"on_card": list(ON_CARD), "against_cpu_server": result}


def _concurrently(address: str, mosaic: Any) -> str:
    """Four clients with a seed each, at once: everybody gets their own."""
    from exposure.client.triton import Client

    def ask(seed: int) -> list[Any]:
        with Client(address) as client:
            physics = PHYSICS | {"seed": seed}
            return [client.denoise(mosaic, SENSOR, passes=2, **physics) for _ in range(5)]

    alone = [ask(seed)[0] for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for own, answers in zip(alone, threads.map(ask, range(4)), strict=True):
            if not all(np.array_equal(answer, own) for answer in answers):
                raise RuntimeError("concurrent requests did not get the answer that each gets alone")
    return "20 requests of 4 clients, each as alone"


def _require() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotCheckedError(f"{', '.join(missing)} not installed; with pip: pip install -e '.[server]'")
    try:
        built(BACKEND)
    except OSError as error:
        raise NotCheckedError(str(error)) from error
    if not (MODEL_REPOSITORY / "denoiser" / "1" / "openvino" / "manifest.json").is_file():
        command = [sys.executable, PROJECT / "export" / "build_engine.py", "--target", "openvino"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if result.returncode:
            raise NotCheckedError(f"no engine for the CPU, and building one failed: {result.stderr.strip()[-300:]}")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


@contextmanager
def _on_card() -> Iterator[Path]:
    """A copy of the model repository whose pack, expose and unpack are on the card."""
    with tempfile.TemporaryDirectory(prefix="exposure_gpu_check_") as folder:
        copy = Path(folder) / "model_repository"
        shutil.copytree(MODEL_REPOSITORY, copy)
        for name in ON_CARD:
            config = copy / name / "configs" / "cpu.pbtxt"
            config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))
        yield copy


@contextmanager
def _served(repository: Path) -> Iterator[Any]:
    from exposure.client.server import ServerOptions, running_server
    from exposure.client.triton import Client

    options = ServerOptions(repository, grpc_port=0, http_port=0, metrics_port=0)
    with running_server(options) as server, Client(server.address) as client:
        yield client
