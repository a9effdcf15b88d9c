"""sRGB pictures as light, and the colours of that light (IEC 61966-2-1)."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

Float = TypeVar("Float", np.float32, np.float64)


def linear_light(srgb: NDArray[Float]) -> NDArray[Float]:
    """Linear signal in [0, 1] of sRGB values in [0, 1], any shape, in the same precision."""
    light: NDArray[Float] = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return light
