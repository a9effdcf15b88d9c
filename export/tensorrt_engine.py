"""Plans for NVIDIA cards: TensorRT and TensorRT for RTX through one code path, from a strongly typed ONNX graph."""

import importlib
import sys
from pathlib import Path
from typing import Any

from .manifest import EngineError

PLAN = "model.plan"
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
REMEDIES = {
    "tensorrt": "install NVIDIA's tensorrt package on a machine with a card, or use --target tensorrt-rtx",
    "tensorrt-rtx": "install the rtx extra: pip install 'exposure[rtx]'",
}
RTX_CARDS = (75, 80, 86, 89, 120)  # what TensorRT for RTX 1.7 builds for without the card at hand
# Plane sides of the served frames: the smallest mosaic, 12 MP, and 61 MP.
SMALLEST, USUAL, LARGEST = (16, 16), (1424, 2128), (3184, 4768)


def load_tensorrt(target: str) -> Any:
    """The Python module of a target. Raises EngineError with the remedy when it is not installed."""
    try:
        return importlib.import_module(MODULES[target])
    except (ImportError, OSError) as error:
        raise EngineError(f"{target} is not installed ({error}); {REMEDIES[target]}") from error


def plan_from_onnx(graph: Path, plan: Path, target: str, compute_capability: int | None = None) -> None:
    """Build a plan with dynamic sides and write it.

    compute_capability: 86 for SM86 (RTX A5000); needed where the machine has no card, TensorRT for RTX only.
    Raises EngineError when the parser or the builder refuses.
    """
    trt = load_tensorrt(target)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    if not builder:
        raise EngineError(f"{target} finds no NVIDIA card here; {REMEDIES['tensorrt']}")
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{target} cannot parse {graph.name}: {reasons}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network))
    config.progress_monitor = _progress_monitor(trt)
    if compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{compute_capability}"), 0)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"{target} could not build an engine from {graph.name}")
    plan.write_bytes(serialized)


def _network_flags(trt: Any) -> int:
    """Strongly typed, and the explicit batch that TensorRT 8 and 9 still ask for."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    return sum(1 << int(known[name]) for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH") if name in known)


def _profile(builder: Any, network: Any) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *((1, 4, *sides) for sides in (SMALLEST, USUAL, LARGEST)))
    return profile


def _progress_monitor(trt: Any) -> Any:
    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        """Builder phases on standard error, so that a long build is seen to move."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            if parent_phase is None:
                print(f"  {phase_name}", file=sys.stderr)

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Progress()
