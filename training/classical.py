"""The classical way: make the noise Gaussian, average what looks alike, go back. A row where light is simulated."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exposure.sensor import pack

from .cases import Case


def non_local_means(case: Case, *, clipped: bool = False) -> NDArray[np.float32]:
    """Denoise a short exposure with non-local means after variance stabilisation. Returns the signal of the longer
    exposure, [4, h, w] in [0, 1].

    clipped: from what networks see, where levels below black count as black. Else from those levels, too: without them
    the mean of dark places is too bright, and an average cannot know by how much.

    Sources: Buades, Coll and Morel, CVPR 2005; generalised Anscombe transform and its exact unbiased inverse in closed
    form, Makitalo and Foi, IEEE TIP 2013.
    """
    from skimage.restoration import denoise_nl_means

    sensor, sigma = case.sensor, case.read_noise / case.gain  # electrons
    if clipped:
        dn = pack(case.mosaic, sensor, case.ratio) * (sensor.saturation / case.ratio)
    else:
        dn = np.stack([case.mosaic[row::2, column::2] - sensor.black_at(row, column) for row, column in sensor.planes])
    stable = stabilised(dn / case.gain, sigma)
    smooth = denoise_nl_means(stable, patch_size=5, patch_distance=9, h=0.5, sigma=1.0, fast_mode=True, channel_axis=0)
    signal = unstabilised(smooth, sigma) * case.gain * case.ratio / sensor.saturation
    return np.clip(signal, 0, 1).astype(np.float32)


def stabilised(electrons: NDArray[Any], sigma: float) -> NDArray[np.float64]:
    """Poisson-Gaussian counts to values whose noise has a standard deviation of about 1."""
    return 2 * np.sqrt(np.maximum(electrons + 3 / 8 + sigma**2, 0))


def unstabilised(stable: NDArray[Any], sigma: float) -> NDArray[np.float64]:
    """The mean count behind the mean of stabilised values."""
    d = np.maximum(stable, 2 * np.sqrt(3 / 8))  # what no photon at all gives; the series ends there
    root = np.sqrt(3 / 2)
    count = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8 - sigma**2
    return np.maximum(count, 0)
