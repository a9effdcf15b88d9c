"""The kernels as functions of arrays: what sensor.py and denoise.py define, fast. Every refusal is a sentence.

Arrays are NumPy's or torch's, on a CPU or a GPU; results are of the same kind and lie in the same place. Any other
array on a GPU (CuPy, JAX, Numba) is copied and gives torch tensors, which DLPack hands back. On a GPU,
kernels are queued on torch's current stream.
"""

import ctypes
import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exposure.schedule import MOST_ELECTRONS, Step, unroll
from exposure.sensor import Sensor, check_planes, plane_side, shape_text

from .arrays import Array, address, checked, empty, images, lies_on_gpu, run
from .library import Field, Injection, Layout, library

Planes: TypeAlias = Literal["float32", "float16"]
PLANES: dict[Planes, int] = {"float32": 0, "float16": 1}  # csrc/kernels.h, Planes


def pack(mosaic: Array, sensor: Sensor, ratio: float = 1.0, *, multiple: int = 1, dtype: Planes = "float32") -> Array:
    """`exposure.sensor.pack`, bit for bit: [H, W] DN, uint16, to [4, h, w] signal, padded to `multiple`.

    dtype: of the planes; "float16" is the FP32 result rounded to nearest, ties to even.
    """
    mosaic = checked("mosaic", mosaic, "uint16", 2)
    if min(mosaic.shape) < 2 or multiple < 1:
        raise ValueError(f"mosaic is {shape_text(mosaic.shape)}, multiple {multiple}; they must be at least 2x2 and 1")
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio is {ratio:g}; it must be positive and finite")
    h, w = (plane_side(side, multiple) for side in mosaic.shape)
    _check_dtype(dtype)
    image = empty((4, h, w), dtype, mosaic)
    factors = [ratio / (sensor.white - black) for black in sensor.black]
    layout = _layout(sensor, mosaic.shape, (h, w), factors)
    run("pack", mosaic, address(mosaic), ctypes.byref(layout), address(image), PLANES[dtype])
    return image


def unpack(image: Array, sensor: Sensor, shape: tuple[int, ...]) -> Array:
    """`exposure.sensor.unpack`, bit for bit: [4, h, w] signal, float32, to [H, W] DN."""
    image = checked("image", image, "float32", 3)
    check_planes(tuple(image.shape), shape)
    mosaic = empty((shape[0], shape[1]), "uint16", image)
    layout = _layout(sensor, shape, image.shape[1:], [sensor.white - black for black in sensor.black])
    run("unpack", image, address(image), ctypes.byref(layout), address(mosaic))
    return mosaic


def poisson(rate: Array, *, seed: int, index: int, origin: tuple[int, int] = (0, 0)) -> Array:
    """One Poisson count per pixel of [..., 4, h, w] rates, in electrons; each image of a batch as if it were alone.

    The count of a pixel depends on its rate, the seed, the index of the injection, its plane and its place in the whole
    frame (origin: row and column of the mosaic there, even), and on nothing else: tile, batch, threads or device.
    Indices come in pairs: 1 mirrors the random numbers of 0, 3 those of 2, so that where one count is high the other
    tends to be low. Even indices alone are independent.
    """
    rate = checked("rate", rate, "float32")
    if rate.ndim < 3 or rate.shape[-3] != 4:
        raise ValueError(f"rate is {shape_text(rate.shape)}; it must end in 4xhxw")
    if not bool((rate <= MOST_ELECTRONS).all()):
        raise ValueError(f"rate reaches {float(rate.max()):g} electrons; a count in FP32 ends at {MOST_ELECTRONS:g}")
    counts, field = empty(rate.shape, "float32", rate), _field(rate.shape[-2:], seed, index, origin)
    for image in images(rate):
        run("poisson", rate, address(rate[image]), ctypes.byref(field), address(counts[image]))
    return counts


def expose(
    clean: Array,
    original: Array,
    step: Step,
    *,
    seed: int,
    index: int,
    origin: tuple[int, int] = (0, 0),
    dtype: Planes = "float32",
) -> Array:
    """`exposure.denoise.expose` with its draw, in one sweep: [..., 4, h, w] signal.

    index: of the injection, as in `poisson`.
    dtype: of the result; "float16" is the FP32 result rounded to nearest, ties to even.
    """
    clean, original = checked("clean", clean, "float32"), checked("original", original, "float32")
    if clean.ndim < 3 or clean.shape[-3] != 4 or clean.shape != original.shape:
        shapes = f"{shape_text(clean.shape)} and {shape_text(original.shape)}"
        raise ValueError(f"clean and original are {shapes}; both must be one shape that ends in 4xhxw")
    if lies_on_gpu(clean) != lies_on_gpu(original) or (lies_on_gpu(clean) and clean.device != original.device):
        raise ValueError("clean and original lie on different devices; move one to the other")
    if not 0 <= step.photons <= MOST_ELECTRONS:
        raise ValueError(f"photons is {step.photons:g}; it must lie between 0 and {MOST_ELECTRONS:g} electrons")
    _check_dtype(dtype)
    following, field = empty(clean.shape, dtype, clean), _field(clean.shape[-2:], seed, index, origin)
    injection = Injection(step.photons, step.keep, step.per_photon)
    for image in images(clean):
        arrays = (address(clean[image]), address(original[image]), ctypes.byref(injection), ctypes.byref(field))
        run("expose", clean, *arrays, address(following[image]), PLANES[dtype])
    return following


def schedule(ratio: float, gain: float, saturation: float, passes: int, *, photon_unit: float) -> NDArray[np.float32]:
    """`exposure.schedule.unroll` as served: [passes, 4], a Step's fields in a row. Checked as the definition checks."""
    unroll(ratio, gain, saturation, passes, photon_unit=photon_unit)
    rows = np.empty((passes, 4), np.float32)
    doubles = (ctypes.c_double(value) for value in (ratio, gain, saturation, photon_unit))
    library().exposure_schedule(*doubles, passes, address(rows))
    return rows


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Four random words of Philox4x32-10; counter: four words, key: two."""
    counter, key = checked("counter", counter, "uint32", 1), checked("key", key, "uint32", 1)
    if counter.shape != (4,) or key.shape != (2,):
        raise ValueError(f"counter and key have {counter.size} and {key.size} words; they must have 4 and 2")
    words = np.empty(4, np.uint32)
    library().exposure_cpu_philox(address(counter), address(key), address(words))
    return words


def _check_dtype(dtype: str) -> None:
    if dtype not in PLANES:
        raise ValueError(f'dtype is "{dtype}"; planes are stored as {" or ".join(PLANES)}')


def _layout(sensor: Sensor, shape: tuple[int, ...], planes: tuple[int, ...], factors: list[float]) -> Layout:
    positions = [2 * row + column for row, column in sensor.planes]
    four = ctypes.c_float * 4
    return Layout(*shape, *planes, (ctypes.c_int32 * 4)(*positions), four(*sensor.black), four(*factors))


def _field(planes: tuple[int, ...], seed: int, index: int, origin: tuple[int, int]) -> Field:
    row, column = (int(place) for place in origin)
    if not 0 <= seed < 2**64 or not 0 <= index < 2**30:
        raise ValueError(f"seed and index are {seed} and {index}; they must be unsigned, of 64 and 30 bits")
    if min(row, column) < 0 or max(row, column) >= 2**31:
        raise ValueError(f"origin is {[row, column]}; it must lie in the frame, at 0 or more, in 31 bits")
    return Field(seed, index, row // 2, column // 2, *planes)
