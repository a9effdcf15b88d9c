"""The network on a card, by torch, ONNX Runtime and TensorRT, for peers.py."""

import math
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_machine import LOAD_S, NotCheckedError
from numpy.typing import NDArray

from exposure.export.precision import Traced
from exposure.networks import Network

WARM_UPS = 3  # kernels are chosen, graphs recorded
LEAST_S = 0.1  # of what is timed at once: one pass may take less than the clocks need
QUIET = {"TORCHINDUCTOR_AUTOTUNE_NUM_CHOICES_DISPLAYED": "0"}  # else a table for each convolution
Passes = Callable[[int], None]
Sides = tuple[int, int]  # height, width of planes
NO_TF32 = ("CUDAExecutionProvider", {"use_tf32": "0"})  # by default what the graph has in FP32 would not be
# Without the option it computes in FP32; with it, in FP16 also where the graph has FP32.
TENSORRT = ("TensorrtExecutionProvider", {"trt_fp16_enable": True})
PROVIDERS = {"CUDAExecutionProvider": [NO_TF32], "TensorrtExecutionProvider": [TENSORRT, NO_TF32]}  # then the processor
UNMET = "GPU requirements page"  # ONNX Runtime names it where a provider that was compiled in finds no libraries


class OnCard:
    """A module on a card, as a function of arrays, and over planes that stay on the card."""

    def __init__(
        self, module: Any, *, memory: torch.memory_format = torch.contiguous_format, autocast: Any = None
    ) -> None:
        # TF32, the default of convolutions, would not be FP32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._module, self._memory, self._autocast = module.to(device="cuda", memory_format=memory), memory, autocast

    def __call__(
        self, image: NDArray[np.float32], gain: NDArray[np.float32], original: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        planes, first = self._uploaded(image), self._uploaded(original)
        return np.asarray(self._forward(planes, torch.from_numpy(gain).cuda(), first).float().cpu())

    def over(self, image: NDArray[np.float32], gain: NDArray[np.float32]) -> Passes:
        """Passes over these planes, for timing: all are done when it returns, and nothing is copied.

        The image is there twice, as when it was verified: torch.compile would compile anew for one tensor twice.
        """
        tensors = self._uploaded(image), torch.from_numpy(gain).cuda(), self._uploaded(image)

        def passes(count: int) -> None:
            for _ in range(count):
                self._forward(*tensors)
            torch.cuda.synchronize()

        return passes

    def peak_bytes(self) -> int | None:
        """The most memory of the card that tensors have held since `forget_peak`; None where nobody counts it."""
        return torch.cuda.max_memory_allocated()

    def forget_peak(self) -> None:
        """Of trying out kernels, before the first pass."""
        torch.cuda.reset_peak_memory_stats()

    def _uploaded(self, image: NDArray[np.float32]) -> Any:
        return torch.from_numpy(image).cuda().contiguous(memory_format=self._memory)

    def _forward(self, *tensors: Any) -> Any:
        with torch.inference_mode(), torch.autocast("cuda", self._autocast, enabled=self._autocast is not None):
            return self._module(*tensors)


class Graphed(OnCard):
    """The same, its kernels launched together as one CUDA graph for each size; what is verified is a graph, too."""

    def __call__(
        self, image: NDArray[np.float32], gain: NDArray[np.float32], original: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        tensors = self._uploaded(image), torch.from_numpy(gain).cuda(), self._uploaded(original)
        graph, clean = self._captured(*tensors)
        graph.replay()
        return np.asarray(clean.float().cpu())

    def over(self, image: NDArray[np.float32], gain: NDArray[np.float32]) -> Passes:
        tensors = self._uploaded(image), torch.from_numpy(gain).cuda(), self._uploaded(image)
        torch.cuda.reset_peak_memory_stats()
        graph, clean = self._captured(*tensors)
        self._peak = torch.cuda.max_memory_allocated()

        def passes(count: int, _held: Any = (tensors, clean)) -> None:  # the graph has their addresses
            for _ in range(count):
                graph.replay()
            torch.cuda.synchronize()

        return passes

    def peak_bytes(self) -> int:
        """While it was recorded: the graph keeps that memory, which torch counts as free afterwards."""
        return self._peak

    def _captured(self, *tensors: Any) -> tuple[Any, Any]:
        """A graph of one pass over these tensors, which must outlive it, and the tensor that it writes."""
        beside = torch.cuda.Stream()  # what is captured must have run before, and not on the default stream
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._forward(*tensors)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            clean = self._forward(*tensors)
        return graph, clean


class ByOnnxRuntime(OnCard):
    """A graph by one of ONNX Runtime's providers; planes and result stay on the device."""

    def __init__(self, graph: Path, provider: str, device: str = "cuda") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        how: dict[str, Any] = {"providers": PROVIDERS.get(provider, [provider]), "enable_fallback": 0}
        cannot = f"ONNX Runtime cannot use its {provider} here"
        try:
            self._session = onnxruntime.InferenceSession(graph, options, **how)
        except RuntimeError as error:
            if UNMET in str(error):
                raise NotCheckedError(f"{cannot}: {error}") from error
            raise
        if self._session.get_providers()[0] != provider:  # it goes on with the processor, without a word
            raise NotCheckedError(f"{cannot}: a library that it needs does not load")
        self._ort, self._device = onnxruntime, device

    def __call__(self, *arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        binding = self._bound(*arrays)
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0])

    def over(self, image: NDArray[np.float32], gain: NDArray[np.float32]) -> Passes:
        binding = self._bound(image, gain, image)

        def passes(count: int) -> None:
            for _ in range(count):
                self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return passes

    def peak_bytes(self) -> None:
        return None

    def _bound(self, *arrays: NDArray[np.float32]) -> Any:
        binding = self._session.io_binding()
        for port, array in zip(self._session.get_inputs(), arrays, strict=False):
            held = self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
            binding.bind_ortvalue_input(port.name, held)
        binding.bind_output("CLEAN", self._device)
        return binding


class Compiled(OnCard):
    """By torch.compile, which keeps graphs of its own, in memory that torch counts as free."""

    def peak_bytes(self) -> None:
        return None


class ByPlan(OnCard):
    """A plan of TensorRT or TensorRT for RTX, on torch's memory. build: from planes' sides to the plan tuned for them.

    It is built when planes first come.
    """

    def __init__(self, build: Callable[[Sides], Any]) -> None:
        self._build, self._engine, self._memory = build, None, torch.contiguous_format

    def __call__(self, *arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._ready(arrays[0])(*arrays))

    def over(self, image: NDArray[np.float32], gain: NDArray[np.float32]) -> Passes:
        tensors = self._uploaded(image), torch.from_numpy(gain).cuda(), self._uploaded(image)
        engine = self._ready(image)
        return lambda count: engine.passes(count, *tensors)

    def _ready(self, image: NDArray[np.float32]) -> Any:
        if self._engine is None:
            height, width = image.shape[2:]
            self._engine = self._build((height, width))
        return self._engine

    def peak_bytes(self) -> None:
        return None


def warmed(passes: Passes) -> int:
    """How many passes take `LEAST_S`, of a card that has worked for half a second."""
    for _ in range(WARM_UPS):
        passes(1)
    count, until = 1, time.monotonic() + LOAD_S
    while (seconds := clocked(passes, count)) * count < LEAST_S or time.monotonic() < until:
        count = max(count, math.ceil(1.2 * LEAST_S / seconds))
    return count


def clocked(passes: Passes, count: int) -> float:
    """Seconds of one."""
    started = time.perf_counter()
    passes(count)
    return (time.perf_counter() - started) / count


def cuda_eager(network: Network, _: Path) -> OnCard:
    return OnCard(network)


def cuda_half(network: Network, _: Path) -> OnCard:
    return OnCard(network, memory=torch.channels_last, autocast=torch.float16)


def cuda_compiled(network: Network, _: Path) -> OnCard:
    with suppress(ImportError, AttributeError):  # a version that has no such table, or names it otherwise
        from torch._inductor import config, select_algorithm

        config.autotune_num_choices_displayed, select_algorithm.PRINT_AUTOTUNE = 0, False
    module = torch.compile(network, dynamic=False, mode="max-autotune")
    return Compiled(module, memory=torch.channels_last, autocast=torch.float16)


def cuda_graph(network: Network, _: Path) -> Graphed:
    return Graphed(Traced(network, half=True, islands=_islands(network)), memory=torch.channels_last)


def cuda_onnx(provider: str, network: Network, graph: Path) -> ByOnnxRuntime:
    return ByOnnxRuntime(_half_graph(network, graph), provider)


def cuda_plan(target: str, network: Network, graph: Path) -> ByPlan:
    """Built for the card that is here, and for the size that is first asked for."""
    from gpu_engine import TorchMemoryEngine, cards_named

    from exposure.export.recipes import Settings
    from exposure.export.tensorrt_engine import PlanOptions, load_tensorrt, plan_from_onnx
    from exposure.kernels.machine import this_machine

    half = _half_graph(network, graph)
    plan, profile = half.with_suffix(".plan"), Settings().profile(network.multiple)

    def build(usual: Sides) -> TorchMemoryEngine:
        options = PlanOptions(profile["smallest"], usual, profile["largest"], cards_named(target))
        plan_from_onnx(half, plan, target, options, this_machine().card)
        return TorchMemoryEngine(load_tensorrt(target), plan.read_bytes())

    return ByPlan(build)


def _half_graph(network: Network, graph: Path) -> Path:
    """The graph of an FP16 engine, beside the FP32 one; each peer has its own."""
    from exposure.export.graph import onnx_from_network  # torch's peers need no ONNX

    folder = Path(tempfile.mkdtemp(dir=graph.parent))
    onnx_from_network(network, folder / "half.onnx", half=True, islands=_islands(network))
    return folder / "half.onnx"


def _islands(network: Network) -> list[str]:
    """What the shipped network's engine keeps in FP32: the end of the body."""
    return [network.body_end] if network.body_end else []


def no_card() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no NVIDIA card here"


def no_provider(provider: str) -> str | None:
    if reason := no_library("onnxruntime"):
        return reason
    import onnxruntime

    known = provider in onnxruntime.get_available_providers()  # compiled in; a session tells whether it loads
    return None if known else f"ONNX Runtime has no {provider} here; onnxruntime-gpu brings it"


def no_library(module: str) -> str | None:
    return no_card() or (None if find_spec(module) else f"{module} is not installed")


def no_plan(target: str) -> str | None:
    """Why no plan can be made for this card, as far as it is known before one is tried."""
    from exposure.export.tensorrt_engine import MODULES
    from exposure.kernels.machine import outdated_driver, this_machine, unnamed_card

    hindrance = no_library(MODULES[target])
    if target == "tensorrt-rtx" and not hindrance:
        hindrance = outdated_driver(this_machine()) or unnamed_card(this_machine()) or None
    return hindrance
