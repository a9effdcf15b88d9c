"""Arrays as the kernels take them: NumPy's, torch's on a CPU or a GPU. Where an array lies, its kernel runs."""

import contextlib
import ctypes
import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from exposure.sensor import shape_text

from .library import check_cuda, cuda_library, library, threads

Array: TypeAlias = Any  # a NumPy array or a torch tensor


def checked(name: str, array: Array, dtype: str, dimensions: int | None = None) -> Array:
    """The array, dense, if it is of `dtype`, with `dimensions`, and not empty. Raises ValueError, one sentence."""
    array = _received(name, array)
    if not isinstance(array, np.ndarray) and array.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} lies on {array.device}; the kernels run on a CPU or an NVIDIA GPU")
    wrong = dimensions is not None and array.ndim != dimensions
    if dtype_name(array) != dtype or wrong or 0 in array.shape:
        wanted = f"{dtype} with {array.ndim if dimensions is None else dimensions} dimensions and not empty"
        raise ValueError(f"{name} is {dtype_name(array)} {shape_text(array.shape)}; it must be {wanted}")
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.detach().contiguous()


def dtype_name(array: Array) -> str:
    """NumPy's name of an array's type, such as uint16."""
    return str(array.dtype).removeprefix("torch.")


def empty(shape: tuple[int, ...], dtype: str, like: Array) -> Array:
    """A new array of the same kind and in the same place as `like`."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype)
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)


def images(array: Array) -> Iterator[tuple[int, ...]]:
    """Indices of the [4, h, w] images of a [..., 4, h, w] array."""
    return itertools.product(*(range(side) for side in array.shape[:-3]))


def address(array: Array) -> ctypes.c_void_p:
    """Of the first element."""
    return ctypes.c_void_p(array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr())


def run(kernel: str, place: Array, *arguments: Any) -> None:
    """Run a kernel where `place` lies: in all threads of this process, or queued on the GPU's current stream."""
    if not lies_on_gpu(place):
        getattr(library(), f"exposure_cpu_{kernel}")(*arguments, threads())
        return
    cuda = cuda_library()
    with _on_card_of(place) as (card, stream):
        check_cuda(cuda.exposure_cuda_use(card))
        check_cuda(getattr(cuda, f"exposure_cuda_{kernel}")(*arguments, ctypes.c_void_p(stream)))


def lies_on_gpu(array: Array) -> bool:
    """Whether its kernels are CUDA's."""
    return not isinstance(array, np.ndarray) and array.device.type == "cuda"


def _received(name: str, array: Array) -> Array:
    """The array itself, or a foreign array on a GPU (CuPy, JAX, Numba) as a torch tensor."""
    if isinstance(array, np.ndarray) or _is_tensor(array):
        return array
    if hasattr(array, "__dlpack__"):
        from torch.utils.dlpack import from_dlpack

        return _taken_over(from_dlpack(array))  # its owner's stream is waited for
    if hasattr(array, "__cuda_array_interface__"):
        import torch

        stream = array.__cuda_array_interface__.get("stream")
        if stream is not None:
            torch.cuda.ExternalStream(stream).synchronize()
        return _taken_over(torch.as_tensor(array, device="cuda"))
    raise TypeError(f"{name} is a {type(array).__name__}; it must be an array of NumPy, torch or a GPU")


def _taken_over(tensor: Array) -> Array:
    """A copy on a GPU, complete: a kernel is queued, and the owner may free or fill his memory before it has run."""
    if tensor.device.type != "cuda":
        return tensor
    import torch

    copy = tensor.clone()
    torch.cuda.current_stream(tensor.device).synchronize()
    return copy


@contextlib.contextmanager
def _on_card_of(tensor: Array) -> Iterator[tuple[int, int]]:
    """Number of the card that a tensor lies on, and torch's current stream there; torch's card is put back."""
    import torch

    with torch.cuda.device(tensor.device):
        yield tensor.device.index, torch.cuda.current_stream().cuda_stream


def _is_tensor(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "torch"  # without importing torch
