"""What this machine has for the checks on a card, found without importing any of it; the standard library alone.

python benchmarks/gpu_machine.py    prints the card, or one sentence and exit status 1 where there is none
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

CUDA_HOME = Path("/usr/local/cuda")
LOAD_S = 0.5  # a card's clocks rise only under load
DRIVER = "libcuda.so.1"
OURS = "exposure"  # of `found`: the version of the project
COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute, major and minor
PACKAGES = {
    "torch": ("torch",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx", "tensorrt_rtx"),
    "pytriton": ("nvidia-pytriton",),
    "tritonclient": ("tritonclient",),
}


class NoCardError(RuntimeError):
    """No NVIDIA card can be used here; the message is one sentence."""


class NotCheckedError(Exception):
    """Something that a check needs is not here; the message says what."""


@dataclass(frozen=True)
class Card:
    name: str
    capability: str
    cuda: str  # the newest version that the driver knows

    @property
    def slug(self) -> str:
        """The name as a file's: nvidia_rtx_a5000."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


def first_card(library: str = DRIVER) -> Card:
    """The first card, asked of the driver itself. Raises NoCardError."""
    needed = "gpu-check needs an NVIDIA card and its driver; nothing was checked"
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise NoCardError(f"{library} is not on this machine, so there is no driver: {needed}") from error
    number, said = ctypes.c_int(), driver.cuInit(0)
    if said or driver.cuDeviceGetCount(ctypes.byref(number)) or number.value < 1:
        raise NoCardError(f"the driver finds no card (cuInit says {said}): {needed}")
    name, device, values = ctypes.create_string_buffer(256), ctypes.c_int(), []
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, 256, device)
    for attribute in COMPUTE_CAPABILITY:
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        values.append(number.value)
    driver.cuDriverGetVersion(ctypes.byref(number))
    return Card(name.value.decode(), f"{values[0]}.{values[1]}", f"{number.value // 1000}.{number.value % 1000 // 10}")


def found() -> dict[str, str]:
    """Version or place of everything that a check needs; "not found" where it is not there."""
    tools = {"driver": _driver(), "nvcc": _nvcc_version(), "compute-sanitizer": program("compute-sanitizer") or ""}
    packages = {name: _package(name, distributions) for name, distributions in PACKAGES.items()}
    others = {"python": sys.version.split()[0], OURS: _project()}
    return {name: text or "not found" for name, text in (tools | packages | others).items()}


def program(name: str) -> str | None:
    """On the path, beside this Python, or where NVIDIA's toolkit installs it."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent), str(CUDA_HOME / "bin")]
    return shutil.which(name, path=os.pathsep.join(places))


def nvcc() -> str | None:
    """The compiler: CUDACXX, else as any program."""
    return os.environ.get("CUDACXX") or program("nvcc")


def has_openvino_headers() -> bool:
    """Whether the backend can be compiled: its libraries alone, which suffice at run time, do not."""
    spec = find_spec("openvino")
    return any((Path(place) / "cmake").is_dir() for place in (spec and spec.submodule_search_locations) or [])


def clock_under_load(work: Callable[[], object], load_s: float = LOAD_S) -> int | None:
    """Repeat the work for half a second or more; MHz of the multiprocessors meanwhile, where nvidia-smi tells them."""
    teller, flags = program("nvidia-smi"), ["--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    began, smi = time.monotonic(), None
    while (loaded_s := time.monotonic() - began) < load_s or (smi and smi.poll() is None and loaded_s < 10 * load_s):
        work()
        if smi is None and teller and loaded_s > load_s / 2:  # clocks have risen
            command = [teller, f"--id={id_of_first_card()}", *flags]
            smi = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if smi is None:
        return None
    smi.kill()  # where it hangs
    said = smi.communicate()[0].strip()
    return int(said) if said.isdigit() else None


def id_of_first_card(library: str = DRIVER) -> str:
    """CUDA's first card for nvidia-smi, which counts in another order and ignores CUDA_VISIBLE_DEVICES; else "0"."""
    device, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    try:
        driver = ctypes.CDLL(library)
        said = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
        said = said or driver.cuDeviceGetPCIBusId(address, len(address), device)
    except (OSError, AttributeError):
        return "0"
    return "0" if said else address.value.decode()


def _project() -> str:
    """Of the sources: an editable installation tells the version that it was made of."""
    source = Path(__file__).resolve().parents[1] / "exposure" / "__init__.py"
    found = re.search(r'__version__ = "([^"]+)"', source.read_text())
    return found[1] if found else ""


def _nvcc_version() -> str:
    release = re.search(r"release ([\d.]+)", _output(nvcc() or "", "--version"))
    return release[1] if release else ""


def _driver() -> str:
    return _output(program("nvidia-smi") or "", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def _output(*command: str) -> str:
    if not command[0]:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _package(module: str, distributions: tuple[str, ...]) -> str:
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "version unknown" if find_spec(module) else ""


if __name__ == "__main__":
    try:
        card = first_card()
    except NoCardError as error:
        sys.exit(f"gpu-check: {error}")
    print(f"{card.name}, compute capability {card.capability}, CUDA {card.cuda}")
