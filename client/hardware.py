"""Which of the model repository's configurations this machine serves, and why."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from exposure.export.machine import Machine, outdated_driver, this_machine
from exposure.kernels.library import CUDA, built

from .triton import ServerError

ENGINES = {"cpu": "openvino", "rtx": "tensorrt-rtx"}
RTX_MODULES = ("tensorrt_rtx_bindings", "cupy")


@dataclass(frozen=True)
class Configuration:
    """config_name: for --model-config-name. why: the end of a sentence."""

    config_name: str
    why: str


def choose_config(repository: Path) -> Configuration:
    """The configuration for the engines in a repository and the card in this machine.

    Raises ServerError where nothing fits, or where a choice would leave a card unused without saying so.
    """
    denoiser = repository / "denoiser" / "1"
    installed = {path.parent.name for path in denoiser.glob("*/manifest.json")}
    machine = this_machine()
    card, hindrance = machine.card, _hindrance(machine)
    if "tensorrt-rtx" in installed and card and not hindrance:
        return Configuration("rtx", f"{card} is here, and an engine of TensorRT for RTX")
    if "tensorrt-rtx" in installed and card and "openvino" not in installed:
        raise ServerError(f"the engine for {card} cannot run: {hindrance}")
    if "openvino" in installed:
        reason = "no NVIDIA card is here"
        if card:
            reason = f"{card} is here, but {_unused(installed, hindrance)}"
        return Configuration("cpu", f"{reason}; the engine for the processor is used")
    if "tensorrt" in installed:
        raise ServerError(f"the TensorRT engine in {denoiser} is served by NVIDIA's container: deploy/README.md")
    if "tensorrt-rtx" in installed:
        raise ServerError(f"the only engine in {denoiser} needs an NVIDIA card, and none is here; {_build('openvino')}")
    raise ServerError(f"no engine in {denoiser}; {_build()}")


def _hindrance(machine: Machine) -> str:
    """Why TensorRT for RTX cannot be served on the card that is here; "" where it can."""
    outdated = outdated_driver(machine)
    if outdated:
        return outdated
    modules = [module for module in RTX_MODULES if find_spec(module) is None]
    if modules:
        are, them = ("is", "it") if len(modules) == 1 else ("are", "them")
        return f"{' and '.join(modules)} {are} missing, and the engine needs {them}: pip install -e '.[rtx]'"
    try:
        built(CUDA, "where nvcc is on PATH or named in CUDACXX")
    except OSError as error:
        return str(error)
    return ""


def _unused(installed: set[str], hindrance: str) -> str:
    if "tensorrt-rtx" in installed:
        return hindrance
    if "tensorrt" in installed:
        return "a TensorRT engine is served by NVIDIA's container alone (deploy/README.md)"
    return f"no engine for it ({_build('tensorrt-rtx')})"


def _build(target: str = "") -> str:
    return f"build one with: python export/build_engine.py{f' --target {target}' if target else ''}"
