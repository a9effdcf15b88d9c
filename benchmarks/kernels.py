"""How fast the CPU kernels are: against NumPy and torch, and against the machine's memory bandwidth.

python benchmarks/kernels.py [--rounds 7] [--quick] [--out FILE.json]
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ceilings import Probe
from frames import FRAMES, GAIN, RATIO, SENSOR, dark_mosaic
from harness import Benchmark, interleaved, ratio, rounded, summary

from exposure import pack, unpack, unroll
from exposure.denoise import expose
from exposure.kernels import ops

RATES = (0.1, 1.0, 5.0, 15.0, 100.0, 1e3, 1e4, 1e5)  # electrons
DEVIATIONS = 6  # of a mean, beyond which the counts are not Poisson's
FP32, DN = 4, 2  # bytes


def main() -> None:
    """Verify, then time in turn."""
    benchmark = Benchmark("kernels", __doc__, rounds=7)
    probe = Probe()
    timed = geometry_seconds(benchmark, probe)
    benchmark.say("geometry timed")
    drawn = {f"{rate:g}": draws(benchmark, rate) for rate in RATES}
    geometry = {name: described(*kernel, probe.best.bandwidth) for name, kernel in timed.items()}
    height, width = frame(benchmark)
    size = {"frame_mp": rounded(height * width / 1e6)}
    benchmark.finish({**size, "ceilings": probe.record(), "geometry": geometry, "draws": drawn})


def frame(benchmark: Benchmark) -> tuple[int, int]:
    """Sides of the mosaic that is packed and unpacked."""
    return FRAMES[1 if benchmark.quick else 12]


def geometry_seconds(benchmark: Benchmark, probe: Probe) -> dict[str, tuple[int, float, dict[str, list[float]]]]:
    """pack, expose and unpack of a frame: bytes that must move, megapixels, seconds of each peer; equal first."""
    shape = frame(benchmark)
    mosaic = dark_mosaic(*shape)
    image = ops.pack(mosaic, SENSOR, RATIO, multiple=16)
    if not np.array_equal(image, pack(mosaic, SENSOR, RATIO, multiple=16)):
        sys.exit("pack differs from its definition: nothing was timed")
    if not np.array_equal(ops.unpack(image, SENSOR, shape), unpack(image, SENSOR, shape)):
        sys.exit("unpack differs from its definition: nothing was timed")
    step = unroll(RATIO, GAIN, SENSOR.saturation, 3)[0]
    drawn = expose(image, image, step, lambda rate: ops.poisson(rate, seed=1, index=0))
    if not np.array_equal(ops.expose(image, image, step, seed=1, index=0), drawn):
        sys.exit("expose differs from its definition: nothing was timed")
    tensor = torch.from_numpy(image)
    works: dict[str, dict[str, Callable[[], Any]]] = {
        "pack": {
            "kernel": lambda: ops.pack(mosaic, SENSOR, RATIO, multiple=16),
            "NumPy": lambda: pack(mosaic, SENSOR, RATIO, multiple=16),
        },
        "expose": {
            "kernel": lambda: ops.expose(image, image, step, seed=1, index=0),
            "NumPy": lambda: expose(image, image, step, np.random.default_rng(0).poisson),
            "torch": lambda: expose(tensor, tensor, step, torch.poisson),
        },
        "unpack": {
            "kernel": lambda: ops.unpack(image, SENSOR, shape),
            "NumPy": lambda: unpack(image, SENSOR, shape),
        },
    }
    moved = {
        "pack": DN * mosaic.size + FP32 * image.size,
        "expose": 3 * FP32 * image.size,
        "unpack": FP32 * image.size + DN * mosaic.size,
    }
    timed = {}
    for name, peers in works.items():
        seconds = interleaved({**peers, "": probe.run}, benchmark.rounds)
        del seconds[""]
        timed[name] = (moved[name], mosaic.size / 1e6, seconds)
    return timed


def described(moved: int, megapixels: float, seconds: dict[str, list[float]], bandwidth: float) -> dict[str, Any]:
    """One kernel for the JSON. share_of_bandwidth: of what the triad reached, in bytes that must move."""
    result = compared(seconds, megapixels, "megapixels_per_s")
    for peer in result.values():
        peer["share_of_bandwidth"] = rounded(moved / bandwidth / peer["seconds"]["median"])
        peer["gbytes_per_s"] = rounded(moved / peer["seconds"]["median"] / 1e9)
    return result


def draws(benchmark: Benchmark, rate: float) -> dict[str, Any]:
    """Poisson counts of one mean, against NumPy's generator and torch.poisson."""
    rates = np.full((4, 500, 100 if benchmark.quick else 1000), rate, np.float32)
    tensor, random = torch.from_numpy(rates), np.random.default_rng(0)
    counts = ops.poisson(rates, seed=1, index=0)
    if abs(counts.mean(dtype=np.float64) - np.float32(rate)) > DEVIATIONS * np.sqrt(rate / rates.size):
        sys.exit(f"the counts of mean {rate:g} are off: nothing was timed")
    works = {
        "kernel": lambda: ops.poisson(rates, seed=1, index=0),
        "NumPy": lambda: random.poisson(rates),
        "torch": lambda: torch.poisson(tensor),
    }
    return compared(interleaved(works, benchmark.rounds), rates.size / 1e6, "million_draws_per_s")


def compared(seconds: dict[str, list[float]], amount: float, unit: str) -> dict[str, Any]:
    """Seconds, speed, and how often as fast as each peer the kernel is, for the JSON."""
    result: dict[str, Any] = {}
    for name, taken in seconds.items():
        times = summary(taken)
        result[name] = {"seconds": times, unit: rounded(amount / times["median"])}
        if name != "kernel":
            result[name]["kernel_is_faster"] = ratio(taken, seconds["kernel"])
    return result


if __name__ == "__main__":
    main()
