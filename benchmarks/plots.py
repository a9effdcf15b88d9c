"""The plots of benchmarks/README.md, from the JSON alone."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "exposure"  # the same result gives the same file
from matplotlib import pyplot as plt  # noqa: E402

WIDE = (7.5, 3.6)  # inches


def draw(found: dict[str, Any], folder: Path) -> None:
    """All of them, each into a file of its own."""
    measured = {script: result["measured"] for script, result in found.items()}
    roofline(measured["engine"], folder / "roofline.svg")
    waterfall(measured["server"]["request"], folder / "waterfall.svg")
    load(measured["server"]["load"], folder / "load.svg")
    scaling(measured["scaling"]["megapixels"]["sizes"], folder / "scaling.svg")


def roofline(engine: dict[str, Any], path: Path) -> None:
    """GFLOP/s against operations a byte, under the two measured ceilings."""
    ceilings = engine["ceilings"]
    figure, axes = plt.subplots(figsize=WIDE, layout="constrained")
    intensity = np.geomspace(0.5, 1000, 200)
    axes.loglog(intensity, np.minimum(intensity * ceilings["gbytes_per_s"], ceilings["gflops"]), color="black")
    for number, name in enumerate(engine["peers"]):
        points = [
            (frame["flop_per_byte"], frame["peers"][name]["gflops"])
            for frame in engine["frames"].values()
            if "gflops" in frame["peers"].get(name, {})
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=f"C{number}", label=name)
    axes.set(xlabel="operations a byte", ylabel="GFLOP/s", title="One pass under this machine's own ceilings")
    axes.legend(fontsize=7, loc="lower right")
    _save(figure, path)


def waterfall(request: dict[str, Any], path: Path) -> None:
    """Where the time of one request goes, one part after the other."""
    figure, axes = plt.subplots(figsize=WIDE, layout="constrained")
    start = 0.0
    for name, seconds in request["mean_stage_s"].items():
        axes.barh(name, seconds, left=start, color="C0")
        axes.text(start + seconds, name, f" {1e3 * seconds:.0f} ms", va="center", fontsize=8)
        start += seconds
    axes.axvline(request["seconds"]["engine"]["median"], color="C3", linestyle="--", label="the engine's passes alone")
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xlim=(0, 1.15 * start))
    axes.set_title(f"A request of {request['frame_mp']:g} MP, {request['passes']} passes")
    axes.legend(fontsize=8, loc="lower left")
    _save(figure, path)


def load(measured: dict[str, Any], path: Path) -> None:
    """Latency against throughput as callers are added; the engine alone is the limit."""
    figure, axes = plt.subplots(figsize=WIDE, layout="constrained")
    levels = measured["callers"]
    rates = [level["requests_per_s"] for level in levels.values()]
    for quantile in ("median", "p95", "p99"):
        axes.plot(rates, [level["latency_s"][quantile] for level in levels.values()], "o-", label=quantile)
    for callers, level in levels.items():
        place = (level["requests_per_s"], level["latency_s"]["median"])
        axes.annotate(callers, place, textcoords="offset points", xytext=(6, -10), fontsize=8)
    limit = float(np.median([level["engine_limit_per_s"] for level in levels.values()]))
    axes.axvline(limit, color="C3", linestyle="--", label="the engine alone")
    axes.set(xlabel="requests a second", ylabel="latency, s", yscale="log", xlim=(0, 1.2 * max(limit, *rates)))
    axes.set_title(f"1 to 16 callers, {measured['frame_mp']:g} MP, {measured['passes']} pass")
    axes.legend(fontsize=8, loc="upper left")
    _save(figure, path)


def scaling(sizes: dict[str, Any], path: Path) -> None:
    """Time and memory of a pass against megapixels."""
    done = [size for size in sizes.values() if "seconds" in size]
    megapixels = [size["frame_mp"] for size in done]
    figure, (left, right) = plt.subplots(1, 2, figsize=WIDE, layout="constrained")
    left.loglog(megapixels, [size["seconds"]["median"] for size in done], "o-")
    left.set(xlabel="megapixels", ylabel="seconds a pass")
    right.loglog(megapixels, [size["peak_gib"] for size in done], "o-", color="C1")
    right.set(xlabel="megapixels", ylabel="peak memory, GiB")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
