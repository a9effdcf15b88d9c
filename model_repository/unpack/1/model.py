"""Planes back to the mosaic that a sensor with the same levels would have recorded."""

import triton_python_backend_utils as pb_utils

from exposure.kernels.ops import unpack
from exposure.sensor import Sensor


class TritonPythonModel:
    def execute(self, requests):
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        sensor = Sensor(tuple(tensors["BLACK"]), tensors["WHITE"][0], tensors["CFA"])
        mosaic = unpack(tensors["CLEAN"][0], sensor, tuple(tensors["SIZE"]))
        return pb_utils.InferenceResponse([pb_utils.Tensor("DENOISED", mosaic)])
