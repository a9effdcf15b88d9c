"""A checked request in, network planes and the exposure schedule out."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from exposure.export.manifest import read_manifest
from exposure.kernels.ops import pack
from exposure.schedule import SERVED_PASSES, table
from exposure.sensor import Sensor, check_tile


class TritonPythonModel:
    def initialize(self, args):
        engine = json.loads(args["model_config"])["parameters"]["engine"]["string_value"]
        self.manifest = read_manifest(Path(args["model_repository"]).parent / "denoiser" / "1" / engine)

    def execute(self, requests):
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        tensors = {tensor.name().lower(): tensor.as_numpy() for tensor in request.inputs()}
        try:
            outputs = self._pack(**tensors)
        except ValueError as error:  # the definitions' sentences begin with the argument's name: here, a tensor
            name, _, rest = str(error).partition(" ")
            refusal = pb_utils.TritonError(f"{name.upper()} {rest}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in wanted])

    def _pack(self, mosaic, cfa, black, white, ratio, gain, seed, origin):
        check_tile(mosaic.shape, origin.tolist())
        sensor, unit = Sensor(tuple(black), white[0], cfa), self.manifest.photon_unit
        steps = {n: table(ratio[0], gain[0], sensor.saturation, n, photon_unit=unit) for n in SERVED_PASSES}
        image = pack(mosaic, sensor, ratio[0], multiple=self.manifest.multiple)[None]
        size, first = np.array(mosaic.shape, np.int32), np.zeros(1, np.int32)
        outputs = {"IMAGE": image, "PHOTON_GAIN": steps[1][0, :1], "SIZE": size, "PASS": first}
        return outputs | {f"STEPS_{n}": rows for n, rows in steps.items()}
