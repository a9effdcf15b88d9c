"""The engine for a CPU: OpenVINO, static shapes, BF16 body where the processor multiplies it fast, FP32 tail."""

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache import cache_folder
from .manifest import EngineError, trusted_manifest

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else importing openvino reports home
import openvino as ov  # noqa: E402

MODEL = "model.xml"
COMPILED_PIXELS = 4_000_000  # packed, of all frame sizes kept compiled: their activations take 1.7 kB a pixel
CACHED_MODELS = 16  # on disk, 31 MB each


def openvino_from_onnx(graph: Path, folder: Path) -> None:
    """Convert a checked ONNX graph into OpenVINO's own format, weights uncompressed."""
    ov.save_model(ov.Core().read_model(graph), folder / MODEL, compress_to_fp16=False)


def bf16_is_fast() -> bool:
    """True where the CPU multiplies BF16 matrices natively (AMX, AVX512-BF16); elsewhere it is emulated and slower."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """clean = engine(image, photon_gain[, original]), compiled once per frame size.

    folder: holds model.xml; precision: "f32", or "bf16" for the body with the last convolution and the blend in FP32.
    cache: folder for compiled models, so that the next start finds them.
    """

    def __init__(self, folder: Path, precision: str, cache: Path | None = None) -> None:
        self._core = ov.Core()
        self._network = self._core.read_model(folder / MODEL)  # whatever is installed later
        self.precision = precision
        self._compiled: OrderedDict[tuple[int, ...], Callable[..., NDArray[np.float32]]] = OrderedDict()
        if cache is not None:
            self._core.set_property({"CACHE_DIR": str(cache)})

    @classmethod
    def installed(cls, folder: Path) -> "OpenVinoEngine":
        """The engine that `build_engine.py` installed, at the precision that passed the gate and is fast here."""
        manifest = trusted_manifest(folder, "openvino")
        precision = manifest.precision if bf16_is_fast() else "f32"
        return cls(folder, precision, _compiled_models())

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
        if self.precision == "f32":
            request = self._request(self._read(shape), "f32")
            return lambda *arrays: _infer(request, arrays)
        body, tail = (self._request(part, p) for part, p in zip(split(self._read(shape)), ("bf16", "f32"), strict=True))
        tail.set_tensor("FEATURES", body.get_output_tensor(0))

        def run(image: NDArray[np.float32], *rest: NDArray[np.float32]) -> NDArray[np.float32]:
            _infer(body, (image, *rest))
            return _infer(tail, (image,))

        return run

    def _read(self, shape: tuple[int, ...]) -> ov.Model:
        model = self._network.clone()
        model.reshape({port: [1] if port.any_name == "PHOTON_GAIN" else list(shape) for port in model.inputs})
        return model

    def _request(self, model: ov.Model, precision: str) -> Any:
        properties = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        return self._core.compile_model(model, "CPU", properties).create_infer_request()


def split(model: ov.Model) -> tuple[ov.Model, ov.Model]:
    """Cut a network before its last convolution: the body gives FEATURES, the tail turns them and IMAGE into CLEAN."""
    last = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"][-1]
    source = last.input_value(0)
    features = ov.opset13.parameter(source.get_partial_shape(), np.float32, name="FEATURES")
    features.output(0).get_tensor().set_names({"FEATURES"})
    inputs = model.get_parameters()
    image = next(port for port in inputs if port.output(0).any_name == "IMAGE")
    body = ov.Model([source], inputs, "body").clone()
    last.input(0).replace_source_output(features.output(0))
    return body, ov.Model(model.get_results(), [features, image], "tail")


def _compiled_models() -> Path | None:
    """The folder of compiled models, its oldest removed; None, and a remark, where it is not writable."""
    folder = cache_folder("openvino")
    if folder is not None:
        oldest_first = sorted(folder.glob("*.blob"), key=lambda blob: blob.stat().st_mtime)
        for blob in oldest_first[:-CACHED_MODELS]:
            blob.unlink(missing_ok=True)
    return folder


def _infer(request: Any, arrays: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    """Run on the callers' memory, no copies; the inputs' order is the graph's. Surplus arrays are ignored."""
    ports = [port for port in request.model_inputs if port.any_name != "FEATURES"]
    held = [np.ascontiguousarray(array) for array in arrays]  # OpenVINO keeps the address, not the array
    if len(held) < len(ports):
        raise EngineError(f"the engine wants {', '.join(port.any_name for port in ports)}; {len(held)} arrays came")
    for port, array in zip(ports, held, strict=False):
        request.set_tensor(port, ov.Tensor(array, shared_memory=True))
    request.infer()
    return request.get_output_tensor(0).data
