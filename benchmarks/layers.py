"""Where one pass of our kernels goes, by kind of layer, as they time themselves."""

from collections import defaultdict
from typing import Any

import numpy as np
from harness import rounded
from peers import winograd
from workers import PHOTON_GAIN

from exposure.kernels.unet import LEVELS
from exposure.networks import Network

ROUNDS = 5


def layers(network: Network, sides: tuple[int, int]) -> dict[str, Any]:
    """Seconds of each kind of layer, medians of some passes, and their sum."""
    engine = winograd(network)
    planes, gain = np.random.default_rng(0).random((1, 4, *sides), np.float32), np.array([PHOTON_GAIN], np.float32)
    taken: dict[str, list[float]] = defaultdict(list)
    for round_ in range(1 + ROUNDS):  # the first warms up
        engine(planes, gain, planes)
        if round_:
            for kind, seconds in _by_kind(engine.stage_seconds()).items():
                taken[kind].append(seconds)
    medians = {kind: float(np.median(seconds)) for kind, seconds in taken.items()}
    total = sum(medians.values())
    return {
        "precision": engine.precision,
        "planes": list(sides),
        "sum_s": rounded(total),
        "seconds": {kind: rounded(seconds) for kind, seconds in sorted(medians.items(), key=lambda one: -one[1])},
        "share": {kind: round(seconds / total, 4) for kind, seconds in medians.items()},
    }


def _by_kind(stages: dict[str, float]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for stage, taken in stages.items():
        seconds[_kind(stage)] += taken
    return seconds


def _kind(stage: str) -> str:
    """conv3_1 and conv7_2 are both of level 3: on the way back, levels count the other way."""
    if stage == "inputs":
        return "planes put together"
    if stage.startswith("upv"):
        return "transposed convolutions"
    number = int(stage.removeprefix("conv").partition("_")[0])
    level = min(number, 2 * LEVELS - number)
    return f"3x3 convolutions, sides / {2 ** (level - 1)}"
