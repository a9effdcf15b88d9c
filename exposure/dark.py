"""Dark frames: what a sensor records without light beyond its black level, which an exposure ratio multiplies, too."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from .defects import LEAST_NOISE, MEDIAN_OF_DIFFERENCES
from .sensor import Sensor

BLOCK = 32  # plane pixels on a side, or a little more: their mean has a 32nd of a pixel's noise
HOT = 6.0  # standard deviations of noise: what lies further out is charge
MOST_SHARE = 0.02  # of the range from black to white: what is brighter on the whole is no dark frame
CLIPPED, DARKEST = 0.1, 1  # share of pixels that have one value, this percentile: the noise is cut off there
ROWS = 512  # that are subtracted together, to need little memory


def dark_excess(frames: Iterable[tuple[NDArray[np.uint16], Sensor]]) -> NDArray[np.float32]:
    """What dark frames have beyond black, [H, W] in DN, to be subtracted from mosaics of the same ISO and time.

    frames: at least one mosaic [H, W] in DN, exposed with the cap on, with its levels. The excess is a smooth map, the
    mean of blocks (black that is off, amplifier glow), and what single pixels have beside it: of hot ones all, of the
    others as much as a Wiener filter leaves, for a mean of few frames holds more noise than pattern. One frame cannot
    tell the two apart, and gives the map and the hot ones; of three and more, what hit a pixel once does not count.
    """
    count, variance = 0, 0.0
    for mosaic, sensor in frames:
        frame = mosaic - sensor.black_of(mosaic.shape)
        if count == 0:
            first, total, most, least = frame, frame.copy(), frame.copy(), frame.copy()
        else:
            total += frame
            np.maximum(most, frame, out=most)
            np.minimum(least, frame, out=least)
        if count == 1:
            variance = _variance((frame - first)[::3, ::3]) / 2  # pixels of all colours, enough to tell it
        count += 1
    if not count:
        raise ValueError("there is no dark frame")
    excess: NDArray[np.float32] = total / np.float32(count)
    usual = (total - most - least) / np.float32(count - 2) if count > 2 else excess
    for row, column in sensor.planes:
        _smooth_and_own(excess[row::2, column::2], usual[row::2, column::2], count, variance)
    return excess


def without_dark(mosaic: NDArray[np.uint16], excess: NDArray[np.float32], white: float) -> NDArray[np.uint16]:
    """The mosaic [H, W] in DN without that excess; pixels at white and above stay, for they tell nothing of it.

    Rounding is dithered, always alike: rounded to the nearest, an excess of less than half a DN would stay everywhere,
    and a smooth one would become steps.
    """
    dither, left = np.random.default_rng(0), mosaic.copy()
    for top in range(0, len(mosaic), ROWS):
        strip, rows = mosaic[top : top + ROWS], left[top : top + ROWS]
        level = np.floor(strip - excess[top : top + ROWS] + dither.random(strip.shape, np.float32))
        np.copyto(rows, level.clip(0, 65535).astype(np.uint16), where=strip < white)
    return left


def check_dark(frame: NDArray[np.uint16], sensor: Sensor) -> None:
    """Raises ValueError for what is lit on the whole, or tells nothing."""
    for row, column in sensor.planes:
        plane, black = frame[row::2, column::2], sensor.black_at(row, column)
        beyond = float(np.mean(plane)) - black
        if abs(beyond) > MOST_SHARE * (sensor.white - black):
            raise ValueError(f"it is no dark frame: pixels of one colour are {beyond:+.0f} DN from black on average")
        darkest = np.percentile(plane, DARKEST, method="nearest")
        if darkest <= black and np.mean(plane == darkest) > CLIPPED and np.mean(plane < darkest) < DARKEST / 1000:
            raise ValueError("its noise is cut off at black, so that its mean tells nothing")


def _smooth_and_own(plane: NDArray[np.float32], usual: NDArray[np.float32], count: int, variance: float) -> None:
    """Turn the mean of frames, in place, into what is no noise. usual: the mean without the extremes."""
    smooth = _smooth(plane)
    own = plane - smooth
    spread = max(_spread(own), LEAST_NOISE / count**0.5)
    hot = np.abs(own) > HOT * spread
    pattern = max(1 - variance / count / spread**2, 0) if count > 1 else 0.0
    plane[:] = np.where(hot, usual, smooth + np.float32(pattern) * own)


def _variance(differences: NDArray[np.float32]) -> float:
    """Of normal noise in whole numbers; hot pixels do not count, nor does what frames differ by as a whole."""
    differences = differences - np.median(differences)
    reach = HOT * max(_spread(differences), LEAST_NOISE)
    return float(np.mean(differences[np.abs(differences) < reach] ** 2))


def _spread(values: NDArray[np.float32]) -> float:
    """Standard deviation, by the median magnitude: hot pixels do not count."""
    return float(np.median(np.abs(values - np.median(values)))) / (MEDIAN_OF_DIFFERENCES / 2**0.5)


def _smooth(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of blocks, hot pixels left out, and what lies between their centres by linear interpolation."""
    rows, columns = (_starts(side) for side in plane.shape)
    down, across = (_between(at, side) for at, side in zip((rows, columns), plane.shape, strict=True))

    def of_blocks(
        values: NDArray[np.float32], kind: Callable[[NDArray[np.float32]], np.float32]
    ) -> NDArray[np.float32]:
        blocks = [[kind(block) for block in np.split(strip, columns[1:], 1)] for strip in np.split(values, rows[1:])]
        between: NDArray[np.float32] = (down @ np.array(blocks) @ across.T).astype(np.float32)
        return between

    local = of_blocks(plane, np.median)
    reach = HOT * max(_spread(plane - local), LEAST_NOISE)
    return of_blocks(np.clip(plane, local - reach, local + reach), np.mean)


def _starts(side: int) -> NDArray[np.intp]:
    """Where blocks begin, as good as equal ones."""
    count = max(side // BLOCK, 1)
    return np.arange(count) * side // count


def _between(starts: NDArray[np.intp], side: int) -> NDArray[np.float64]:
    """Weights [side, blocks] of the blocks at each pixel: a line through the two nearest centres, also beyond them."""
    weights, places = np.zeros((side, len(starts))), np.arange(side)
    if len(starts) == 1:
        return weights + 1
    centres = (starts + np.append(starts[1:], side) - 1) / 2
    before = np.clip(np.searchsorted(centres, places) - 1, 0, len(starts) - 2)
    share = (places - centres[before]) / (centres[before + 1] - centres[before])
    weights[places, before], weights[places, before + 1] = 1 - share, share
    return weights
