"""What serving costs: a 12 MP request against the engine's own passes, in one run.

python benchmarks/request.py [--frame 4240x2832] [--passes 3] [--rounds 3]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

import exposure
from exposure import Sensor, pack
from exposure.assets import MODEL_REPOSITORY
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import Client
from exposure.export.manifest import read_manifest
from exposure.export.openvino_engine import OpenVinoEngine

SENSOR = Sensor((800, 800, 800, 800), 16383, ((0, 1), (1, 2)))
RATIO, GAIN = 100.0, 3.0


def main() -> None:
    """Verify that both compute the same, warm up, then time them in turn; print and return the medians as JSON."""
    options = _parser().parse_args()
    width, height = (int(side) for side in options.frame.split("x"))
    mosaic = _dark_mosaic(height, width)
    engine_folder = MODEL_REPOSITORY / "denoiser" / "1" / "openvino"
    manifest = read_manifest(engine_folder)
    engine = OpenVinoEngine.installed(engine_folder)
    image = pack(mosaic, SENSOR, RATIO, multiple=manifest.multiple)[None]
    photon_gain = np.array([SENSOR.saturation / (RATIO * GAIN * manifest.photon_unit)], np.float32)

    def passes() -> None:
        for _ in range(options.passes):
            engine(image, photon_gain)

    with (
        running_server(ServerOptions(grpc_port=0, http_port=0, metrics_port=0)) as server,
        Client(server.address) as client,
    ):

        def request() -> None:
            client.denoise(mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=options.passes)

        passes()
        request()
        before = client.stage_seconds()
        engine_s, request_s = _in_turn(passes, request, rounds=options.rounds)
        stages = {name: (spent - before[name]) / options.rounds for name, spent in client.stage_seconds().items()}
        transport = "shared memory" if client.shared_memory else "gRPC"
    ratios = [r / e for r, e in zip(request_s, engine_s, strict=True)]
    print(
        json.dumps(
            {
                "machine": f"{_processor()}, {os.cpu_count()} cores",
                "date": datetime.now(tz=UTC).date().isoformat(),
                "command": " ".join(["python", *sys.argv]),
                "versions": {
                    "exposure": exposure.__version__,
                    "openvino": version("openvino"),
                    "tritonserver": "2.51.0",
                },
                "frame": options.frame,
                "passes": options.passes,
                "precision": engine.precision,
                "transport": transport,
                "engine_s": round(statistics.median(engine_s), 3),
                "request_s": round(statistics.median(request_s), 3),
                "request_over_engine": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "stage_s": {name: round(spent, 3) for name, spent in stages.items()},
            },
            indent=2,
        )
    )


def _dark_mosaic(height: int, width: int) -> np.ndarray:
    """A smooth scene with shot and read noise, 1/100 of full exposure, in DN."""
    random = np.random.default_rng(0)
    light = np.add.outer(np.linspace(0.05, 0.5, height), np.linspace(0, 0.4, width)) * SENSOR.saturation / RATIO
    dn = random.poisson(light / GAIN) * GAIN + random.normal(800, 6, light.shape)
    return np.clip(np.rint(dn), 0, 16383).astype(np.uint16)


def _in_turn(*works: Callable[[], None], rounds: int) -> list[list[float]]:
    """Seconds of each work in each round; one after the other, so that a drifting machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, taken in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return seconds


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frame", default="4240x2832", help="width x height of the mosaic (default: 12 MP)")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
