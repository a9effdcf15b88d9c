"""What an NVIDIA card says of our engines: built on it, held against FP32 torch, timed pass by pass.

python benchmarks/gpu_engine.py [--frame 4240x2832] [--checkpoint FILE] [--out FILE.json]

Runs with what it finds: torch with CUDA, TensorRT and TensorRT for RTX. What is missing is said, never skipped in
silence. Nothing is written but --out.
"""

import argparse
import functools
import importlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from gpu_build import package_in_build
from gpu_machine import clock_under_load

PROJECT = Path(__file__).resolve().parents[1]
PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not checked"
ROUNDS = 20
NOT_DONE = "the check ended before it was done"
TORCH_MODULES = ("torch", "numpy", "safetensors", "PIL", "onnx")
PLAN_MODULES = (*TORCH_MODULES, "onnxscript", "onnxruntime")
ENGINES = {
    "torch": ("FP16 graph in torch on this card", TORCH_MODULES),
    "tensorrt": ("tensorrt engine on this card", PLAN_MODULES),
    # last, for it may end the process: it is tried on cards, too, that it names no target for
    "tensorrt-rtx": ("tensorrt-rtx engine on this card", PLAN_MODULES),
}
Outcomes = dict[str, dict[str, Any]]


def check_engines(
    checkpoint: Path, frame: tuple[int, int], keep: Callable[[Outcomes], None] = lambda _: None
) -> Outcomes:
    """Outcome by name: {"outcome": passed | failed | not checked, "why": ..., and what was measured}.

    frame: width and height of the mosaic. keep: takes the outcomes so far, before the first check and after each. Never
    raises: a check that breaks has failed, and says why.
    """
    outcomes = {name: _absent(NOT_DONE) for name, _ in ENGINES.values()}
    keep(outcomes)
    for target, (name, modules) in ENGINES.items():
        reason = _missing(modules)
        work = _check_torch if target == "torch" else functools.partial(_check, target)
        outcomes[name] = _absent(reason) if reason else _guarded(functools.partial(work, checkpoint, frame))
        keep(outcomes)
    return outcomes


def _check(target: str, checkpoint: Path, frame: tuple[int, int]) -> dict[str, Any]:
    """Build, time and gate one target for the card, as `build_engine.py` builds it; what is refused is told, too."""
    import torch

    from exposure.export.recipes import Settings, plan_attempts
    from exposure.export.tensorrt_engine import load_tensorrt
    from exposure.kernels.manifest import EngineError
    from exposure.networks import load_checkpoint

    try:
        trt = load_tensorrt(target)
    except EngineError as error:
        return _absent(str(error))
    named = target != "tensorrt-rtx" or bool(cards_named(target))  # else tried, with no card named, and told
    network = load_checkpoint(checkpoint)
    settings = Settings(frames=(frame,))
    about = {"version": trt.__version__, "card": torch.cuda.get_device_name(), "compute_capability": str(_capability())}
    refused: list[dict[str, Any]] = []
    for numbers in plan_attempts(network, settings):
        try:
            built = _built_engine(target, trt, network, settings, numbers)
        except (EngineError, RuntimeError) as error:
            if named:
                raise
            return about | _absent(
                f"tried on this card, for which TensorRT for RTX names no target, and refused: {error}"
            )
        if built["outcome"] == PASSED:
            return about | built | {"refused": refused}
        refused.append(built)
    return about | {"outcome": FAILED, "why": refused[-1]["why"], "refused": refused}


def cards_named(target: str) -> tuple[int, ...]:
    """What a plan of this target is told to be built for: TensorRT for RTX the card here, if it names such cards."""
    from exposure.kernels.machine import RTX_CARDS

    return (_capability(),) if target == "tensorrt-rtx" and _capability() in RTX_CARDS else ()


def _capability() -> int:
    import torch

    return int("".join(map(str, torch.cuda.get_device_capability())))


def _built_engine(target: str, trt: Any, network: Any, settings: Any, numbers: Any) -> dict[str, Any]:
    """One engine, its time on the card, and what the gate says of it."""
    import torch

    from exposure.export.graph import onnx_from_network
    from exposure.export.tensorrt_engine import PlanOptions, plan_from_onnx

    profile = settings.profile(network.multiple)
    height, width = profile["usual"]
    with tempfile.TemporaryDirectory() as scratch:
        graph, plan = Path(scratch) / "model.onnx", Path(scratch) / "model.plan"
        onnx_from_network(network, graph, half=numbers.precision == "f16", islands=numbers.islands)
        options = PlanOptions(**profile, compute_capabilities=cards_named(target))
        plan_from_onnx(graph, plan, target, options, torch.cuda.get_device_name())
        engine = TorchMemoryEngine(trt, plan.read_bytes())
        size = plan.stat().st_size
    image = torch.rand(1, 4, height, width, device="cuda")
    gain = torch.tensor([0.01], device="cuda")
    measured = {
        "numbers": str(numbers),
        "plan_bytes": size,
        "planes": f"{height}x{width}",
        "ms_per_pass": _milliseconds(lambda: engine.on_card(image, gain, image)),
    }
    return measured | _gated(network, engine, numbers.precision, settings.gated_frame(), f"the {target} engine")


