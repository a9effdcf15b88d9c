"""Dark frames: what a sensor records without light beyond its black level, which an exposure ratio multiplies, too."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .defects import LEAST_NOISE, MEDIAN_OF_DIFFERENCES
from .sensor import Sensor

BLOCK = 32  # plane pixels on a side: their mean has a 32nd of a pixel's noise
HOT = 6.0  # standard deviations: what lies further out is no noise, of however few frames
MOST_SHARE = 0.02  # of the range from black to white: what is brighter on the whole is no dark frame
CLIPPED = 0.1  # share of pixels that have the lowest value: the noise is cut off there, and its mean tells nothing


def dark_excess(frames: Iterable[NDArray[np.uint16]], sensor: Sensor) -> NDArray[np.float32]:
    """What dark frames have beyond black, [H, W] in DN, to be subtracted from mosaics of the same ISO.

    frames: at least one mosaic [H, W] in DN, exposed with the cap on. The excess is a smooth map, the mean of blocks
    (black that is off, amplifier glow), and what single pixels have beside it: of hot ones all, of the others as much
    as a Wiener filter leaves, for a mean of few frames holds more noise than pattern. One frame cannot tell the two
    apart, and gives the map and the hot ones.
    """
    count, variance = 0, 0.0
    for frame in frames:
        if count == 0:
            first, total = frame, frame.astype(np.float32)  # whole numbers, exact up to 256 frames of 16 bits
        else:
            total += frame
        if count == 1:
            some = slice(None, None, 3)  # pixels of all colours, enough to tell it
            variance = _spread(frame[some, some].astype(np.float32) - first[some, some]) ** 2 / 2
        count += 1
    if not count:
        raise ValueError("there is no dark frame")
    excess = total / np.float32(count)
    for row, column in sensor.planes:
        plane = excess[row::2, column::2]
        plane -= np.float32(sensor.black_at(row, column))
        smooth = _smooth(plane)
        own = plane - smooth
        spread = max(_spread(own), LEAST_NOISE / count**0.5)
        pattern = max(1 - variance / count / spread**2, 0) if count > 1 else 0.0
        plane[:] = smooth + np.where(np.abs(own) > HOT * spread, 1, np.float32(pattern)) * own
    return excess


def without_dark(mosaic: NDArray[np.uint16], excess: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The mosaic [H, W] in DN without that excess, rounded: the noise is wide enough to leave no steps."""
    return np.rint(mosaic - excess).clip(0, 65535).astype(np.uint16)


def check_dark(frame: NDArray[np.uint16], sensor: Sensor) -> None:
    """Raises ValueError for what is no dark frame, or tells nothing."""
    if np.mean(frame == frame.min()) > CLIPPED:
        raise ValueError("its noise is cut off at black, so that its mean tells nothing")
    for row, column in sensor.planes:
        black = sensor.black_at(row, column)
        beyond = float(np.mean(frame[row::2, column::2])) - black
        if abs(beyond) > MOST_SHARE * (sensor.white - black):
            raise ValueError(f"it is no dark frame: pixels of one colour are {beyond:+.0f} DN from black on average")


def _spread(values: NDArray[np.float32]) -> float:
    """Standard deviation, by the median magnitude: hot pixels do not count."""
    return float(np.median(np.abs(values - np.median(values)))) / (MEDIAN_OF_DIFFERENCES / 2**0.5)


def _smooth(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of blocks, hot pixels left out, and what lies between their centres by linear interpolation."""
    middle, reach = np.median(plane), HOT * max(_spread(plane), LEAST_NOISE)
    usual = np.clip(plane, middle - reach, middle + reach)
    rows, columns = (_starts(side) for side in plane.shape)
    sums = np.add.reduceat(np.add.reduceat(usual, rows, axis=0, dtype=np.float64), columns, axis=1)
    counts = np.outer(*(np.diff([*at, side]) for at, side in zip((rows, columns), plane.shape, strict=True)))
    down, across = (_between(at, side) for at, side in zip((rows, columns), plane.shape, strict=True))
    smooth: NDArray[np.float32] = (down @ (sums / counts) @ across.T).astype(np.float32)
    return smooth


def _starts(side: int) -> NDArray[np.intp]:
    """Where blocks begin, of BLOCK pixels or a little more."""
    return np.arange(max(side // BLOCK, 1)) * BLOCK


def _between(starts: NDArray[np.intp], side: int) -> NDArray[np.float64]:
    """Weights [side, blocks] of the blocks' centres at each pixel."""
    centres = (starts + np.append(starts[1:], side) - 1) / 2
    return np.array([np.interp(np.arange(side), centres, one) for one in np.eye(len(starts))]).T
