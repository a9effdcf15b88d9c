"""The engine for a CPU: OpenVINO, static shapes; FP32, or BF16 but for its ends where the processor is fast at it."""

import math
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from exposure.kernels.library import threads
from exposure.kernels.manifest import EngineError

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else importing openvino reports home
import openvino as ov  # noqa: E402

MODEL = "model.xml"
COMPILED_PIXELS = 4_000_000  # packed, of all frame sizes kept compiled: their activations take about 0.7 kB a pixel
WEIGHTS = 50_000  # what each holds of its own, 35 MB, as pixels


@dataclass(frozen=True)
class WideEnds:
    """What stays in FP32 where the rest runs in BF16, whose eight bits are too coarse for the noisy input and for the
    result. first: so many convolutions, None for all before the sides are first halved; last: so many.
    """

    first: int | None
    last: int

    def __str__(self) -> str:
        first = "all before the sides are halved" if self.first is None else f"its first {self.first}"
        return f"FP32 in {first} and its last {self.last} convolutions"


WIDE_ENDS = (WideEnds(1, 2), WideEnds(None, 2), WideEnds(1, 3), WideEnds(None, 3))  # by their time; the gate decides


def openvino_from_onnx(graph: Path, folder: Path, *, wide: WideEnds | None = None) -> None:
    """Convert a checked ONNX graph into OpenVINO's own format, weights uncompressed, and mark what stays wide."""
    model = ov.Core().read_model(graph)
    try:
        ov.save_model(model, folder / MODEL, compress_to_fp16=False)
    except RuntimeError as error:  # of a stream that fails, which keeps the reason to itself
        raise OSError(f"{folder / MODEL} could not be written; is the disk full?") from error
    if wide:
        _keep_wide(folder / MODEL, _ends(model, wide))


def bf16_is_fast() -> bool:
    """True where the CPU multiplies BF16 matrices natively (AMX, AVX512-BF16); elsewhere it is emulated and slower."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """clean = engine(image, photon_gain[, original]), compiled once per frame size.

    folder: holds model.xml; precision: "f32", or "bf16" for all that is not marked to stay in FP32. The server's own is
    kernels/backend/openvino_engine.cpp; both keep as many sizes compiled.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        self._core = ov.Core()
        self._core.set_property({"ENABLE_MMAP": False})  # the network stays what it is, whatever is installed later
        self._network = self._core.read_model(folder / MODEL)
        self.precision = precision
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, image: NDArray[np.float32], photon_gain: NDArray[np.float32], *original: Any) -> Any:
        """image, original: [1, 4, h, w] FP32, sides multiples of the network's; photon_gain: [1].

        The result lies in the engine's memory and is valid until the next call.
        """
        key = image.shape
        if key not in self._compiled:
            while self._compiled and sum(map(_held, [key, *self._compiled])) > COMPILED_PIXELS:
                self._compiled.popitem(last=False)
            self._compiled[key] = self._compile(key)
        self._compiled.move_to_end(key)
        return _infer(self._compiled[key], (image, photon_gain, *original))

    def _compile(self, shape: tuple[int, ...]) -> Any:
        model = self._network.clone()
        model.reshape({port: [1] if port.any_name == "PHOTON_GAIN" else list(shape) for port in model.inputs})
        properties = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads(),
        }
        return self._core.compile_model(model, "CPU", properties).create_infer_request()


def _held(shape: tuple[int, ...]) -> int:
    """Memory of a compiled size [1, 4, h, w], in packed pixels."""
    return math.prod(shape[2:]) + WEIGHTS


def _ends(model: ov.Model, wide: WideEnds) -> set[str]:
    """Names of the operations up to the first convolutions, at most to what halves the sides, and from the last on."""
    ops = model.get_ordered_ops()
    convolutions = [op for op in ops if op.get_type_name() == "Convolution"]
    behind = _before(convolutions[-wide.last :][0])  # the first, where there are not so many
    ends = {op.get_friendly_name() for op in ops} - behind
    halving = next((op for op in ops if _halves(op)), None)
    start = _before(halving) if halving else set()  # a network of one level halves nothing
    if wide.first is not None:
        start &= _before(convolutions[wide.first :][0])
    return ends | start


def _before(op: ov.Node) -> set[str]:
    """Names of all operations that an operation depends on."""
    names: set[str] = set()
    left = [op]
    while left:
        sources = [value.get_node() for value in left.pop().input_values()]
        left += [source for source in sources if source.get_friendly_name() not in names]
        names |= {source.get_friendly_name() for source in sources}
    return names


def _halves(op: ov.Node) -> bool:
    return op.get_type_name() in ("MaxPool", "Convolution") and list(op.get_attributes()["strides"]) == [2, 2]


def _keep_wide(file: Path, names: set[str]) -> None:
    """Write OpenVINO's DisablePrecisionConversion into a saved model, by the name that its reader has long known: there
    is no way to it from Python.
    """
    tree = ElementTree.parse(file)
    for layer in tree.getroot().iter("layer"):
        if layer.get("name") in names and layer.get("type") not in ("Const", "Parameter", "Result"):
            marks = ElementTree.Element("rt_info")
            ElementTree.SubElement(marks, "attribute", name="precise", version="0")
            layer.insert(0 if layer.find("data") is None else 1, marks)
    tree.write(file)


def _infer(request: Any, arrays: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    """Run on the callers' memory, no copies; the inputs' order is the graph's. Surplus arrays are ignored."""
    ports = request.model_inputs
    held = [np.ascontiguousarray(array) for array in arrays]  # OpenVINO keeps the address, not the array
    if len(held) < len(ports):
        raise EngineError(f"the engine wants {', '.join(port.any_name for port in ports)}; {len(held)} arrays came")
    for port, array in zip(ports, held, strict=False):
        request.set_tensor(port, ov.Tensor(array, shared_memory=True))
    request.infer()
    return request.get_output_tensor(0).data
