"""The denoiser on an RTX card, for `configs/rtx.pbtxt`: one pass of the network by TensorRT for RTX."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # the server's own module

from exposure.export.manifest import EngineError, read_manifest
from exposure.export.tensorrt_runtime import PlanEngine


class TritonPythonModel:
    """Called by Triton's Python backend, one request at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the installed engine; an engine that cannot be trusted here ends the start with one sentence."""
        folder = Path(args["model_repository"]) / args["model_version"] / "tensorrt-rtx"
        self._names = [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]
        try:
            self._engine = PlanEngine.installed(folder, "tensorrt-rtx")
            for sides in read_manifest(folder).planes:
                self._warm_up(sides)
            self._engine.keep_kernels()
        except EngineError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in self._names]
        try:
            clean = self._engine.on_card(*(self._array(tensor) for tensor in tensors))
        except EngineError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("CLEAN", clean)])

    @staticmethod
    def _array(tensor: Any) -> Any:
        import cupy

        return cupy.asarray(tensor.as_numpy()) if tensor.is_cpu() else cupy.from_dlpack(tensor)

    def _warm_up(self, sides: list[int]) -> None:
        """Compile kernels and capture the graph of a frame before a user's request needs them."""
        image = np.zeros((1, 4, *sides), np.float32)
        for _ in range(2):
            self._engine(*(np.ones(1, np.float32) if name == "PHOTON_GAIN" else image for name in self._names))
