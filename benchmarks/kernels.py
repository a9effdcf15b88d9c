"""The CPU kernels against NumPy and torch, on 12 MP, in one run.

python benchmarks/kernels.py [--rounds 7] [--out FILE.json]
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from request import in_turn, processor

from exposure import pack, unpack
from exposure.client.sample import SENSOR
from exposure.kernels import ops

SHAPE = (2832, 4240)
RATES = (0.1, 1.0, 5.0, 15.0, 100.0, 1e3, 1e4, 1e5)  # electrons


def main() -> None:
    """Verify, then time in turn; JSON to standard output and --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    result = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "date": datetime.now(tz=UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("numpy", "torch")},
        "megapixels_per_s": geometry(options.rounds),
        "million_draws_per_s": draws(options.rounds),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def geometry(rounds: int) -> dict[str, Any]:
    """pack and unpack: the kernels against their definitions in NumPy, bit-equal first."""
    mosaic = np.random.default_rng(0).integers(700, 16000, SHAPE).astype(np.uint16)
    image = ops.pack(mosaic, SENSOR, multiple=16)
    if not np.array_equal(image, pack(mosaic, SENSOR, multiple=16)):
        sys.exit("pack differs from its definition: nothing was timed")
    if not np.array_equal(ops.unpack(image, SENSOR, SHAPE), unpack(image, SENSOR, SHAPE)):
        sys.exit("unpack differs from its definition: nothing was timed")
    megapixels = mosaic.size / 1e6
    return {
        "pack": _speeds(
            megapixels,
            rounds,
            kernel=lambda: ops.pack(mosaic, SENSOR, 100.0, multiple=16),
            numpy=lambda: pack(mosaic, SENSOR, 100.0, multiple=16),
        ),
        "unpack": _speeds(
            megapixels,
            rounds,
            kernel=lambda: ops.unpack(image, SENSOR, SHAPE),
            numpy=lambda: unpack(image, SENSOR, SHAPE),
        ),
    }


def draws(rounds: int) -> dict[str, Any]:
    """Poisson counts of one mean at a time, against NumPy's generator and torch.poisson."""
    speeds, random = {}, np.random.default_rng(0)
    for rate in RATES:
        rates = np.full((4, 500, 1000), rate, np.float32)
        tensor = torch.from_numpy(rates)
        counts = ops.poisson(rates, seed=1, step=0)
        if abs(counts.mean(dtype=np.float64) - np.float32(rate)) > 6 * np.sqrt(rate / rates.size):
            sys.exit(f"the counts of mean {rate:g} are off: nothing was timed")
        speeds[f"{rate:g}"] = _speeds(
            rates.size / 1e6,
            rounds,
            kernel=lambda rates=rates: ops.poisson(rates, seed=1, step=0),
            numpy=lambda rates=rates: random.poisson(rates),
            torch=lambda tensor=tensor: torch.poisson(tensor),
        )
    return speeds


def _speeds(millions: float, rounds: int, **works: Callable[[], Any]) -> dict[str, float]:
    for work in works.values():
        work()
    seconds = in_turn(*works.values(), rounds=rounds)
    speeds = {name: millions / statistics.median(taken) for name, taken in zip(works, seconds, strict=True)}
    over = {f"over_{name}": round(speeds["kernel"] / speed, 2) for name, speed in speeds.items() if name != "kernel"}
    return {name: round(speed, 1) for name, speed in speeds.items()} | over


if __name__ == "__main__":
    main()
