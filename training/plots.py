"""Evaluations as pictures: PSNR against passes, quality against exposure ratio."""

from collections.abc import Sequence
from pathlib import Path

from exposure.files import whole

from .evaluate import Score, groups, label, means


def plot(scores: Sequence[Score], folder: Path) -> None:
    """Write `passes.png` and `ratio.png`; blind PSNR, one line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {group: means(scores, group) for group in groups(scores)}
    figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    numbers = sorted({entry.passes for entry in scores} - {0})
    for group, entries in rows.items():
        for method in dict.fromkeys(name for name, passes, _ in entries if passes):
            points = [(passes, values[0]) for name, passes, values in entries if name == method]
            axes.plot(*zip(*points, strict=True), "o-", label=f"{group}, {method}")
        for name, passes, values in entries:
            if not passes:
                axes.axhline(values[0], color="grey", linewidth=0.8)
                axes.annotate(f"{group}, {name}", (numbers[-1], values[0]), fontsize="x-small", ha="right", va="bottom")
    axes.set(xlabel="network evaluations", ylabel="PSNR, blind (dB)")
    if numbers[-1] > 5:
        axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
    axes.legend(fontsize="small")
    with whole(folder / "passes.png") as part:
        figure.savefig(part, dpi=150, format="png")

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    methods = dict.fromkeys((method, passes) for entries in rows.values() for method, passes, _ in entries)
    for method, passes in methods:
        by_ratio = [
            (group, values[0])
            for group, entries in rows.items()
            for name, number, values in entries
            if (name, number) == (method, passes)
        ]
        axes.plot(*zip(*by_ratio, strict=True), "o-", label=label(method, passes))
    axes.set(xlabel="exposure ratio", ylabel="PSNR, blind (dB)")
    axes.legend(fontsize="small")
    with whole(folder / "ratio.png") as part:
        figure.savefig(part, dpi=150, format="png")
    pyplot.close("all")
