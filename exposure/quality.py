"""How near an image is to the truth."""

import math

import numpy as np
from numpy.typing import NDArray

SAME_BITS_DB = 200.0  # JSON knows no infinity


def psnr(image: NDArray[np.float32], clean: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB of signal in [0, 1], any shape; infinite where nothing differs."""
    error = float(np.mean((image.astype(np.float64) - clean) ** 2))
    return -10 * math.log10(error) if error else math.inf


def agreement_db(computed: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """PSNR in dB between two computations of one image, SAME_BITS_DB where nothing differs; NaN where one holds NaN."""
    return min(psnr(computed, expected), SAME_BITS_DB)
