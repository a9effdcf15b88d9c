"""The kernels as functions of NumPy arrays: what sensor.py and denoise.py define, fast. Every refusal is a sentence."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exposure.schedule import Step, unroll
from exposure.sensor import Sensor, shape_text

from .library import Field, Injection, Layout, library, threads

LARGEST_RATE = 2.0**24  # electrons; beyond, FP32 cannot count


def pack(mosaic: NDArray[np.uint16], sensor: Sensor, ratio: float = 1.0, *, multiple: int = 1) -> NDArray[np.float32]:
    """`exposure.sensor.pack`, bit for bit: [H, W] DN to [4, h, w] signal, padded to `multiple`."""
    mosaic = _checked("mosaic", mosaic, np.uint16, 2)
    if min(mosaic.shape) < 2 or multiple < 1:
        raise ValueError(f"mosaic is {shape_text(mosaic.shape)}, multiple {multiple}; they must be at least 2x2 and 1")
    h, w = (-(-side // (2 * multiple)) * multiple for side in mosaic.shape)
    image = np.empty((4, h, w), np.float32)
    factors = [ratio / (sensor.white - black) for black in sensor.black]
    layout = _layout(sensor, mosaic.shape, (h, w), factors)
    library().exposure_cpu_pack(_address(mosaic), ctypes.byref(layout), _address(image), threads())
    return image


def unpack(image: NDArray[np.float32], sensor: Sensor, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """`exposure.sensor.unpack`, bit for bit: [4, h, w] signal to [H, W] DN."""
    image = _checked("image", image, np.float32, 3)
    height, width = shape
    if image.shape[0] != 4 or 2 * image.shape[1] < height or 2 * image.shape[2] < width:
        raise ValueError(f"image is {shape_text(image.shape)}; a {height}x{width} mosaic needs 4 half-size planes")
    mosaic = np.empty((height, width), np.uint16)
    layout = _layout(sensor, shape, image.shape[1:], [sensor.white - black for black in sensor.black])
    library().exposure_cpu_unpack(_address(image), ctypes.byref(layout), _address(mosaic), threads())
    return mosaic


def poisson(
    rate: NDArray[np.float32], *, seed: int, step: int, origin: tuple[int, int] = (0, 0)
) -> NDArray[np.float32]:
    """One Poisson count per pixel of [..., 4, h, w] rates, in electrons; each image of a batch as if it were alone.

    The count of a pixel depends on its rate, the seed, the step, its plane and its place in the whole frame (origin:
    row and column of the mosaic there, even), and on nothing else: not on tile, batch, threads or device.
    """
    rate = _checked("rate", rate, np.float32, rate.ndim)
    if rate.ndim < 3 or rate.shape[-3] != 4:
        raise ValueError(f"rate is {shape_text(rate.shape)}; it must end in 4xhxw")
    if not (rate <= LARGEST_RATE).all():
        raise ValueError(f"rate reaches {np.max(rate):g} electrons; a count in FP32 ends at {LARGEST_RATE:g}")
    counts, field = np.empty_like(rate), _field(rate.shape[-2:], seed, step, origin)
    for image in np.ndindex(rate.shape[:-3]):
        library().exposure_cpu_poisson(_address(rate[image]), ctypes.byref(field), _address(counts[image]), threads())
    return counts


def expose(
    clean: NDArray[np.float32],
    original: NDArray[np.float32],
    step: Step,
    *,
    seed: int,
    index: int,
    origin: tuple[int, int] = (0, 0),
) -> NDArray[np.float32]:
    """`exposure.denoise.expose` with its draw, in one sweep: [..., 4, h, w] signal; index: of the pass."""
    clean = _checked("clean", clean, np.float32, clean.ndim)
    original = _checked("original", original, np.float32, clean.ndim)
    if clean.ndim < 3 or clean.shape[-3] != 4 or clean.shape != original.shape:
        shapes = f"{shape_text(clean.shape)} and {shape_text(original.shape)}"
        raise ValueError(f"clean and original are {shapes}; both must be one shape that ends in 4xhxw")
    if not 0 <= step.photons <= LARGEST_RATE:
        raise ValueError(f"photons is {step.photons:g}; it must lie between 0 and {LARGEST_RATE:g} electrons")
    following, field = np.empty_like(clean), _field(clean.shape[-2:], seed, index, origin)
    injection = Injection(step.photons, step.keep, step.per_photon)
    for image in np.ndindex(clean.shape[:-3]):
        arrays = (_address(clean[image]), _address(original[image]))
        pointers = (ctypes.byref(injection), ctypes.byref(field), _address(following[image]))
        library().exposure_cpu_expose(*arrays, *pointers, threads())
    return following


def schedule(ratio: float, gain: float, saturation: float, passes: int, *, photon_unit: float) -> NDArray[np.float32]:
    """`exposure.schedule.unroll` as served: [passes, 4], a Step's fields in a row. Checked as the definition checks."""
    unroll(ratio, gain, saturation, passes, photon_unit=photon_unit)
    rows = np.empty((passes, 4), np.float32)
    doubles = (ctypes.c_double(value) for value in (ratio, gain, saturation, photon_unit))
    library().exposure_schedule(*doubles, passes, _address(rows))
    return rows


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Four random words of Philox4x32-10; counter: four words, key: two."""
    counter, key = _checked("counter", counter, np.uint32, 1), _checked("key", key, np.uint32, 1)
    if counter.shape != (4,) or key.shape != (2,):
        raise ValueError(f"counter and key have {counter.size} and {key.size} words; they must have 4 and 2")
    words = np.empty(4, np.uint32)
    library().exposure_cpu_philox(_address(counter), _address(key), _address(words))
    return words


def _layout(sensor: Sensor, shape: tuple[int, ...], planes: tuple[int, ...], factors: list[float]) -> Layout:
    positions = [2 * row + column for row, column in sensor.planes]
    four = ctypes.c_float * 4
    return Layout(*shape, *planes, (ctypes.c_int32 * 4)(*positions), four(*sensor.black), four(*factors))


def _field(planes: tuple[int, ...], seed: int, step: int, origin: tuple[int, int]) -> Field:
    row, column = (int(place) for place in origin)
    if not 0 <= seed < 2**64 or not 0 <= step < 2**30:
        raise ValueError(f"seed and step are {seed} and {step}; they must be unsigned, of 64 and 30 bits")
    if min(row, column) < 0:
        raise ValueError(f"origin is {[row, column]}; it must lie in the frame, at 0 or more")
    return Field(seed, step, row // 2, column // 2, *planes)


def _checked(name: str, array: NDArray[Any], dtype: type, dimensions: int) -> NDArray[Any]:
    if array.dtype != dtype or array.ndim != dimensions or array.size == 0:
        wanted = f"{np.dtype(dtype).name} with {dimensions} dimensions and not empty"
        raise ValueError(f"{name} is {array.dtype} {shape_text(array.shape)}; it must be {wanted}")
    return np.ascontiguousarray(array)


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
