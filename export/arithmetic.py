"""What computes an engine on a processor: our kernels for the U-Net, or OpenVINO in BF16 or FP32; the fastest here."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from exposure.kernels.manifest import trusted_manifest
from exposure.kernels.unet import UNetEngine, lanes
from exposure.networks import Network, UNet

from . import openvino_engine
from .openvino_engine import MODEL, WIDE_ENDS, OpenVinoEngine, WideEnds, openvino_from_onnx
from .precision import Run

LARGEST_TIMED = 1024  # of planes' sides: many times the caches, and blocks of tiles for some cores at every level
ROUNDS = 2
PREFIX = "network."  # of the parameters' names in the graph: export/precision.py, Traced


@dataclass(frozen=True)
class Arithmetic:
    """winograd: by csrc/unet.h, in FP32. Else by OpenVINO, in BF16 but for what stays wide, or in FP32 where wide is
    None.
    """

    winograd: bool = False
    wide: WideEnds | None = None

    @property
    def precision(self) -> str:
        return "bf16" if self.wide else "f32"

    def opened(self, folder: Path) -> UNetEngine | OpenVinoEngine:
        """The engine of a folder, computed so."""
        return UNetEngine(parameters_in(folder)) if self.winograd else OpenVinoEngine(folder, self.precision)

    def __str__(self) -> str:
        if self.winograd:
            return "in FP32 by Winograd's convolutions"
        return f"in BF16 by OpenVINO ({self.wide})" if self.wide else "in FP32 by OpenVINO"


WINOGRAD, FP32 = Arithmetic(winograd=True), Arithmetic()


def installed_engine(folder: Path) -> UNetEngine | OpenVinoEngine:
    """The engine that `build_engine.py` installed, computed as the server computes it here. Raises EngineError."""
    manifest = trusted_manifest(folder, "openvino")
    if manifest.convolutions == "winograd" and lanes():
        return WINOGRAD.opened(folder)
    return OpenVinoEngine(folder, manifest.precision if openvino_engine.bf16_is_fast() else "f32")


def parameters_in(folder: Path) -> dict[str, NDArray[Any]]:
    """The parameters of a network in OpenVINO's format, by the names of its state dict."""
    constants = [op for op in ov.Core().read_model(folder / MODEL).get_ops() if op.get_type_name() == "Constant"]
    return {op.get_friendly_name().removeprefix(PREFIX): np.array(op.data) for op in constants}


def cpu_attempts(
    network: Network, graph: Path, planes: tuple[int, int], *, fp32: bool
) -> tuple[list[Arithmetic], dict[str, float]]:
    """What to try, in this order, and seconds of a pass by our kernels and by OpenVINO's fastest, where both could be.

    planes: sides of what is sent usually. fp32: without BF16.
    """
    narrow = [Arithmetic(wide=wide) for wide in WIDE_ENDS] if openvino_engine.bf16_is_fast() and not fp32 else []
    by_openvino = [*narrow, FP32]
    if not isinstance(network, UNet) or not lanes():
        return by_openvino, {}
    with tempfile.TemporaryDirectory() as scratch:
        openvino_from_onnx(graph, Path(scratch), wide=by_openvino[0].wide)
        runs = [WINOGRAD.opened(Path(scratch)), by_openvino[0].opened(Path(scratch))]
        ours, openvinos = _seconds(network, runs, planes)
    timed = {"winograd_s": round(ours, 3), "openvino_s": round(openvinos, 3)}
    if ours < openvinos:
        return [WINOGRAD, *by_openvino], timed
    return ([*narrow, WINOGRAD, FP32] if narrow else by_openvino), timed


def _seconds(network: Network, runs: Sequence[Run], planes: tuple[int, int]) -> list[float]:
    """The shortest pass of each, in turn; the first warms up."""
    height, width = (min(side, LARGEST_TIMED) for side in planes)
    image = np.random.default_rng(0).random((1, 4, height, width), np.float32)
    inputs = (image, np.ones(1, np.float32), *([image] if network.concat_origin else []))
    taken: list[list[float]] = [[] for _ in runs]
    for round_ in range(1 + ROUNDS):
        for run, seconds in zip(runs, taken, strict=True):
            started = time.perf_counter()
            run(*inputs)
            if round_:
                seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in taken]
