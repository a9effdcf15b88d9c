"""The same network by every means at hand, each in a process of its own: memory and idle threads are its own."""

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_peers import (
    QUIET,
    cuda_compiled,
    cuda_eager,
    cuda_graph,
    cuda_half,
    cuda_onnx,
    cuda_plan,
    no_card,
    no_plan,
    no_provider,
)
from numpy.typing import NDArray

from exposure.assets import MODEL_REPOSITORY
from exposure.export.tensorrt_engine import MODULES
from exposure.networks import Network

Run = Callable[..., NDArray[np.float32]]
ENGINE_FOLDER = MODEL_REPOSITORY / "denoiser" / "1" / "openvino"
REPLY_S = 120.0  # a peer that takes longer for one answer is left out, and named
TUNING_S = 480.0  # the same where kernels are tried out first
FP32_DB = 100.0  # as export/graph.py wants it of FP32, which torch's peers must not import: it needs ONNX
LOW_PRECISION_DB = 50.0  # below, a peer computes something else
# Torch allocates large planes anew in every layer; without these, page faults dominate.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Peer:
    """build: (network, ONNX graph) to a function of arrays. absent: why it cannot be here, or None.

    least_db: agreement with FP32 torch below which it is not timed. on_card: whether it computes on a card, where the
    processor's roofline says nothing and its memory is the card's. tunes: whether it tries out kernels for each size,
    for minutes. bf16: whether the processor multiplies in BF16.
    """

    build: Callable[[Network, Path], Run]
    absent: Callable[[], str | None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    least_db: float = FP32_DB
    on_card: bool = False
    tunes: bool = False
    bf16: bool = False

    @property
    def reply_s(self) -> float:
        """The longest wait for one answer."""
        return TUNING_S if self.tunes else REPLY_S


def eager(network: Network, _: Path) -> Run:
    """As the published code runs it: FP32, planes one after the other."""
    return _torch(network)


def channels_last(network: Network, _: Path) -> Run:
    return _torch(network, memory=torch.channels_last)


def compiled(network: Network, _: Path) -> Run:
    return _torch(torch.compile(network, dynamic=False), memory=torch.channels_last)


def bf16(network: Network, _: Path) -> Run:
    """Body and tail in BF16, by autocast: what a torch user would write."""
    return _torch(network, memory=torch.channels_last, autocast=torch.bfloat16)


def onnx_runtime(_: Network, graph: Path) -> Run:
    from exposure.export.graph import onnx_runner  # a card needs no ONNX

    return onnx_runner(graph)


def winograd(network: Network, _: Path | None = None) -> Any:
    """Ours, of any U-Net: kernels/csrc/unet.h."""
    from exposure.kernels.unet import UNetEngine  # a card needs no processor of this kind

    return UNetEngine({name: value.numpy() for name, value in network.state_dict().items()})


def openvino_f32(_: Network, graph: Path) -> Run:
    return openvino_engine(graph, "f32")


def openvino_bf16(_: Network, graph: Path) -> Run:
    """BF16 but for both ends, as the gate may let it pass."""
    return openvino_engine(graph, "bf16")


def openvino_int8(network: Network, graph: Path) -> Run:
    """Inner levels in INT8, the rest as in BF16; not offered as an engine, for it does not pass the accuracy gate."""
    from int8 import quantised

    return openvino_engine(quantised(network, graph), "f32" if no_fast_bf16() else "bf16")


def openvino_engine(graph: Path, precision: str) -> Run:
    """An engine of its own for each."""
    from exposure.export.openvino_engine import WIDE_ENDS, OpenVinoEngine, openvino_from_onnx  # a card needs none

    folder = Path(tempfile.mkdtemp(dir=graph.parent))
    openvino_from_onnx(graph, folder, wide=WIDE_ENDS[0] if precision == "bf16" else None)
    return OpenVinoEngine(folder, precision)


def no_fast_bf16() -> str | None:
    from exposure.export.openvino_engine import bf16_is_fast

    return None if bf16_is_fast() else "this processor has no BF16 arithmetic"


def no_vectors() -> str | None:
    from exposure.kernels.unet import NO_VECTORS, lanes

    return None if lanes() else NO_VECTORS


def _torch(module: Any, *, memory: torch.memory_format = torch.contiguous_format, autocast: Any = None) -> Run:
    module.to(memory_format=memory)

    def run(
        image: NDArray[np.float32], gain: NDArray[np.float32], original: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        planes = torch.from_numpy(image).contiguous(memory_format=memory)
        first = planes if original is image else torch.from_numpy(original).contiguous(memory_format=memory)
        with torch.inference_mode(), torch.autocast("cpu", autocast, enabled=autocast is not None):
            return module(planes, torch.from_numpy(gain), first).float().numpy()

    return run


OURS, PUBLISHED = "ours, FP32 Winograd", "torch FP32 eager"
HALF, GRAPHED = "torch CUDA FP16 channels-last", "torch CUDA graph, FP16 body"
COMPILED = "torch.compile CUDA FP16 channels-last"
_HALF_ON_CARD: dict[str, Any] = {"least_db": LOW_PRECISION_DB, "on_card": True}
PEERS = {
    PUBLISHED: Peer(eager, environment=TUNED_MALLOC),
    "torch FP32 channels-last": Peer(channels_last, environment=TUNED_MALLOC),
    "torch.compile FP32 channels-last": Peer(compiled, environment=TUNED_MALLOC),
    "torch BF16 channels-last": Peer(bf16, no_fast_bf16, TUNED_MALLOC, LOW_PRECISION_DB, bf16=True),
    "ONNX Runtime FP32": Peer(onnx_runtime),
    OURS: Peer(winograd, no_vectors),
    "OpenVINO FP32": Peer(openvino_f32),
    "OpenVINO BF16, FP32 ends": Peer(openvino_bf16, no_fast_bf16, least_db=LOW_PRECISION_DB, bf16=True),
    "OpenVINO INT8 inside": Peer(openvino_int8, least_db=LOW_PRECISION_DB),
    "torch CUDA FP32 eager": Peer(cuda_eager, no_card, on_card=True),
    HALF: Peer(cuda_half, no_card, **_HALF_ON_CARD),
    GRAPHED: Peer(cuda_graph, no_card, **_HALF_ON_CARD),
    COMPILED: Peer(cuda_compiled, no_card, QUIET, tunes=True, **_HALF_ON_CARD),
}
PEERS |= {
    f"ONNX Runtime {name}, {numbers}": Peer(
        functools.partial(cuda_onnx, f"{name}ExecutionProvider"),
        functools.partial(no_provider, f"{name}ExecutionProvider"),
        tunes=tunes,
        **_HALF_ON_CARD,
    )
    for name, numbers, tunes in (("CUDA", "FP16 body", False), ("Tensorrt", "FP16 throughout", True))
} | {
    f"{target}, FP16 body": Peer(
        functools.partial(cuda_plan, target), functools.partial(no_plan, target), tunes=True, **_HALF_ON_CARD
    )
    for target in MODULES
}
