"""One pass of the network on the CPU: the OpenVINO engine that lies beside this file."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from exposure.export.openvino_engine import OpenVinoEngine

INPUTS = ("IMAGE", "PHOTON_GAIN", "ORIGIN_IMAGE")  # the last one only for concat_origin checkpoints


class TritonPythonModel:
    def initialize(self, args):
        self.engine = OpenVinoEngine.installed(Path(__file__).parent / "openvino")

    def execute(self, requests):
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        tensors = (pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS)
        clean = self.engine(*(tensor.as_numpy() for tensor in tensors if tensor is not None))
        return pb_utils.InferenceResponse([pb_utils.Tensor("CLEAN", clean)])
