"""What an engine was built for and what this machine is: card, driver, library; and the sentence when they differ."""

import ctypes
import sys
import sysconfig
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from exposure.kernels.library import CUDA, built

LIBRARIES = {
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings",),
}
LEAST_CUDA, LEAST_DRIVER = 13, 580  # of the wheels that pyproject.toml names: tensorrt-rtx-cu13, cupy-cuda13x
PYTHON_LIBRARY = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
RTX_CARDS = (75, 80, 86, 89, 120, 121)  # what TensorRT for RTX 1.7 builds for without the card at hand
RTX_MODULES = ("tensorrt_rtx_bindings", "cupy")
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
AMPERE = 80  # compute capability 8.0, from which on TensorRT's portable plans run


@dataclass(frozen=True)
class Machine:
    """The first NVIDIA card as its driver describes it, all empty where there is none.

    compute_capability: "86" for 8.6. cuda: the newest CUDA that the driver runs. driver: its own version.
    """

    card: str = ""
    compute_capability: str = ""
    cuda: str = ""
    driver: str = ""


def this_machine() -> Machine:
    """Ask the driver, without any CUDA library and without making a context."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Machine()
    count, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Machine()
    cuda.cuDeviceGetName(name, len(name), 0)
    capability = ""
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0)
        capability += str(number.value)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    newest = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Machine(name.value.decode(), capability, newest, _driver())


def outdated_driver(machine: Machine) -> str:
    """Why TensorRT for RTX cannot run beside this machine's driver; "" where it can, and where there is no card."""
    if not machine.card or int(machine.cuda.partition(".")[0]) >= LEAST_CUDA:
        return ""
    return f"the driver knows CUDA {machine.cuda}; tensorrt-rtx needs driver {LEAST_DRIVER} or later"


def unnamed_card(machine: Machine) -> str:
    """The sentence where TensorRT for RTX builds for no such card; "" where it does, and where there is no card."""
    if not machine.card or int(machine.compute_capability) in RTX_CARDS:
        return ""
    return f"TensorRT for RTX is not for cards of compute capability {machine.compute_capability}"


def rtx_hindrance(machine: Machine) -> str:
    """Why TensorRT for RTX cannot be served on the card that is here; "" where it can, and where there is no card."""
    hindrance = outdated_driver(machine) or unnamed_card(machine)
    if hindrance:
        return hindrance
    modules = [module for module in RTX_MODULES if find_spec(module) is None]
    if modules:
        are, them = ("is", "it") if len(modules) == 1 else ("are", "them")
        return f"{' and '.join(modules)} {are} missing, and the engine needs {them}: pip install -e '.[rtx]'"
    try:
        built(CUDA)  # of pack, expose and unpack
    except OSError as error:
        return str(error)
    return python_backend_lacks()


def has_bf16() -> bool:
    """Whether this processor multiplies BF16 natively, as Linux tells it; OpenVINO takes longer to ask."""
    with suppress(OSError):
        return bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    return False


def python_backend_lacks() -> str:
    """What Triton's Python backend cannot do without on a card, as a sentence; "" where nothing is missing.

    This Python's library is where the server looks for it: in LIBDIR, or among the system's.
    """
    folder = sysconfig.get_config_var("LIBDIR") or ""
    if not Path(folder, PYTHON_LIBRARY).exists() and find_library(PYTHON_LIBRARY[3:].partition(".so")[0]) is None:
        return f"{PYTHON_LIBRARY} is not here, and Triton's Python backend needs it"
    try:
        ctypes.CDLL("libcuda.so")
    except OSError:
        return "Triton's Python backend opens the driver as libcuda.so, which is not here; link it to libcuda.so.1"
    return ""


def _driver() -> str:
    text = ctypes.create_string_buffer(80)
    with suppress(OSError):
        management = ctypes.CDLL("libnvidia-ml.so.1")
        if management.nvmlInit_v2() == 0 and management.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode()
    return ""


def library_version(target: str) -> str:
    """Version of the library that builds and runs engines of a target; "" where it is not installed."""
    for package in LIBRARIES.get(target, ()):
        with suppress(PackageNotFoundError):
            return version(package)
    return ""


def mismatch(built_for: dict[str, str], machine: Machine, library: str) -> str | None:
    """Why an engine cannot be trusted here, naming both sides; None where it can.

    built_for: `EngineManifest.runs_on`. library: version of the installed one. A plan runs on the version and the kind
    of card that it was built for, unless it was built to be portable; then on other cards too, TensorRT's on those
    since Ampere, and on newer versions.
    """
    name, its = built_for["library"], built_for["library_version"]
    portable = built_for.get("portable") == "yes"
    newer_library = portable and name == "tensorrt" and _parts(library) > _parts(its)
    if library != its and not newer_library:
        return f"was built by {name} {its}, and this machine has {f'{name} {library}' if library else f'no {name}'}"
    cards = built_for.get("compute_capability", "").split()
    if not cards:
        return None
    card = built_for.get("card") or "cards"
    wanted = f"{card} of compute capability {', '.join(cards)}"
    if not machine.card:
        return f"was built for {wanted}, and this machine has no NVIDIA card"
    newer = portable and name == "tensorrt" and int(machine.compute_capability) >= AMPERE
    if machine.compute_capability not in cards and not newer:
        return f"was built for {wanted}, and this machine has {machine.card} of {machine.compute_capability}"
    if built_for.get("card") and built_for["card"] != machine.card and not portable:
        return f"was built for {card}, and this machine has {machine.card}"
    return None


def _parts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
