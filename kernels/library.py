"""The compiled kernels: found, loaded and typed. Their arguments are checked in ops.py."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import exposure.kernels

NAME = "libexposure_kernels.so"
CUDA = "libexposure_kernels_cuda.so"
BACKEND = "libtriton_exposure.so"


class Layout(ctypes.Structure):
    """csrc/bayer.cuh: how a mosaic lies in its planes."""

    _fields_ = (
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("plane_height", ctypes.c_int32),
        ("plane_width", ctypes.c_int32),
        ("position", ctypes.c_int32 * 4),
        ("black", ctypes.c_float * 4),
        ("factor", ctypes.c_float * 4),
    )


class Injection(ctypes.Structure):
    """csrc/step.cuh: the floats of a step that an injection needs."""

    _fields_ = (("photons", ctypes.c_float), ("keep", ctypes.c_float), ("per_photon", ctypes.c_float))


class Field(ctypes.Structure):
    """csrc/kernels.h: where the noise of an image lies."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("index", ctypes.c_uint32),  # of the injection, counted from 0
        ("row", ctypes.c_int32),
        ("column", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
    )


@functools.cache
def library() -> Any:
    """The CPU kernels. Raises OSError, one sentence, where they were not built."""
    return ctypes.CDLL(str(built(NAME)))


@functools.cache
def cuda_library() -> Any:
    """The kernels on a GPU. Raises OSError, one sentence, where they were not built."""
    cuda = ctypes.CDLL(str(built(CUDA)))
    cuda.exposure_cuda_error.restype = ctypes.c_char_p
    return cuda


def check_cuda(error: int) -> None:
    """Raise OSError, one sentence, for anything but 0."""
    if error:
        raise OSError(f"CUDA error {error}: {cuda_library().exposure_cuda_error(error).decode()}")


def built(name: str) -> Path:
    """Where a compiled library lies. Raises OSError, one sentence, where it was not built."""
    found = _found(name)
    if found is None:
        need = "where nvcc is on PATH or named in CUDACXX" if name == CUDA else "which needs a C++17 compiler"
        raise OSError(f"{name} is not built; install the project with pip, {need}")
    return found


def has_cuda_library() -> bool:
    """Whether the kernels on a GPU were built; pip leaves them out where there is no nvcc."""
    return _found(CUDA) is not None


def _found(name: str) -> Path | None:
    # an editable install keeps the sources in the tree and the library in site-packages: look in both
    return next((Path(folder) / name for folder in exposure.kernels.__path__ if (Path(folder) / name).is_file()), None)


@functools.cache
def threads(root: str = "") -> int:
    """CPU cores that this process may use: those of its affinity, and no more than the quota of its control group.

    root: of the folders /proc and /sys that are asked.
    """
    cores: int = library().exposure_cpu_cores(os.fsencode(root))
    return cores
