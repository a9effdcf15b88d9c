"""The denoiser on an RTX card, for `configs/rtx.pbtxt`: one pass of the network by TensorRT for RTX."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # the server's own module

from exposure.export.tensorrt_runtime import CardError, CardFullError, PlanEngine, cupy_is_installed
from exposure.kernels.manifest import EngineError, parsed_manifest


class TritonPythonModel:
    """Called by Triton's Python backend, one request at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the installed engine; an engine that cannot be trusted here ends the start with one sentence."""
        folder = Path(args["model_repository"]) / args["model_version"] / "tensorrt-rtx"
        self._names = [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]
        self._card = int(args["model_instance_device_id"])
        try:
            if cupy_is_installed():
                self._use_card()
            self._engine = PlanEngine.installed(folder, "tensorrt-rtx")
            for sides in parsed_manifest(folder).planes:  # which was held against its files just now
                self._warm_up(sides)
        except RuntimeError as error:  # ours, and CuPy's
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        self._use_card()
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Keep what was compiled for the sizes of users."""
        self._engine.keep_kernels()

    def _answer(self, request: Any) -> Any:
        tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in self._names]
        try:
            clean = self._engine.on_card(*(self._array(tensor) for tensor in tensors))
        except (RuntimeError, MemoryError) as error:  # ours, and CuPy's
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), _code(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("CLEAN", clean)])

    def _use_card(self) -> None:
        """The card of this instance, whatever thread calls."""
        import cupy

        cupy.cuda.Device(self._card).use()

    @staticmethod
    def _array(tensor: Any) -> Any:
        import cupy

        return cupy.asarray(tensor.as_numpy()) if tensor.is_cpu() else cupy.from_dlpack(tensor)

    def _warm_up(self, sides: list[int]) -> None:
        """Compile the kernels of a frame before a user's request needs them."""
        image = np.zeros((1, 4, *sides), np.float32)
        for _ in range(2):
            self._engine(*(np.ones(1, np.float32) if name == "PHOTON_GAIN" else image for name in self._names))


def _code(error: Exception) -> Any:
    """For the client, who may ask again later, must ask otherwise, or can do nothing."""
    if isinstance(error, (CardFullError, MemoryError)):
        return pb_utils.TritonError.UNAVAILABLE
    asked_wrong = isinstance(error, EngineError) and not isinstance(error, CardError)
    return pb_utils.TritonError.INVALID_ARG if asked_wrong else pb_utils.TritonError.INTERNAL
