"""The engine for a CPU: OpenVINO, static shapes; FP32, or BF16 between FP32 ends where the processor is fast at it."""

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exposure.networks import Network

from .cache import cache_folder
from .manifest import EngineError, trusted_manifest

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else importing openvino reports home
import openvino as ov  # noqa: E402

COMPILED_PIXELS = 4_000_000  # packed, of all frame sizes kept compiled: their activations take about 0.7 kB a pixel
CACHED_MODELS = 16  # on disk, 31 MB each


def openvino_from_onnx(graph: Path, folder: Path, *, bf16_in: Network | None = None) -> None:
    """Convert a checked ONNX graph into OpenVINO's own format: its parts, in order, each named by its precision.

    One part in FP32; or, with the network that the graph was traced from, BF16 between two parts in FP32.
    """
    whole = ov.Core().read_model(graph)
    parts = [("f32", whole)] if bf16_in is None else _split(whole, bf16_in)
    for number, (precision, part) in enumerate(parts, 1):
        ov.save_model(part, folder / f"{number}.{precision}.xml", compress_to_fp16=False)


def bf16_is_fast() -> bool:
    """True where the CPU multiplies BF16 matrices natively (AMX, AVX512-BF16); elsewhere it is emulated and slower."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """clean = engine(image, photon_gain[, original]), compiled once per frame size.

    folder: holds the parts that `openvino_from_onnx` wrote; a processor that is slow at BF16 runs all of them in FP32.
    cache: folder for compiled models, so that the next start finds them. Raises EngineError where there are no parts.
    """

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self._core = ov.Core()
        fast = bf16_is_fast()
        # read once: the network stays what it was at the start, whatever is installed later
        self._parts = [
            ("bf16" if fast and ".bf16" in file.suffixes else "f32", self._core.read_model(file))
            for file in sorted(folder.glob("*.xml"))
        ]
        if not self._parts:
            raise EngineError(f"{folder} holds no part of an engine")
        self._compiled: OrderedDict[tuple[int, ...], Callable[..., NDArray[np.float32]]] = OrderedDict()
        if cache is not None:
            self._core.set_property({"CACHE_DIR": str(cache)})

    @classmethod
    def installed(cls, folder: Path) -> "OpenVinoEngine":
        """The engine that `build_engine.py` installed."""
        trusted_manifest(folder, "openvino")
        return cls(folder, _compiled_models())

    @property
    def precision(self) -> str:
        """As it runs here: "bf16" if any part does, else "f32"."""
        return min(precision for precision, _ in self._parts)

    def __call__(self, image: NDArray[np.float32], photon_gain: NDArray[np.float32], *original: Any) -> Any:
        """image, original: [1, 4, h, w] FP32, sides multiples of the network's; photon_gain: [1].

        The result lies in the engine's memory and is valid until the next call.
        """
        key = image.shape
        if key not in self._compiled:
            while self._compiled and sum(map(math.prod, [key, *self._compiled])) > 4 * COMPILED_PIXELS:
                self._compiled.popitem(last=False)
            self._compiled[key] = self._compile(key)
        self._compiled.move_to_end(key)
        return self._compiled[key](image, photon_gain, *original)

    def _compile(self, shape: tuple[int, ...]) -> Callable[..., NDArray[np.float32]]:
        sides = {"IMAGE": list(shape), "PHOTON_GAIN": [1], "ORIGIN_IMAGE": list(shape)}
        requests = []
        for precision, part in self._parts:
            model = part.clone()
            model.reshape({port: sides[port.any_name] for port in model.inputs})
            sides[model.output().any_name] = list(model.output().shape)  # which the next part takes
            properties = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
            requests.append(self._core.compile_model(model, "CPU", properties).create_infer_request())
        for part, following in pairwise(requests):
            following.set_tensor(part.model_outputs[0].any_name, part.get_output_tensor(0))
        return lambda *arrays: _infer(requests, arrays)


def _split(whole: ov.Model, network: Network) -> list[tuple[str, ov.Model]]:
    """BF16 in the middle; FP32 until the sides are first halved, for BF16's eight bits are coarser than what a later
    pass must see in its input, and from the last convolution on, or from the one that ends the body.
    """
    convolutions = [op for op in whole.get_ordered_ops() if op.get_type_name() == "Convolution"]
    ending = 1 + isinstance(network.get_submodule(network.body_end), nn.Conv2d)
    body, tail = _cut(whole, convolutions[-ending].input_value(0), "FEATURES")
    halving = next((op for op in body.get_ordered_ops() if _halves(op)), None)
    if halving is None:  # a network of one level
        return [("bf16", body), ("f32", tail)]
    head, middle = _cut(body, halving.input_value(0), "HALVED")
    return [("f32", head), ("bf16", middle), ("f32", tail)]


def _halves(op: ov.Node) -> bool:
    return op.get_type_name() in ("MaxPool", "Convolution") and list(op.get_attributes()["strides"]) == [2, 2]


def _cut(model: ov.Model, source: ov.Output, name: str) -> tuple[ov.Model, ov.Model]:
    """What computes `source`, and the rest, which takes it as an input of this name (and, if need be, IMAGE)."""
    first = ov.Model([source], model.get_parameters(), "first").clone()
    taken = ov.opset13.parameter(source.get_partial_shape(), np.float32, name=name)
    for readers in source.get_target_inputs():
        readers.replace_source_output(taken.output(0))
    image = [port for port in model.get_parameters() if port.output(0).any_name == "IMAGE"]
    rest = ov.Model(model.get_results(), [taken, *image], "rest")
    for tensor in (first.output(0).get_tensor(), taken.output(0).get_tensor()):
        tensor.set_names({name})
    return first, rest


def _compiled_models() -> Path | None:
    """The folder of compiled models, its oldest removed; None, and a remark, where it is not writable."""
    folder = cache_folder("openvino")
    if folder is not None:
        oldest_first = sorted(folder.glob("*.blob"), key=lambda blob: blob.stat().st_mtime)
        for blob in oldest_first[:-CACHED_MODELS]:
            blob.unlink(missing_ok=True)
    return folder


def _infer(parts: list[Any], arrays: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    """Run on the callers' memory, no copies: IMAGE, PHOTON_GAIN and ORIGIN_IMAGE in this order. Surplus arrays are
    ignored.
    """
    held = [np.ascontiguousarray(array) for array in arrays]  # OpenVINO keeps the address, not the array
    given = dict(zip(("IMAGE", "PHOTON_GAIN", "ORIGIN_IMAGE"), held, strict=False))
    for part in parts:
        for port in part.model_inputs:
            if port.any_name in given:
                part.set_tensor(port, ov.Tensor(given[port.any_name], shared_memory=True))
            elif port.any_name in ("IMAGE", "PHOTON_GAIN", "ORIGIN_IMAGE"):
                raise EngineError(f"the engine wants {port.any_name}; {len(held)} arrays came")
        part.infer()
    return parts[-1].get_output_tensor(0).data
