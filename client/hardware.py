"""Which of the model repository's configurations this machine serves, and why."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from exposure.kernels.library import CUDA, built

from .triton import ServerError

ENGINES = {"cpu": "openvino", "rtx": "tensorrt-rtx"}
CARDS = Path("/proc/driver/nvidia/gpus")
RTX_MODULES = ("tensorrt_rtx_bindings", "cupy")


@dataclass(frozen=True)
class Choice:
    """config_name: for --model-config-name. why: the end of a sentence."""

    config_name: str
    why: str


def choose_config(repository: Path) -> Choice:
    """The configuration for the engines in a repository and the card in this machine.

    Raises ServerError where nothing fits, or where a choice would leave a card unused without saying so.
    """
    denoiser = repository / "denoiser" / "1"
    installed = {path.parent.name for path in denoiser.glob("*/manifest.json")}
    card = card_here()
    missing = [module for module in RTX_MODULES if find_spec(module) is None]
    if not _has_cuda_kernels():
        missing.append("the CUDA kernels (which pip builds where nvcc is)")
    if "tensorrt-rtx" in installed and card and not missing:
        return Choice("rtx", f"{card} is here, and an engine of TensorRT for RTX")
    if "tensorrt-rtx" in installed and card and "openvino" not in installed:
        raise ServerError(f"{' and '.join(missing)} not installed, which the engine needs: pip install -e '.[rtx]'")
    if "openvino" in installed:
        reason = "no NVIDIA card is here"
        if card:
            reason = f"{card} is here, but {_unused(installed, missing)}"
        return Choice("cpu", f"{reason}; the engine for the processor is used")
    if "tensorrt" in installed:
        raise ServerError(f"the TensorRT engine in {denoiser} is served by NVIDIA's container: deploy/README.md")
    if "tensorrt-rtx" in installed:
        raise ServerError(f"the only engine in {denoiser} needs an NVIDIA card, and none is here; {_build('openvino')}")
    raise ServerError(f"no engine in {denoiser}; {_build()}")


def _has_cuda_kernels() -> bool:
    try:
        return bool(built(CUDA))
    except OSError:
        return False


def card_here() -> str:
    """Name of the first NVIDIA card as its driver tells it; "" without one."""
    for information in sorted(CARDS.glob("*/information")):
        for line in information.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return ""


def _unused(installed: set[str], missing: list[str]) -> str:
    if "tensorrt-rtx" in installed:
        return f"{' and '.join(missing)} not installed (pip install -e '.[rtx]')"
    if "tensorrt" in installed:
        return "a TensorRT engine is served by NVIDIA's container alone (deploy/README.md)"
    return f"no engine for it ({_build('tensorrt-rtx')})"


def _build(target: str = "") -> str:
    return f"build one with: python export/build_engine.py{f' --target {target}' if target else ''}"
