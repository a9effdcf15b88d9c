"""Which of the model repository's configurations this machine serves, and why."""

from dataclasses import dataclass
from pathlib import Path

from exposure.kernels.machine import (
    Machine,
    has_bf16,
    library_version,
    mismatch,
    rtx_hindrance,
    this_machine,
    unnamed_card,
)
from exposure.kernels.manifest import EngineError, build_command, parsed_manifest

from .triton import ServerError

ENGINES = {"cpu": "openvino", "rtx": "tensorrt-rtx"}


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
    card, hindrance = machine.card, rtx_hindrance(machine) or _misfit(denoiser / "tensorrt-rtx", machine)
    if "tensorrt-rtx" in installed and card and not hindrance:
        return Configuration("rtx", f"{card} is here, and an engine of TensorRT for RTX")
    if "tensorrt-rtx" in installed and card and "openvino" not in installed:
        raise ServerError(f"the only engine, of TensorRT for RTX, cannot run on {card}: {hindrance}")
    if "openvino" in installed:
        reason = "no NVIDIA card is here"
        if card:
            reason = f"{card} is here, but {_unused(repository, installed, machine, hindrance)}"
        return Configuration("cpu", f"{reason}; the engine for the processor is used{_slower(denoiser / 'openvino')}")
    if "tensorrt" in installed:
        raise ServerError(f"the TensorRT engine in {denoiser} is served by NVIDIA's container: deploy/README.md")
    if "tensorrt-rtx" in installed:
        command = build_command(repository, "openvino")
        raise ServerError(
            f"the only engine in {denoiser} needs an NVIDIA card, and none is here; build one with: {command}"
        )
    lack = f"no engine in {denoiser}" if denoiser.parent.is_dir() else f"{repository} is no model repository"
    raise ServerError(f"{lack}; build one with: {build_command(repository)}")


def _misfit(folder: Path, machine: Machine) -> str:
    """Why an engine for other cards, or of another version, cannot run on the card that is here; "" where it can."""
    if not machine.card:
        return ""
    try:
        manifest = parsed_manifest(folder)
        problem = mismatch(manifest.runs_on, machine, library_version(folder.name))
    except EngineError:  # none, or one that the server itself refuses
        return ""
    return f"the engine of TensorRT for RTX {problem}; rebuild with: {manifest.rebuild}" if problem else ""


def _slower(folder: Path) -> str:
    """The end of a sentence, where an engine that was built here may be faster."""
    if not has_bf16():
        return ""
    try:
        manifest = parsed_manifest(folder)  # the server itself looks at the files
    except EngineError:  # which it tells
        return ""
    if manifest.convolutions or manifest.built_from.get("processor", "").endswith("with BF16"):
        return ""
    return f", which was built on a processor without BF16 and may be slower than one built here: {manifest.rebuild}"


def _unused(repository: Path, installed: set[str], machine: Machine, hindrance: str) -> str:
    if "tensorrt-rtx" in installed:
        return hindrance
    if "tensorrt" in installed:
        return "a TensorRT engine is served by NVIDIA's container alone (deploy/README.md)"
    if unnamed := unnamed_card(machine):
        return f"{unnamed}, and TensorRT's engines are served by NVIDIA's container (deploy/README.md)"
    return f"no engine for it (build one with: {build_command(repository, 'tensorrt-rtx')})"
