"""The CUDA kernels, for the checks on a card: found where they are, else built, else said to be missing."""

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_machine import NotCheckedError, has_openvino_headers, nvcc, program

PROJECT = Path(__file__).resolve().parents[1]
BUILD = PROJECT / "build" / "gpu_check"
CUDA_LIBRARY = BUILD / "exposure" / "kernels" / "libexposure_kernels_cuda.so"
TOOL_TIMEOUT_S = 540.0


def build_check() -> dict[str, Any]:
    """The installed CUDA kernels, if as new as their sources; else built now by the project's own CMake file."""
    if find_spec("numpy") is None:  # nor could what is built be imported
        raise NotCheckedError(f"NumPy is not here, and the package needs it: {sys.executable} -m pip install numpy")
    if ready():
        return {"kernels": "as installed"}
    if nvcc() is None:
        raise NotCheckedError(f"{_unbuilt()} and no nvcc is on PATH, in CUDACXX or in /usr/local/cuda")
    if program("cmake") is None:
        raise NotCheckedError(f"{_unbuilt()} and no cmake is here to build them with")
    prefix = _prefix()
    backend = "ON" if has_openvino_headers() else "OFF"
    options = ["-DEXPOSURE_CUDA=ON", f"-DEXPOSURE_BACKEND={backend}"]
    options += [f"-DCMAKE_CUDA_COMPILER={nvcc()}", f"-DPython_EXECUTABLE={sys.executable}"]
    _cmake("-S", PROJECT / "kernels", "-B", BUILD / "cmake", *options)
    _cmake("--build", BUILD / "cmake", "--parallel")
    _cmake("--install", BUILD / "cmake", "--prefix", prefix)
    importlib.invalidate_caches()
    if not built():
        raise RuntimeError(f"the build left no CUDA kernels in {prefix}")
    return {"kernels": "built now", "backend": backend} | ({"package": str(BUILD)} if prefix == BUILD else {})


def built() -> bool:
    """Whether the package that is imported here has kernels for the processor and for a card."""
    try:
        library = importlib.import_module("exposure.kernels.library")
        return all(library.built(name) for name in (library.NAME, library.CUDA))
    except (ImportError, OSError):
        return False


def ready() -> bool:
    """Whether the kernels are there, and as new as their sources."""
    return built() and not _outdated()


def use_what_was_built(package: str | None = None) -> None:
    """In all that follows, and in the processes it starts.

    package: where a build has put it; without one, what an earlier build left in build/, if no kernels are installed,
    and the package without kernels, if it is not: engines and peers need none.
    """
    if package is None and not built() and (CUDA_LIBRARY.is_file() or find_spec("exposure") is None):
        package = str(package_in_build())
    if package:
        os.environ["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])


def package_in_build() -> Path:
    """The layout that the installed package has, of links to the sources, for an environment that pip cannot reach."""
    package = BUILD / "exposure"
    kernels = package / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    links = {package / source.name: source for source in (PROJECT / "exposure").iterdir()}
    links |= {package / name: PROJECT / name for name in ("client", "export", "training")}
    links |= {kernels / source.name: source for source in (PROJECT / "kernels").glob("*.py")}
    for link, source in links.items():
        if source.name != "__pycache__":
            _link(link, source)
    for name in [name for name in sys.modules if name.partition(".")[0] == "exposure"]:
        del sys.modules[name]
    sys.path.insert(0, str(BUILD))
    return BUILD


def _link(link: Path, source: Path) -> None:
    """Relative, so that a copy of the whole tree has its own; one that leads elsewhere is replaced."""
    target = Path(os.path.relpath(source, link.parent))
    if link.is_symlink() and link.readlink() != target:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(target)


def _outdated() -> bool:
    """Whether a source is newer than what was built of it, as after an update that found no nvcc."""
    library = importlib.import_module("exposure.kernels.library")
    oldest = min(library.built(name).stat().st_mtime for name in (library.NAME, library.CUDA))
    sources = [PROJECT / "kernels" / "CMakeLists.txt", *(PROJECT / "kernels" / "csrc").iterdir()]
    return any(source.stat().st_mtime > oldest for source in sources)


def _unbuilt() -> str:
    return f"the CUDA kernels are {'older than their sources' if built() else 'not built'}"


def _prefix() -> Path:
    """Where to install what is built: beside the installed CPU kernels; else a package put together in build/."""
    try:
        library = importlib.import_module("exposure.kernels.library")
        return Path(library.built(library.NAME)).parents[2]
    except (ImportError, OSError):
        return package_in_build()


def _cmake(*arguments: Any) -> None:
    command = [program("cmake"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    if result.returncode:
        raise RuntimeError(f"cmake {arguments[0]} failed: {' '.join(result.stderr.split())[-600:]}")
