"""Where one pass of the processor's engine goes, by kind of layer, as OpenVINO itself times it."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from harness import rounded
from peers import openvino_engine
from workers import PHOTON_GAIN

from exposure.export.openvino_engine import bf16_is_fast

ROUNDS = 5
KINDS = {
    "Convolution": "convolutions",
    "ConvolutionBackpropData": "transposed convolutions",
    "Reorder": "copies into another type or order",
    "Concat": "concatenations",
    "MaxPool": "pooling",
}
REST = "photon planes, splitting, blend"


def layers(graph: Path, sides: tuple[int, int]) -> dict[str, Any]:
    """Seconds of each kind of layer, medians of some passes, and their sum; activations count with what they follow."""
    precision = "bf16" if bf16_is_fast() else "f32"
    engine = openvino_engine(graph, precision, timed=True)
    planes, gain = np.random.default_rng(0).random((1, 4, *sides), np.float32), np.array([PHOTON_GAIN], np.float32)
    taken: dict[str, list[float]] = defaultdict(list)
    for round_ in range(1 + ROUNDS):  # the first warms up
        engine(planes, gain, planes)
        if round_:
            for kind, seconds in _by_kind(engine.layer_times()).items():
                taken[kind].append(seconds)
    medians = {kind: float(np.median(seconds)) for kind, seconds in taken.items()}
    total = sum(medians.values())
    return {
        "precision": precision,
        "planes": list(sides),
        "sum_s": rounded(total),
        "seconds": {kind: rounded(seconds) for kind, seconds in sorted(medians.items(), key=lambda one: -one[1])},
        "share": {kind: round(seconds / total, 4) for kind, seconds in medians.items()},
    }


def _by_kind(profile: list[Any]) -> dict[str, float]:
    """Seconds of one pass; convolutions apart by what they compute in."""
    seconds: dict[str, float] = defaultdict(float)
    for layer in profile:
        if layer.status == ov.ProfilingInfo.Status.EXECUTED:
            kind = KINDS.get(layer.node_type, REST)
            if "convolutions" in kind:
                kind += f", {'BF16' if layer.exec_type.endswith('bf16') else 'FP32'}"
            seconds[kind] += layer.real_time.total_seconds()
    return seconds
