"""The ONNX graph: traced from the definition, named by its signature, checked against torch before anyone keeps it."""

import inspect
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.export import Dim

from exposure import quality
from exposure.networks import Network

from .precision import GraphError, Run, Traced
from .scene import low_light_crops

FP32_AGREEMENT_DB = 100.0  # two FP32 implementations differ by rounding, 1e-6 of full scale
HALF_AGREEMENT_DB = 60.0  # ONNX Runtime skips part of the rounding; the gate measures what FP16 costs


def input_names(network: Network) -> list[str]:
    """Tensor names of the graph that belongs to this network, in order."""
    names = [name.upper() for name in inspect.signature(Traced.forward).parameters if name != "self"]
    return names if network.concat_origin else names[:2]


def onnx_from_network(
    network: Network, path: Path, *, half: bool = False, islands: Sequence[str] = (), checkpoint: str = ""
) -> None:
    """Write the graph with dynamic sides (multiples of the network's own) and its provenance as metadata.

    checkpoint: SHA-256 of the file that the network was read from.
    """
    names = input_names(network)
    multiple = network.multiple
    image = torch.rand(1, 4, 4 * multiple, 6 * multiple)
    arguments = {"image": image, "photon_gain": torch.tensor([0.5]), "origin_image": image.clone()}
    sides = {2: multiple * Dim("H"), 3: multiple * Dim("W")}
    with torch.no_grad(), warnings.catch_warnings():  # the exporter's remarks about itself
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Traced(network, half=half, islands=islands),
            tuple(arguments[name.lower()] for name in names),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=["CLEAN"],
            dynamic_shapes=tuple(None if name == "PHOTON_GAIN" else sides for name in names),
        )
    assert program is not None  # always returned by the dynamo exporter
    model = program.model_proto
    metadata = {
        "checkpoint": checkpoint,
        "network": type(network).__name__,
        "photon_unit": network.photon_unit,
        "multiple": multiple,
        "precision": "f16" if half else "f32",
        "fp32_islands": " ".join(islands),
        "licence": network.info.licence,
    }
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.save(model, path)


def onnx_runner(path: Path) -> Run:
    """Evaluate a graph with ONNX Runtime, the reference implementation of ONNX."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]

    def run(*arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.run(["CLEAN"], dict(zip(names, arrays, strict=False)))[0]

    return run


def agreement(network: Network, run: Run, least_db: float, what: str) -> float:
    """PSNR of a graph's output against FP32 torch, the worst over simulated low-light crops, in dB.

    Raises GraphError when the output holds NaN or Inf or agrees to less than `least_db`.
    """
    worst = float("inf")
    for crop in low_light_crops(network.photon_unit, network.multiple):
        image = crop.image
        original = np.ascontiguousarray(image[..., ::-1])  # another image, so that none passes for the other
        gain = np.array([crop.photon_gain], np.float32)
        with torch.no_grad():
            expected = network(*map(torch.from_numpy, (image, gain, original))).numpy()
        clean = run(image, gain, original)
        if not np.isfinite(expected).all():
            raise GraphError("the network itself gives NaN or Inf on a simulated low-light crop")
        if clean.shape != expected.shape or not np.isfinite(clean).all():
            raise GraphError(f"{what} gives NaN, Inf or a wrong shape on a simulated low-light crop")
        worst = min(worst, quality.agreement_db(clean, expected))
    if worst < least_db:
        raise GraphError(f"{what} agrees with FP32 torch to {worst:.1f} dB only; at least {least_db:.0f} dB is needed")
    return worst
