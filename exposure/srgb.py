"""sRGB pictures as light (IEC 61966-2-1)."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", np.float32, np.float64)


def linear_light(srgb: NDArray[Float]) -> NDArray[Float]:
    """Linear signal in [0, 1] of sRGB values in [0, 1], any shape, in the same precision."""
    light: NDArray[Float] = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return light
