"""The U-Net on a processor: Winograd's convolutions (csrc/unet.h), for those who build, check and time engines.

The server's own is backend/unet_engine.cpp.
"""

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exposure.sensor import shape_text

from .library import library, threads

Array = NDArray[np.float32]
MULTIPLE = 16  # of the sides: four 2x2 poolings
KEPT_PIXELS = 4_000_000  # packed, whose memory is kept for the next pass: 1.5 GB with the default's widths
WIDEST = 16  # floats of a vector
LEVELS = 5
NO_VECTORS = "this processor has neither AVX-512 nor AVX2 with FMA"
LAYERS = (
    *(f"conv{level}_{i}" for level in range(1, 6) for i in (1, 2)),
    *(f"{kind}{level}{i}" for level in range(6, 10) for kind, i in (("upv", ""), ("conv", "_1"), ("conv", "_2"))),
    "conv10_1",
)


class _Shape(ctypes.Structure):
    """csrc/unet.h: UNetShape."""

    _fields_ = (("widths", ctypes.c_int32 * LEVELS), ("inputs", ctypes.c_int32), ("outputs", ctypes.c_int32))


def lanes() -> int:
    """Floats of a vector on this processor: 16 with AVX-512, 8 with AVX2 and FMA, 0 where it cannot run the U-Net."""
    number: int = library().exposure_unet_lanes()
    return number


class UNetEngine:
    """clean = engine(image, photon_gain[, original]): the U-Net of `exposure.networks`, in FP32.

    parameters: its state dict as arrays, of any widths. most_lanes: for tests; every width of vectors and every number
    of threads gives the same bits. One thread at a time may call it. Raises OSError where the processor has neither
    AVX-512 nor AVX2 with FMA, ValueError for parameters of other sizes.
    """

    precision = "f32"

    def __init__(self, parameters: Mapping[str, NDArray[Any]], *, most_lanes: int = WIDEST) -> None:
        if not lanes():
            raise OSError(f"{NO_VECTORS}, which the kernels of the U-Net need")
        held = [
            np.ascontiguousarray(parameters[f"{layer}.{kind}"], np.float32)
            for layer in LAYERS
            for kind in ("weight", "bias")
        ]
        widths = [parameters[f"conv{level}_1.weight"].shape[0] for level in range(1, LEVELS + 1)]
        self.inputs = parameters["conv1_1.weight"].shape[1]
        shape = _Shape((ctypes.c_int32 * LEVELS)(*widths), self.inputs, parameters["conv10_1.weight"].shape[0])
        floats = (ctypes.c_int64 * len(held))(*(array.size for array in held))
        if not library().exposure_unet_takes(ctypes.byref(shape), floats):
            raise ValueError(f"these parameters, of widths {', '.join(map(str, widths))}, are not those of a U-Net")
        addresses = (ctypes.c_void_p * len(held))(*(array.ctypes.data for array in held))
        self._unet = _pointer("exposure_unet_new", ctypes.byref(shape), addresses, most_lanes)
        self._memory = _pointer("exposure_unet_memory_new")

    def __call__(self, image: Array, photon_gain: Array, original: Array | None = None) -> Array:
        """image, original: [1, 4, h, w] FP32, sides multiples of 16; photon_gain: [1]. original may be left out where
        the network does not see it. Raises ValueError and MemoryError.
        """
        planes = [image] if self.inputs < 12 else [image, original]  # concat_origin
        for array in planes:
            if array is None or array.shape != image.shape or array.dtype != np.float32:
                raise ValueError("image and original must be FP32 and of the same shape")
        if image.ndim != 4 or image.shape[:2] != (1, 4) or any(side % MULTIPLE for side in image.shape[2:]):
            raise ValueError(f"image is {shape_text(image.shape)}; it must be 1x4xhxw, sides multiples of {MULTIPLE}")
        held = [np.ascontiguousarray(array) for array in planes]
        clean = np.empty(image.shape, np.float32)
        sufficed = library().exposure_unet_run(
            self._unet,
            self._memory,
            _address(held[0]),
            ctypes.c_float(float(np.asarray(photon_gain).reshape(()))),
            _address(held[-1]),
            *map(ctypes.c_int64, image.shape[2:]),
            _address(clean),
            threads(),
            ctypes.c_int64(KEPT_PIXELS),
        )
        if not sufficed:
            raise MemoryError(f"memory does not suffice for planes of {shape_text(image.shape[2:])}")
        return clean

    def stage_seconds(self) -> dict[str, float]:
        """What the stages of the last pass took: "inputs", put together, and each layer, the last two as one."""
        seconds = (ctypes.c_double * len(LAYERS))()
        count = library().exposure_unet_seconds(self._memory, seconds)
        return dict(zip(("inputs", *LAYERS[:-1]), seconds[:count], strict=False))

    def __del__(self) -> None:
        for name, pointer in (("exposure_unet_free", "_unet"), ("exposure_unet_memory_free", "_memory")):
            if hasattr(self, pointer):
                getattr(library(), name)(getattr(self, pointer))


def _address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pointer(function: str, *arguments: Any) -> ctypes.c_void_p:
    maker = _maker(function)
    pointer = maker(*arguments)
    if not pointer:
        raise MemoryError("memory does not suffice for the network")
    return ctypes.c_void_p(pointer)


@functools.cache
def _maker(function: str) -> Any:
    maker = getattr(library(), function)
    maker.restype = ctypes.c_void_p
    return maker
