"""Evaluations as pictures: PSNR against passes, quality against exposure ratio."""

from collections.abc import Sequence
from pathlib import Path

from .evaluate import Score, means


def plot(scores: Sequence[Score], folder: Path) -> None:
    """Write `passes.png` and `ratio.png`; blind PSNR, one line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(entry.group for entry in scores))
    rows = {group: means(scores, group) for group in groups}
    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    for group, entries in rows.items():
        points = [(passes, values[0]) for _, passes, values in entries if passes]
        axes.plot(*zip(*points, strict=True), "o-", label=group)
    axes.set(xlabel="passes", ylabel="PSNR, blind (dB)", xticks=sorted({entry.passes for entry in scores} - {0}))
    axes.legend()
    figure.savefig(folder / "passes.png", dpi=150)

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    methods = dict.fromkeys((method, passes) for entries in rows.values() for method, passes, _ in entries)
    for method, passes in methods:
        by_ratio = [
            (group, values[0])
            for group, entries in rows.items()
            for name, number, values in entries
            if (name, number) == (method, passes)
        ]
        axes.plot(*zip(*by_ratio, strict=True), "o-", label=f"{method}, {passes} passes" if passes else method)
    axes.set(xlabel="exposure ratio", ylabel="PSNR, blind (dB)")
    axes.legend(fontsize="small")
    figure.savefig(folder / "ratio.png", dpi=150)
    pyplot.close("all")
