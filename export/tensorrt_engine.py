"""Plans for NVIDIA cards: TensorRT and TensorRT for RTX through one code path, from a strongly typed ONNX graph."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exposure.files import whole
from exposure.kernels.machine import outdated_driver, this_machine
from exposure.kernels.manifest import EngineError

from .cache import cache_folder

PLAN = "model.plan"
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
REMEDIES = {
    "tensorrt": "install it on a machine with a card, pip install -e '.[tensorrt]', or use --target tensorrt-rtx",
    "tensorrt-rtx": "install the rtx extra: pip install -e '.[rtx]'",
}


@dataclass(frozen=True)
class PlanOptions:
    """smallest, usual, largest: plane sides (height, width) of the shape profile; kernels are tuned for the usual one.

    compute_capabilities: cards that a TensorRT for RTX plan is built for; TensorRT builds for the card in the machine.
    level: the builder's optimisation level, 0 to 5, None for its own default. portable: a TensorRT plan that also runs
    on other cards since Ampere and under later versions, at some cost of speed.
    """

    smallest: tuple[int, int]
    usual: tuple[int, int]
    largest: tuple[int, int]
    compute_capabilities: tuple[int, ...] = ()
    level: int | None = None
    portable: bool = False


def load_tensorrt(target: str) -> Any:
    """The Python module of a target. Raises EngineError when it is not installed, or the driver too old for it."""
    outdated = outdated_driver(this_machine()) if target == "tensorrt-rtx" else ""
    if outdated:
        raise EngineError(outdated)
    try:
        return importlib.import_module(MODULES[target])
    except (ImportError, OSError) as error:
        raise EngineError(f"{target} is not installed ({error}); {REMEDIES[target]}") from error


def plan_from_onnx(graph: Path, plan: Path, target: str, options: PlanOptions, card: str = "") -> None:
    """Build a plan with dynamic sides and write it.

    card: name of the card, for the timing cache. Raises EngineError when the parser or the builder refuses.
    """
    trt = load_tensorrt(target)
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # how the binding says that CUDA could not be initialised
        if this_machine().card:
            raise EngineError(f"{target} cannot start a builder on {this_machine().card}: {error}") from error
        raise EngineError(f"{target} cannot start a builder without an NVIDIA card: {error}") from error
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{target} cannot parse {graph.name}: {reasons}")
    config = _config(trt, target, builder, network, options)
    progress = config.progress_monitor = _progress_monitor(trt)
    timings = _timing_cache(trt, target, config, card)
    serialized = builder.build_serialized_network(network, config)
    if progress.stopped:  # the binding takes an exception in a callback for an answer, and gives up
        raise KeyboardInterrupt
    if serialized is None:
        raise EngineError(f"{target} could not build an engine from {graph.name}")
    plan.write_bytes(serialized)
    _keep_timings(config, timings)


def _network_flags(trt: Any) -> int:
    """Strongly typed; TensorRT 11 has no flag for it, since it knows nothing else."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    return 1 << int(known["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in known else 0


def _config(trt: Any, target: str, builder: Any, network: Any, options: PlanOptions) -> Any:
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, options))
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: what stays in FP32 would be rounded as FP16 is
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.portable and target == "tensorrt":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    return config


def _profile(builder: Any, network: Any, options: PlanOptions) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            sides = (options.smallest, options.usual, options.largest)
            profile.set_shape(tensor.name, *((1, 4, *each) for each in sides))
    return profile


def _timing_cache(trt: Any, target: str, config: Any, card: str) -> Path | None:
    """Load what earlier builds measured on this card with this version. Returns the file, None where none is kept."""
    folder = cache_folder("timing") if target == "tensorrt" else None  # TensorRT for RTX times nothing when it builds
    if folder is None:
        return None
    path = folder / f"{target}_{trt.__version__}_{card.replace(' ', '_').replace('/', '_')}.cache"
    config.set_timing_cache(config.create_timing_cache(path.read_bytes() if path.exists() else b""), False)
    return path


def _keep_timings(config: Any, path: Path | None) -> None:
    cache = config.get_timing_cache() if path is not None else None
    if path is not None and cache is not None:
        with suppress(OSError), whole(path) as part:  # the plan is good without them
            part.write_bytes(cache.serialize())


def _progress_monitor(trt: Any) -> Any:
    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        """Builder phases on standard error, the outer one with its percentage, so that a long build is seen to move.

        stopped: whether Ctrl-C or a signal came, which the builder, asked after each step, then ends for.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._watched():
                if parent_phase is None:
                    self._steps[phase_name] = num_steps
                    print(f"  {phase_name}", file=sys.stderr)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._watched():
                if sys.stderr.isatty() and self._steps.get(phase_name):
                    print(f"\r  {phase_name} {100 * (step + 1) // self._steps[phase_name]} %", end="", file=sys.stderr)
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._watched():
                if sys.stderr.isatty() and self._steps.pop(phase_name, None):
                    print(file=sys.stderr)

        @contextmanager
        def _watched(self) -> Iterator[None]:
            try:
                yield
            except KeyboardInterrupt:
                self.stopped = True

    return Progress()