def _gated(network: Any, run: Any, precision: str, frame: tuple[int, int], what: str) -> dict[str, Any]:
    """What the accuracy gate measures, scene by scene, as far as it came, and its verdict. frame: height, width."""
    from exposure.export.gate import ALLOWANCES, pass_gate
    from exposure.export.precision import GraphError
    from exposure.export.scene import real_scenes, simulated_scenes

    allowed, scenes = ALLOWANCES[precision], list[str]()
    try:
        met = chain(real_scenes() if find_spec("rawpy") else (), simulated_scenes(frame))
        pass_gate(network, run, precision, met, what, say=lambda line: scenes.append(line.strip()))
    except GraphError as error:
        return {"outcome": FAILED, "why": str(error), "scenes": scenes}
    why = f"within {allowed.least_db:g} dB and {allowed.most_dn:g} DN of FP32 torch"
    return {"outcome": PASSED, "why": why, "scenes": scenes}


class TorchMemoryEngine:
    """A plan on memory that torch allocates: `export/tensorrt_runtime.py` for a machine without CuPy."""

    def __init__(self, trt: Any, plan: bytes) -> None:
        import torch

        from exposure.export.tensorrt_runtime import inputs_of, make_context

        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RuntimeError("the plan was built but is not taken by the runtime on this card")
        self._context, self._kernels = make_context(trt, self._engine)  # the store outlives the context, as it must
        if self._context is None:
            raise RuntimeError("out of memory: the card has none left for what the plan needs while it runs")
        self._stream = torch.cuda.Stream()  # on the default one, every pass would wait for the whole card
        self._inputs = inputs_of(self._engine)

    def __call__(self, *arrays: Any) -> Any:
        import torch

        return self.on_card(*(torch.from_numpy(array).cuda() for array in arrays)).cpu().numpy()

    def on_card(self, *tensors: Any) -> Any:
        """Tensors of the card in and out; the result is complete when this returns."""
        return self.passes(1, *tensors)

    def passes(self, count: int, *tensors: Any) -> Any:
        """So many passes over the same tensors, queued one after the other; all are complete when this returns."""
        import torch

        torch.cuda.current_stream().synchronize()  # the inputs were written there
        held = [tensor.contiguous() for tensor in tensors]
        for name, tensor in zip(self._inputs, held, strict=False):
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise RuntimeError(f"{name} is {tuple(tensor.shape)}; the profile does not take it")
            self._context.set_tensor_address(name, tensor.data_ptr())
        clean = torch.empty(tuple(self._context.get_tensor_shape("CLEAN")), device="cuda")
        self._context.set_tensor_address("CLEAN", clean.data_ptr())
        for _ in range(count):
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("the engine failed on the card")
        self._stream.synchronize()
        return clean


def _check_torch(checkpoint: Path, frame: tuple[int, int]) -> dict[str, Any]:
    """The FP16 graph in torch: real FP16 arithmetic of a card, and a speed that an engine must beat."""
    import torch

    from exposure.export.precision import Traced
    from exposure.export.recipes import Settings, plan_attempts
    from exposure.networks import load_checkpoint
    from exposure.sensor import plane_side

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # FP32 layers stay so
    network = load_checkpoint(checkpoint)
    height, width = (plane_side(side, network.multiple) for side in (frame[1], frame[0]))
    numbers = plan_attempts(network, Settings(frames=(frame,)))[0]
    half: Any = Traced(network, half=True, islands=numbers.islands).cuda()
    half = half.to(memory_format=torch.channels_last)

    def run(*arrays: Any) -> Any:
        with torch.no_grad():
            return half(*(torch.from_numpy(array).cuda() for array in arrays)).cpu().numpy()

    image = torch.rand(1, 4, height, width, device="cuda").to(memory_format=torch.channels_last)
    gain = torch.tensor([0.01], device="cuda")
    with torch.no_grad():
        measured = {"numbers": str(numbers), "ms_per_pass": _milliseconds(lambda: half(image, gain, image))}
    return measured | _gated(network, run, "f16", (frame[1], frame[0]), "torch with an FP16 body")


def _milliseconds(work: Callable[[], Any]) -> dict[str, float]:
    """Median and extremes of ROUNDS passes, by CUDA events, after a warm-up."""
    import torch

    def one_pass() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    for _ in range(3):
        work()
    clock_under_load(one_pass)  # clocks rise only then
    times = [one_pass() for _ in range(ROUNDS)]
    return {
        "median": round(statistics.median(times), 3),
        "least": round(min(times), 3),
        "most": round(max(times), 3),
    }


def _missing(modules: tuple[str, ...]) -> str:
    """What a check lacks, as the end of a sentence; "" where it lacks nothing."""
    absent = [name for name in modules if not _importable(name)]
    if absent:
        return f"{', '.join(absent)} cannot be imported"
    import torch

    return "" if torch.cuda.is_available() else "torch finds no NVIDIA card here"


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # whatever is wrong with it, it cannot be used
        return False
    return True


def _guarded(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return check()
    except Exception as error:  # one check that breaks must not hide the others
        return {"outcome": FAILED, "why": f"{type(error).__name__}: {error}"}


def _absent(why: str) -> dict[str, Any]:
    return {"outcome": NOT_CHECKED, "why": why}


def main() -> int:
    """Print what was found; 1 when a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frame", default="4240x2832", help="width x height of the mosaic")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT / "checkpoints" / "unet.safetensors")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    if not _importable("exposure.export"):
        package_in_build()
    from exposure.files import write_text

    width, height = (int(side) for side in options.frame.split("x"))
    outcomes = check_engines(options.checkpoint, (width, height))
    for name, found in outcomes.items():
        print(f"{found['outcome']:>12}  {name}: {found['why']} {found.get('ms_per_pass', '')}")
    if options.out:
        write_text(options.out, json.dumps(outcomes, indent=2) + "\n")
    return 1 if any(found["outcome"] == FAILED for found in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
