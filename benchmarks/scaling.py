"""How time and memory grow: with megapixels, with cores, with the number of passes, with tiles.

python benchmarks/scaling.py [--rounds 1] [--megapixels 61] [--quick] [--out FILE.json]
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from engine import graph_of, planes_of
from frames import FRAMES, GAIN, RATIO, SENSOR, dark_mosaic
from harness import Benchmark, interleaved, peak_gib, ratio, rounded, summary
from peers import OURS
from scipy.stats import linregress
from workers import PeerError, Worker

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import Client
from exposure.schedule import SERVED_PASSES
from exposure.tiles import TILE_PIXELS, plan_tiles

GIB_PER_PIXEL = 1.1e-6  # of a packed frame in FP32, half as much again as was seen: larger frames are not begun
SMALL_MP = 6  # up to which a frame is timed more often
CORES_AT_MP, PASSES_AT_MP, TILES_AT_MP = 1, 1, 3
TILE_BOUNDS = (2_000_000, 1_000_000)  # mosaic pixels
Peak = Callable[[], float]


def main() -> None:
    """Each axis by itself."""
    benchmark = Benchmark("scaling", __doc__, rounds=1, megapixels=(61, 45, 24, 12))
    frames = [1, 3] if benchmark.quick else [size for size in FRAMES if size <= benchmark.megapixels]
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(load_checkpoint(CHECKPOINT), Path(folder))
        sizes = over_megapixels(benchmark, frames, graph)
        cores = over_cores(benchmark, 1 if benchmark.quick else CORES_AT_MP, graph)
    benchmark.say("cores timed")
    measured = {"engine": OURS, "megapixels": sizes, "cores": cores}
    with running_server(ServerOptions(grpc_port=0, http_port=0, metrics_port=0)) as server:
        peak = partial(peak_gib, server.process.pid)  # what it held by then: each step asks for more
        measured |= {
            "passes": over_passes(benchmark, server.address, peak),
            "tiles": over_tiles(benchmark, server.address, peak),
            "largest": largest(server.address, frames[-1], peak),
        }
    benchmark.finish(measured)


def over_megapixels(benchmark: Benchmark, frames: Sequence[int], graph: Path) -> dict[str, Any]:
    """One pass at each size, each in a process of its own, and the exponents of time and memory."""
    measured: dict[str, Any] = {}
    for megapixels in frames:
        sides = planes_of(FRAMES[megapixels])
        needed = GIB_PER_PIXEL * sides[0] * sides[1]
        if needed > _available_gib():
            measured[str(megapixels)] = {"left_out": f"needs about {needed:.0f} GiB, {_available_gib():.0f} are free"}
            continue
        rounds = benchmark.rounds * (3 if megapixels <= SMALL_MP else 1)
        try:
            measured[str(megapixels)] = _one_size(megapixels, sides, graph, rounds)
        except PeerError as error:
            measured[str(megapixels)] = {"left_out": str(error)}
        benchmark.say(f"{megapixels} MP timed")
    done = [size for size in measured.values() if "seconds" in size]
    return {
        "sizes": measured,
        "exponents": {
            "seconds": exponent([s["frame_mp"] for s in done], [s["seconds"]["median"] for s in done]),
            "peak_gib": exponent([s["frame_mp"] for s in done], [s["peak_gib"] for s in done]),
        },
        "memory": _line([s["frame_mp"] for s in done], [s["peak_gib"] for s in done]),
    }


def over_cores(benchmark: Benchmark, megapixels: int, graph: Path) -> dict[str, Any]:
    """The same pass on 1, 2, 4, … cores, in turn."""
    available = sorted(os.sched_getaffinity(0))
    counts = [2**power for power in range(len(available).bit_length())]
    sides = planes_of(FRAMES[megapixels])
    workers = {str(count): Worker(OURS, graph, cores=available[:count]) for count in counts}
    try:
        works: dict[str, Callable[[], float]] = {count: _pass(worker, sides) for count, worker in workers.items()}
        seconds = interleaved(works, 3 * benchmark.rounds)
        peaks = {count: worker.peak_gib() for count, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "frame_mp": megapixels,
        "seconds": {count: summary(taken) for count, taken in seconds.items()},
        "peak_gib": peaks,
        "speedup": {count: ratio(seconds["1"], taken) for count, taken in seconds.items() if count != "1"},
    }


def over_passes(benchmark: Benchmark, address: str, peak: Peak) -> dict[str, Any]:
    """The request with 1 to 4 passes: seconds = once + passes * each, fitted to the medians."""
    mosaic = dark_mosaic(*((512, 512) if benchmark.quick else FRAMES[PASSES_AT_MP]))
    with Client(address) as client:

        def request(passes: int) -> Callable[[], Any]:
            return lambda: client.denoise(mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=passes)

        works = {str(passes): request(passes) for passes in SERVED_PASSES}
        peaks = _met(works, list(works), peak)
        seconds = interleaved(works, 3 * benchmark.rounds)
    medians = [float(np.median(taken)) for taken in seconds.values()]
    line = linregress(SERVED_PASSES, medians)
    return {
        "frame_mp": rounded(mosaic.size / 1e6),
        "seconds": {passes: summary(taken) for passes, taken in seconds.items()},
        "server_peak_gib": peaks,
        "fit": {"once_s": rounded(line.intercept), "each_s": rounded(line.slope), "r2": rounded(line.rvalue**2)},
    }


def over_tiles(benchmark: Benchmark, address: str, peak: Peak) -> dict[str, Any]:
    """One frame whole and in smaller and smaller tiles, one pass; what their overlaps cost."""
    height, width = FRAMES[1 if benchmark.quick else TILES_AT_MP]
    mosaic = dark_mosaic(height, width)
    with contextlib.ExitStack() as stack:
        works: dict[str, Callable[[], Any]] = {}
        sent = {}
        for bound in (TILE_PIXELS, *TILE_BOUNDS):
            plan = plan_tiles((height, width), bound)
            pixels = sum((t.rows.stop - t.rows.start) * (t.columns.stop - t.columns.start) for t in plan)
            client = stack.enter_context(Client(address, tile_pixels=bound))
            works[str(len(plan))] = partial(client.denoise, mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=1)
            sent[str(len(plan))] = rounded(pixels / mosaic.size)
        peaks = _met(works, sorted(works, key=int, reverse=True), peak)
        seconds = interleaved(works, 2 * benchmark.rounds)
    whole = next(iter(seconds))
    return {
        "frame_mp": rounded(mosaic.size / 1e6),
        "pixels_sent_over_frame": sent,
        "server_peak_gib": peaks,
        "seconds": {tiles: summary(taken) for tiles, taken in seconds.items()},
        "over_whole": {tiles: ratio(taken, seconds[whole]) for tiles, taken in seconds.items() if tiles != whole},
    }


def largest(address: str, megapixels: int, peak: Peak) -> dict[str, Any]:
    """The largest frame as our client sends it, one pass: in tiles, so that memory has an end."""
    height, width = FRAMES[megapixels]
    mosaic = dark_mosaic(height, width)
    with Client(address) as client:
        started = time.perf_counter()
        client.denoise(mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=1)
        seconds = time.perf_counter() - started
    return {
        "frame_mp": rounded(mosaic.size / 1e6),
        "tiles": len(plan_tiles((height, width), TILE_PIXELS)),
        "seconds": rounded(seconds),
        "server_peak_gib": peak(),
    }


def exponent(sizes: Sequence[float], amounts: Sequence[float]) -> dict[str, float]:
    """b of amount = a * size^b, least squares of the logarithms, with its standard error."""
    line = linregress(np.log(sizes), np.log(amounts))
    return {"exponent": round(line.slope, 3), "standard_error": round(line.stderr, 3), "r2": round(line.rvalue**2, 4)}


def _line(sizes: Sequence[float], gib: Sequence[float]) -> dict[str, float]:
    """GiB once and for each megapixel, least squares."""
    line = linregress(sizes, gib)
    return {"once_gib": rounded(line.intercept), "gib_per_mp": rounded(line.slope), "r2": rounded(line.rvalue**2)}


def _met(works: dict[str, Callable[[], Any]], order: Sequence[str], peak: Peak) -> dict[str, float]:
    """Ask for each once, in this order, and what the server had held by then."""
    peaks = {}
    for name in order:
        works[name]()
        peaks[name] = peak()
    return peaks


def _one_size(megapixels: int, sides: tuple[int, int], graph: Path, rounds: int) -> dict[str, Any]:
    worker = Worker(OURS, graph)
    try:
        seconds = interleaved({"": _pass(worker, sides)}, rounds)[""]
        times = summary(seconds)
        mosaic = FRAMES[megapixels][0] * FRAMES[megapixels][1] / 1e6
        return {
            "frame_mp": rounded(mosaic),
            "seconds": times,
            "ms_per_mp": rounded(1e3 * times["median"] / mosaic),
            "peak_gib": worker.peak_gib(),
        }
    finally:
        worker.close()


def _available_gib() -> float:
    text = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2]
    return int(text.split()[0]) / 2**20


def _pass(worker: Worker, sides: tuple[int, int]) -> Callable[[], float]:
    return lambda: worker.run(*sides)


if __name__ == "__main__":
    main()
