"""One NVIDIA card through the C ABI of the kernels' own CUDA library: no torch, no CuPy."""

import ctypes
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Card(ctypes.Structure):
    """csrc/kernels_cuda.h."""

    _fields_ = (
        ("name", ctypes.c_char * 256),
        ("major", ctypes.c_int32),
        ("minor", ctypes.c_int32),
        ("driver", ctypes.c_int32),
        ("runtime", ctypes.c_int32),
        ("bytes", ctypes.c_uint64),
    )


class Buffer:
    """An array in the card's memory."""

    def __init__(self, address: ctypes.c_void_p, shape: tuple[int, ...], dtype: Any) -> None:
        self.address, self.shape, self.dtype = address, shape, np.dtype(dtype)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Gpu:
    """A card, one stream on it, and what was allocated; all given back at the end of the block.

    library: libexposure_kernels_cuda.so, loaded. Raises OSError, one sentence, for every error of CUDA's.
    """

    def __init__(self, library: Any, device: int = 0) -> None:
        self._cuda = library
        self._cuda.exposure_cuda_error.restype = ctypes.c_char_p
        self._stream = ctypes.c_void_p()
        self._buffers: list[Buffer] = []
        self.call("use", device)
        self.card = Card()
        self.call("describe", device, ctypes.byref(self.card))
        self.call("open", ctypes.byref(self._stream))

    def __enter__(self) -> "Gpu":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back."""
        self.release()
        self._cuda.exposure_cuda_close(self._stream)

    def call(self, name: str, *arguments: Any) -> None:
        """One function of the C ABI, checked."""
        error = getattr(self._cuda, f"exposure_cuda_{name}")(*arguments)
        if error:
            raise OSError(f"exposure_cuda_{name}: CUDA error {error}, {self._cuda.exposure_cuda_error(error).decode()}")

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        buffer = Buffer(ctypes.c_void_p(), shape, dtype)
        self.call("allocate", ctypes.byref(buffer.address), ctypes.c_uint64(buffer.nbytes))
        self._buffers.append(buffer)
        return buffer

    def upload(self, array: NDArray[Any]) -> Buffer:
        array = np.ascontiguousarray(array)
        buffer = self.empty(array.shape, array.dtype)
        self._copy(buffer.address, ctypes.c_void_p(array.ctypes.data), buffer.nbytes)
        self.wait()
        return buffer

    def download(self, buffer: Buffer) -> NDArray[Any]:
        array = np.empty(buffer.shape, buffer.dtype)
        self._copy(ctypes.c_void_p(array.ctypes.data), buffer.address, buffer.nbytes)
        self.wait()
        return array

    def copy(self, to: Buffer, source: Buffer) -> None:
        """Queue a copy from one buffer to another."""
        self._copy(to.address, source.address, source.nbytes)

    def run(self, kernel: str, *arguments: Any) -> None:
        """Queue a kernel; buffers, structures and numbers in the order of the C ABI."""
        self.call(kernel, *(_as_argument(argument) for argument in arguments), self._stream)

    def mark(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self.call("mark", ctypes.byref(event), self._stream)
        return event

    def seconds_between(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> float:
        milliseconds = ctypes.c_float()
        self.call("between", first, second, ctypes.byref(milliseconds))
        return milliseconds.value / 1e3

    def wait(self) -> None:
        self.call("wait", self._stream)

    def release(self) -> None:
        """Give the memory of every buffer back."""
        while self._buffers:
            self.call("free", self._buffers.pop().address)

    def _copy(self, to: ctypes.c_void_p, source: ctypes.c_void_p, nbytes: int) -> None:
        self.call("copy", to, source, ctypes.c_uint64(nbytes), self._stream)


def _as_argument(argument: Any) -> Any:
    if isinstance(argument, Buffer):
        return argument.address
    return ctypes.byref(argument) if isinstance(argument, ctypes.Structure) else argument
