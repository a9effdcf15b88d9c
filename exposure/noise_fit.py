"""The gain of an unknown camera, estimated from one of its files: a Poisson-Gaussian fit to the noise in flat places.

The variance of a photosite is K * mean + c (Foi et al., IEEE TIP 2008). Of the Haar transform of each plane, the
diagonal band shows noise but no smooth light, no edges along the axes and no row noise; where the scene is flat, the
local means of another plane tell, whose noise is independent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sensor import Sensor

BLOCK = 16  # pixels of a plane on a side: 64 diagonal coefficients
BINS, LEAST_BLOCKS = 24, 60
FLATNESS = 1.4  # of a block: variance of its 2x2 means over what noise alone gives; 64 of them spread by 18 %
MEDIAN_OF_64 = 0.98965  # median of a chi-squared variable over its mean, 64 degrees of freedom
WITNESS = ((1, 3), (3, 3), (1, 3), (1, 1))  # the green planes that tell of each plane's blocks whether they are flat
PARTS = 16  # of a frame that are asked whether they agree
PILED = 0.01  # share of a plane that has its lowest value: noise that is not cut off has fewer
MOST_RELATIVE_ERROR = 0.2  # standard error / gain; a gain that is known no better is not known


@dataclass(frozen=True)
class NoiseFit:
    """variance = gain * DN + read_noise^2, in DN. error: standard error of the gain, DN per electron.

    On 46 photographs in simulated light (`P+g`, one shot each), (gain - truth) / error has a root mean square of 0.6 to
    0.8 for gains of 1, 3 and 10 at x100 and 3 at x300, where photon noise is strong beside texture. Where it is weak,
    texture passes for noise and gains are too high: 1.5 (mean +1.0) for 0.2 at x100, 1.6 (+1.1) for 1 at x30, where
    they are up to 25 % too high; 2.7 (+2.1) for 0.3 at x10, up to 75 %.
    """

    gain: float
    error: float
    read_noise: float


def fit_noise(mosaic: NDArray[np.uint16], sensor: Sensor) -> NoiseFit:
    """Estimate K in DN per electron, and the read noise in DN, from a mosaic [H, W] in DN.

    Raises ValueError, one sentence, where the file does not tell: too small, clipped, without light, or denoised.
    """
    mean, variance, spread, clear = _blocks(mosaic, sensor)
    if clear.sum() < LEAST_BLOCKS:
        planes, blocks = clear.shape
        clipped = f"only {clear[0].sum()} of its {blocks} blocks of {2 * BLOCK} pixels show noise and are not clipped"
        reason = "it is too small" if planes * blocks < LEAST_BLOCKS else clipped
        raise ValueError(f"its gain cannot be estimated: {reason}")
    gain, error, constant = _line(mean[clear], variance[clear])
    for _ in range(6):  # flat blocks tell the line, and the line which are flat: 9 of 10 files settle to 1.5 %
        excess = spread / np.maximum(gain * mean + constant, 1e-6) * 4  # a mean of 2x2 has a quarter of the variance
        texture = excess[list(WITNESS), :].mean(axis=1)
        limit = max(FLATNESS, np.sort(texture[clear])[LEAST_BLOCKS - 1])  # at worst the flattest that there are
        flat = clear & (texture <= limit)
        gain, error, constant = _line(mean[flat], variance[flat])
    flattest = flat & (texture <= np.median(texture[flat]))  # texture that is left: less in these, more in the others
    drift = _line(mean[flattest], variance[flattest])[0] - gain
    places = _disagreement(mean[flat], variance[flat], np.nonzero(flat)[1])
    error = float(np.linalg.norm([error, drift, places]))
    if not gain > 0 or error > MOST_RELATIVE_ERROR * gain:
        raise ValueError(f"its gain cannot be estimated: the noise tells {gain:.3g} +- {error:.2g} DN per electron")
    return NoiseFit(gain, error, float(np.sqrt(max(constant, 0.0))))


def _blocks(mosaic: NDArray[np.uint16], sensor: Sensor) -> tuple[NDArray[np.float64], ...]:
    """Of each block [4, blocks]: mean in DN above black, noise variance, variance of its 2x2 means, and whether it is
    clear, as are its neighbours in the other planes: not clipped, and not without any noise."""
    height, width = (side // 2 // BLOCK for side in mosaic.shape)
    found = []
    for row, column in sensor.planes:
        plane = mosaic[row::2, column::2][: height * BLOCK, : width * BLOCK]
        blocks = plane.reshape(height, BLOCK, width, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)
        black, lowest, highest = sensor.black_at(row, column), blocks.min(axis=(1, 2)), blocks.max(axis=(1, 2))
        floor = lowest.min(initial=0xFFFF)
        cut = black - 1 < floor < black + 1 or np.mean(blocks == floor) > PILED
        floor = floor if cut else 0  # nothing below it: the file was clipped there
        clear = (lowest > floor) & (lowest < highest) & (highest < 0.98 * sensor.white)  # lamps may clip below white
        dn = blocks.astype(np.float64) - black
        a, b, c, d = dn[:, 0::2, 0::2], dn[:, 0::2, 1::2], dn[:, 1::2, 0::2], dn[:, 1::2, 1::2]
        diagonal, means = (a - b - c + d) / 2, (a + b + c + d) / 4
        found.append((means.mean(axis=(1, 2)), (diagonal**2).mean(axis=(1, 2)), means.var(axis=(1, 2)), clear))
    mean, variance, spread, clear = (np.stack(values) for values in zip(*found, strict=True))
    return mean, variance, spread, np.broadcast_to(clear.all(axis=0), clear.shape)


def _line(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, its standard error, and constant of variance against mean: medians of bins, weighted by their accuracy.

    A bin's median is of variance over that of the line: a dark scene is so skewed inside a bin that the median of its
    variances does not belong to the mean of its means.
    """
    order = np.array_split(np.argsort(mean), min(BINS, len(mean) // 10))
    x = np.array([mean[part].mean() for part in order])
    y = np.array([np.median(variance[part]) / MEDIAN_OF_64 for part in order])
    count = np.array([len(part) for part in order])
    weight = count / np.maximum(y, 1e-6) ** 2
    for _ in range(4):  # the accuracy of a variance is in proportion to itself; the slope settles to 0.01 %
        middle = np.average(x, weights=weight)
        scatter = (weight * (x - middle) ** 2).sum()
        slope = (weight * (x - middle) * y).sum() / max(scatter, 1e-12)
        constant = np.average(y, weights=weight) - slope * middle
        least = 0.05 * max(y.min(), 1e-6)
        fitted = np.maximum(slope * x + constant, least)
        along = [variance[part] / np.maximum(slope * mean[part] + constant, least) for part in order]
        y = fitted * np.array([np.median(values) for values in along]) / MEDIAN_OF_64
        weight = count / np.maximum(fitted, 0.05 * y + 1e-6) ** 2
    left = (weight * (y - slope * x - constant) ** 2).sum() / max(len(x) - 2, 1)
    own = np.pi / 2 * 2 / (BLOCK**2 / 4)  # of one block's variance, relative and squared, times the price of a median
    return float(slope), float(np.sqrt(max(left, own) / max(scatter, 1e-12))), float(constant)


def _disagreement(mean: NDArray[np.float64], variance: NDArray[np.float64], place: NDArray[np.intp]) -> float:
    """Standard error of the slope by how far parts of the frame disagree: the jackknife, a part left out at a time.

    Texture that passes for noise does so in all bins of a place, and the scatter about the line does not show it.
    place: of each block in the frame, row by row; the planes of one stay together.
    """
    parts = np.array_split(np.argsort(place, kind="stable"), PARTS)
    slopes = [_line(np.delete(mean, part), np.delete(variance, part))[0] for part in parts]
    return float(np.sqrt((PARTS - 1) * np.var(slopes)))
