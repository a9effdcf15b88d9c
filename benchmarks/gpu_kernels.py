"""The kernels on a card: equal to the CPU's bit for bit, and how near they come to the card's copy bandwidth.

python benchmarks/gpu_kernels.py    a short comparison without timing, to be run under compute-sanitizer
"""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from gpu_device import Gpu
from gpu_machine import clock_under_load
from harness import interleaved
from numpy.typing import NDArray

from exposure import Sensor, Step, unroll
from exposure.kernels import ops
from exposure.kernels.library import Field, Injection, Layout, cuda_library
from exposure.schedule import PUBLISHED_PHOTON_UNIT

CFAS = {
    "RGGB": ((0, 1), (1, 2)),
    "GRBG": ((1, 0), (2, 1)),
    "GBRG": ((1, 2), (0, 1)),
    "BGGR": ((2, 1), (1, 0)),
}
FRAME = (2832, 4240)  # 12 MP
SMALL = ((2, 2), (33, 47), (130, 61))
RATES = (0.0, 0.01, 0.3, 3.0, 9.99, 10.0, 40.0, 500.0, 2e4, 2e5, 2.0**24)  # electrons
BUFFER_SETS = 8  # in turn, so that a card's cache does not hold the next one
LAUNCHES = 40  # between two events: one at a time, the host's part of a launch would be counted
ROUNDS = 20

Compared = Iterator[tuple[NDArray[Any], NDArray[Any]]]


def parity(gpu: Gpu, *, whole_frame: bool = True) -> dict[str, dict[str, Any]]:
    """Every kernel on the card against the CPU's, over phases, sizes, padding, seeds and electrons."""
    shapes = (*SMALL, FRAME) if whole_frame else SMALL
    works: dict[str, Callable[[Gpu, tuple[int, int]], Compared]] = {}
    for dtype in ops.PLANES:
        works[f"pack {dtype}"] = partial(packed, dtype=dtype)
        works[f"expose {dtype}"] = partial(exposed, dtype=dtype)
    works |= {"unpack": unpacked, "poisson": drawn}
    return {name: judged(itertools.chain(*(work(gpu, shape) for shape in shapes))) for name, work in works.items()}


def judged(pairs: Compared) -> dict[str, Any]:
    """The differing fraction of all elements and the largest difference. Only equality passes: one arithmetic."""
    elements = differing = 0
    largest = 0.0
    for on_gpu, on_cpu in pairs:
        other = (on_gpu != on_cpu) & ~(np.isnan(on_gpu) & np.isnan(on_cpu))
        elements, differing = elements + other.size, differing + int(other.sum())
        if other.any():
            difference = np.abs(on_gpu[other].astype(np.float64) - on_cpu[other])
            largest = max(largest, float(np.nan_to_num(difference, nan=math.inf).max()))
    passed = elements > 0 and differing == 0
    result = {"outcome": "passed" if passed else "failed", "elements": elements, "differing": differing}
    return result if passed else result | {"largest_difference": largest}


def packed(gpu: Gpu, shape: tuple[int, int], dtype: ops.Planes) -> Compared:
    for phase, multiple in itertools.product(CFAS, (1, 16)):
        sensor, mosaic = Sensor((500, 510, 520, 530), 16383, CFAS[phase]), dark(shape)
        expected = ops.pack(mosaic, sensor, 3.0, multiple=multiple, dtype=dtype)
        image = gpu.empty(expected.shape, dtype)
        gpu.run("pack", gpu.upload(mosaic), packing(sensor, shape, expected.shape, 3.0), image, ops.PLANES[dtype])
        yield gpu.download(image), expected
        gpu.release()


