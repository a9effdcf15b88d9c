"""Where one pass of the processor's engine goes, by kind of layer, as OpenVINO itself times it."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from harness import rounded

from exposure.export.openvino_engine import MODEL, WideEnds, bf16_is_fast, openvino_from_onnx
from exposure.export.recipes import FP32_IN_BF16

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
    with tempfile.TemporaryDirectory(dir=graph.parent) as folder:
        openvino_from_onnx(graph, Path(folder), wide=WideEnds(*FP32_IN_BF16[0]) if precision == "bf16" else None)
        request = _request(Path(folder) / MODEL, precision, sides)
    taken: dict[str, list[float]] = defaultdict(list)
    for round_ in range(1 + ROUNDS):  # the first warms up
        request.infer()
        if round_:
            for kind, seconds in _by_kind(request.get_profiling_info()).items():
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


def _request(model: Path, precision: str, sides: tuple[int, int]) -> Any:
    """An inference over random planes that may be asked where its time went."""
    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})  # the folder goes before the request
    network = core.read_model(model)
    network.reshape({port: [1] if port.any_name == "PHOTON_GAIN" else [1, 4, *sides] for port in network.inputs})
    properties = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
    request = core.compile_model(network, "CPU", properties).create_infer_request()
    planes = np.random.default_rng(0).random((1, 4, *sides), np.float32)
    for port in request.model_inputs:
        given = np.array([0.5], np.float32) if port.any_name == "PHOTON_GAIN" else planes
        request.set_tensor(port, ov.Tensor(given))
    return request


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
