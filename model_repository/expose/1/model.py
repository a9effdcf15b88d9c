"""The photon injection between two passes."""

import numpy as np
import triton_python_backend_utils as pb_utils

from exposure.kernels.ops import expose
from exposure.schedule import Step


class TritonPythonModel:
    def execute(self, requests):
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        i, steps = int(tensors["PASS"][0]), tensors["STEPS"]
        noise = {"seed": int(tensors["SEED"][0]), "index": i, "origin": tuple(tensors["ORIGIN"].tolist())}
        outputs = {
            "IMAGE": expose(tensors["CLEAN"], tensors["ORIGIN_IMAGE"], Step(*steps[i].tolist()), **noise),
            "PHOTON_GAIN": steps[i + 1, :1],
            "NEXT_PASS": np.array([i + 1], np.int32),
        }
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in wanted])
