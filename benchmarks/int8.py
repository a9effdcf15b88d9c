"""The U-Net with its inner levels in 8 bits: what INT8 would buy, and what it would cost. Measured, not offered."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from exposure.denoise import expose
from exposure.export.scene import simulated_scenes
from exposure.networks import Network
from exposure.schedule import unroll
from exposure.sensor import pad

FULL_SIZE = ("conv1_1", "conv1_2", "upv9", "conv9_1", "conv9_2", "conv10_1")  # in FP32: in 8 bits most of it costs 6 dB
CALIBRATED_ON, PASSES = (512, 512), 3  # sides of the largest mosaic


def quantised(network: Network, graph: Path) -> Path:
    """Write an INT8 graph beside `graph`: weights of 8 bits a channel, activations of 8 bits a layer, from their
    extremes on calibration crops. Returns its path.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # it recommends a step that changes nothing here
    nodes = onnx.load(graph).graph.node
    convolutions = {node.input[1].split(".")[-2]: node.name for node in nodes if node.op_type.startswith("Conv")}
    target = graph.with_name("int8.onnx")
    quantize_static(
        graph,
        target,
        _Calibration(network),
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["Conv", "ConvTranspose"],
        nodes_to_exclude=[convolutions[name] for name in FULL_SIZE],
        # what leaves a convolution goes through its activation first
        extra_options={"OpTypesToExcludeOutputQuantization": ["Conv", "ConvTranspose"]},
    )
    return target


class _Calibration:
    """Images of every pass over simulated low light, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, network: Network) -> None:
        self._inputs = _images(network)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def _images(network: Network) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    for scene in simulated_scenes(CALIBRATED_ON):
        x = original = np.ascontiguousarray(pad(scene.image, network.multiple))
        for step in unroll(scene.ratio, scene.gain, scene.saturation, PASSES, photon_unit=network.photon_unit):
            photon_gain = np.array([step.photon_gain], np.float32)
            yield {"IMAGE": x, "PHOTON_GAIN": photon_gain}
            with torch.no_grad():
                clean = network(torch.from_numpy(x), torch.from_numpy(photon_gain)).numpy()
            x = np.asarray(expose(clean, original, step, random.poisson), np.float32)
