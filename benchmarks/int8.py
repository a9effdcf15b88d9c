"""The U-Net with its inner levels in 8 bits: what INT8 would buy, and what it would cost. Measured, not offered."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from exposure import denoise
from exposure.export.graph import input_names
from exposure.export.scene import simulated_scenes
from exposure.networks import Network

FULL_SIZE = ("conv1_1", "conv1_2", "upv9", "conv9_1", "conv9_2", "conv10_1")  # not in 8 bits: most of it costs 6 dB
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
        self._inputs = iter(_images(network))

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def _images(network: Network) -> list[dict[str, Any]]:
    met: list[dict[str, Any]] = []

    def note(_: Any, inputs: tuple[Any, ...]) -> None:
        image, photon_gain, original = inputs
        arrays = (image.numpy(), np.array([photon_gain], np.float32), original.numpy())
        met.append(dict(zip(input_names(network), arrays, strict=False)))

    hook = network.register_forward_pre_hook(note)
    for scene in simulated_scenes(CALIBRATED_ON):
        image = torch.from_numpy(scene.image)
        denoise(network, image, ratio=scene.ratio, gain=scene.gain, saturation=scene.saturation, passes=PASSES)
    hook.remove()
    return met
