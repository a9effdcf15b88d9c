"""What serving costs: a 12 MP request against the engine's own passes, in one run.

python benchmarks/request.py [--frame 4240x2832] [--passes 3] [--rounds 5] [--out FILE.json]
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

import exposure
from exposure import pack, unpack, unroll
from exposure.assets import MODEL_REPOSITORY
from exposure.client.sample import SENSOR
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import Client
from exposure.export.manifest import read_manifest
from exposure.export.openvino_engine import OpenVinoEngine

RATIO, GAIN = 100.0, 3.0


def main() -> None:
    """Verify that engine and server compute the same, then time them in turn; JSON to standard output and --out."""
    options = _parser().parse_args()
    width, height = (int(side) for side in options.frame.split("x"))
    result = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "date": datetime.now(tz=UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "versions": {"exposure": exposure.__version__}
        | {name: version(name) for name in ("openvino", "nvidia-pytriton")},
        "frame": options.frame,
        "passes": options.passes,
        **measure(_dark_mosaic(height, width), options.passes, options.rounds),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(mosaic: NDArray[np.uint16], passes: int, rounds: int) -> dict[str, Any]:
    """Medians in seconds, the ratio in each round, and what each served model took of a request."""
    folder = MODEL_REPOSITORY / "denoiser" / "1" / "openvino"
    manifest, engine = read_manifest(folder), OpenVinoEngine.installed(folder)
    image = pack(mosaic, SENSOR, RATIO, multiple=manifest.multiple)[None]
    first = unroll(RATIO, GAIN, SENSOR.saturation, 1, photon_unit=manifest.photon_unit)[0]
    photon_gain = np.array([first.photon_gain], np.float32)
    with (
        running_server(ServerOptions(grpc_port=0, http_port=0, metrics_port=0)) as server,
        Client(server.address) as client,
    ):

        def request(passes: int = passes) -> NDArray[np.uint16]:
            return client.denoise(mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=passes)

        def engine_passes() -> None:
            for _ in range(passes):
                engine(image, photon_gain)

        expected = unpack(engine(image, photon_gain)[0], SENSOR, mosaic.shape)
        if np.abs(request(1).astype(int) - expected).max() > 1:  # DN; also the warm-up of both
            sys.exit("the server does not compute what the engine computes: nothing was timed")
        before = client.stage_seconds()
        engine_s, request_s = in_turn(engine_passes, request, rounds=rounds)
        after = client.stage_seconds()
        peak = server.peak_memory_bytes()
    ratios = [r / e for r, e in zip(request_s, engine_s, strict=True)]
    return {
        "precision": engine.precision,
        "transport": "shared memory" if client.shared_memory else "gRPC",
        "engine_s": round(statistics.median(engine_s), 3),
        "request_s": round(statistics.median(request_s), 3),
        "request_over_engine": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "server_peak_gib": round(peak / 2**30, 2),
        "stage_s": {name: round((after[name] - before[name]) / rounds, 3) for name in after},
    }


def in_turn(*works: Callable[[], Any], rounds: int) -> list[list[float]]:
    """Seconds of each work in each round; one after the other, so that a drifting machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, taken in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return seconds


def _dark_mosaic(height: int, width: int) -> NDArray[np.uint16]:
    """A smooth scene with shot and read noise, 1/100 of full exposure, in DN."""
    random, black = np.random.default_rng(0), SENSOR.black[0]
    light = np.add.outer(np.linspace(0.05, 0.5, height), np.linspace(0, 0.4, width)) * SENSOR.saturation / RATIO
    dn = random.poisson(light / GAIN) * GAIN + random.normal(black, 6, light.shape)
    return np.clip(np.rint(dn), 0, SENSOR.white).astype(np.uint16)


def processor() -> str:
    """The processor's own name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frame", default="4240x2832", help="width x height of the mosaic (default: 12 MP)")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser


if __name__ == "__main__":
    main()