def unpacked(gpu: Gpu, shape: tuple[int, int]) -> Compared:
    for phase, padding in itertools.product(CFAS, (0, 5)):
        sensor = Sensor((500, 510, 520, 530), 16383, CFAS[phase])
        planes = (4, (shape[0] + 1) // 2 + padding, (shape[1] + 1) // 2 + padding)
        image = np.random.default_rng(7).uniform(-0.1, 1.1, planes).astype(np.float32)
        mosaic = gpu.empty(shape, np.uint16)
        gpu.run("unpack", gpu.upload(image), unpacking(sensor, shape, planes), mosaic)
        yield gpu.download(mosaic), ops.unpack(image, sensor, shape)
        gpu.release()


def drawn(gpu: Gpu, shape: tuple[int, int]) -> Compared:
    for seed, index in ((1, 0), (2**63 + 11, 3)):
        rate = np.random.default_rng(seed).choice(np.array(RATES, np.float32), (4, shape[0] // 2, shape[1] // 2))
        field, counts = Field(seed, index, 3, 5, *rate.shape[1:]), gpu.empty(rate.shape, np.float32)
        gpu.run("poisson", gpu.upload(rate), field, counts)
        yield gpu.download(counts), ops.poisson(rate, seed=seed, index=index, origin=(6, 10))
        gpu.release()


def exposed(gpu: Gpu, shape: tuple[int, int], dtype: ops.Planes) -> Compared:
    for gain in (0.1, 3.0, 50.0):
        for index, step in enumerate(unroll(100, gain, PUBLISHED_PHOTON_UNIT, 3)[:-1]):
            random = np.random.default_rng(index)
            planes = (4, shape[0] // 2, shape[1] // 2)
            clean, original = (random.uniform(-0.1, 1.1, planes).astype(np.float32) for _ in range(2))
            field, following = Field(9, index, 3, 5, *planes[1:]), gpu.empty(planes, dtype)
            arrays = (gpu.upload(clean), gpu.upload(original), injection(step), field)
            gpu.run("expose", *arrays, following, ops.PLANES[dtype])
            expected = ops.expose(clean, original, step, seed=9, index=index, origin=(6, 10), dtype=dtype)
            yield gpu.download(following), expected
            gpu.release()


def bandwidth(gpu: Gpu) -> dict[str, Any]:
    """GB/s of each kernel on 12 MP, counting every byte read once and written once, beside the card's own copy.

    Times are of launches queued one behind the other, in turn over buffers that no cache holds together, of a card that
    has worked for a while; the kernels take turns.
    """
    sensor, mosaic = Sensor((512,) * 4, 16383, CFAS["RGGB"]), dark(FRAME)
    image = ops.pack(mosaic, sensor, 3.0, multiple=16)
    step = unroll(100, 3.0, sensor.saturation, 3)[0]
    pack, unpack = packing(sensor, FRAME, image.shape, 3.0), unpacking(sensor, FRAME, image.shape)
    field, photons = Field(1, 0, 0, 0, *image.shape[1:]), injection(step)
    sets = [
        (gpu.upload(mosaic), gpu.upload(image), gpu.upload(image), gpu.empty(image.shape, np.float32))
        for _ in range(BUFFER_SETS)
    ]
    works: dict[str, tuple[int, Callable[[int], None]]] = {
        "copy": (2 * image.nbytes, lambda i: gpu.copy(sets[i][3], sets[i][1])),
        "pack": (mosaic.nbytes + image.nbytes, lambda i: gpu.run("pack", sets[i][0], pack, sets[i][3], 0)),
        "pack float16": (
            mosaic.nbytes + image.nbytes // 2,
            lambda i: gpu.run("pack", sets[i][0], pack, sets[i][3], 1),
        ),
        "unpack": (mosaic.nbytes + image.nbytes, lambda i: gpu.run("unpack", sets[i][1], unpack, sets[i][0])),
        "expose": (
            3 * image.nbytes,
            lambda i: gpu.run("expose", sets[i][1], sets[i][2], photons, field, sets[i][3], 0),
        ),
    }
    clock = clock_under_load(partial(_mean_seconds, gpu, works["copy"][1]))
    taken = interleaved({name: partial(_mean_seconds, gpu, work) for name, (_, work) in works.items()}, ROUNDS)
    gpu.release()
    result = {name: _speed(nbytes, taken[name]) for name, (nbytes, _) in works.items()}
    for speed in result.values():
        speed["of_copy"] = round(speed["gb_per_s"] / result["copy"]["gb_per_s"], 3)
    return {"sm_clock_mhz": clock, "kernels": result}


def _mean_seconds(gpu: Gpu, work: Callable[[int], None]) -> float:
    """Of one launch, of many that are queued one behind the other."""
    start = gpu.mark()
    for i in range(LAUNCHES):
        work(i % BUFFER_SETS)
    end = gpu.mark()
    gpu.wait()
    return gpu.seconds_between(start, end) / LAUNCHES


def _speed(nbytes: int, seconds: Sequence[float]) -> dict[str, float]:
    """Of one launch: the median, the least and the most of the rounds' means."""
    median = statistics.median(seconds)
    return {
        "median_us": round(median * 1e6, 1),
        "least_us": round(min(seconds) * 1e6, 1),
        "most_us": round(max(seconds) * 1e6, 1),
        "gb_per_s": round(nbytes / median / 1e9, 1),
    }


def dark(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Any DN that 14 bits can say, and some beyond white."""
    return np.random.default_rng(shape[0]).integers(0, 17000, shape).astype(np.uint16)


def packing(sensor: Sensor, shape: tuple[int, int], planes: tuple[int, ...], ratio: float) -> Layout:
    return ops._layout(sensor, shape, planes[1:], [ratio / (sensor.white - black) for black in sensor.black])


def unpacking(sensor: Sensor, shape: tuple[int, int], planes: tuple[int, ...]) -> Layout:
    return ops._layout(sensor, shape, planes[1:], [sensor.white - black for black in sensor.black])


def injection(step: Step) -> Injection:
    return Injection(step.photons, step.keep, step.per_photon)


if __name__ == "__main__":
    with Gpu(cuda_library()) as gpu:
        found = parity(gpu, whole_frame=False)
    print(found)
    sys.exit(any(result["outcome"] != "passed" for result in found.values()))
