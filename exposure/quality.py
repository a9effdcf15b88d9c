"""How near an image is to the truth."""

import math

import numpy as np
from numpy.typing import NDArray

SAME_BITS_DB = 200.0  # JSON knows no infinity
SSIM_WINDOW = 7  # pixels


def psnr(image: NDArray[np.float32], clean: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB of signal in [0, 1], any shape; infinite where nothing differs."""
    error = float(np.mean((image.astype(np.float64) - clean) ** 2))
    return -10 * math.log10(error) if error else math.inf


def agreement_db(computed: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """PSNR in dB between two computations of one image, SAME_BITS_DB where nothing differs; NaN where one holds NaN."""
    return min(psnr(computed, expected), SAME_BITS_DB)


def ssim(image: NDArray[np.float32], clean: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> float:
    """Structural similarity of packed images, [4, h, w] in [0, 1], each side at least SSIM_WINDOW.

    As published: the mean without the border, where windows are cut. With a mask, the mean of all that it leaves.
    """
    from skimage.metrics import structural_similarity

    how = {"win_size": SSIM_WINDOW, "data_range": 1.0, "channel_axis": 0}
    if mask is None:
        return float(structural_similarity(clean, image, **how))
    _, local = structural_similarity(clean, image, **how, full=True)
    return float(local[mask].mean())
