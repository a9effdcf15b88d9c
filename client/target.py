"""The target exposure: how many times longer a file should have been exposed, and why."""

import numpy as np
from numpy.typing import NDArray

from exposure.schedule import TRAINED_RATIOS

from .dng import is_result
from .rawfile import RawFile, RawFileError

LARGEST_AUTO_RATIO = TRAINED_RATIOS[1]
BLOCK = 8  # plane pixels a side: their mean has an eighth of a pixel's noise
HIGHLIGHT = (99.0, 0.9)  # this percentile of the blocks comes to lie at this signal, so that few clip
MIDDLE = 0.18  # the signal of a grey card, where the middle of a scene belongs


def ratio_from_ev(ev: float) -> float:
    """R of an exposure `ev` stops longer, 0 or more: 2^ev."""
    if not 0 <= ev <= 16:
        raise ValueError(f"--ev is {ev:g}; a target exposure is 0 to 16 stops longer than the file's")
    return 2.0**ev


def ratio_like(file: RawFile, long: RawFile) -> float:
    """R that gives `file` the exposure of `long`: the quotient of time x ISO / f-number^2.

    The f-number and the ISO count where both files tell theirs. Raises RawFileError when an exposure time is unknown,
    `long` is the shorter one, or a result of ours, which tells the exposure time of its source.
    """
    if is_result(long.tags):
        raise RawFileError(f"--like {long.path.name} is a result of this command; give a file as the camera wrote it")
    ratio = 1.0
    for name, power, known in (("exposure_s", 1, "exposure time"), ("iso", 1, ""), ("aperture", -2, "")):
        short_value, long_value = getattr(file, name), getattr(long, name)
        if short_value > 0 and long_value > 0:
            ratio *= (long_value / short_value) ** power
        elif known:
            unknown = file if short_value <= 0 else long
            raise RawFileError(f"the {known} of {unknown.path.name} is unknown; give --ratio or --ev")
    if ratio < 0.99:  # nominal times such as 1/30 s are rounded
        raise RawFileError(
            f"--like {long.path.name} has {ratio:.3g} times its exposure; a target exposure is at least its own (1)"
        )
    return max(ratio, 1.0)


def brightest_ratio(file: RawFile) -> float:
    """The R of `--auto`: the middle of the scene at grey-card brightness, unless highlights would clip before.

    Judged on block means, since single pixels of a dark file are mostly noise, of the plane that clips first; between 1
    and 300.
    """
    percentile, level = HIGHLIGHT
    planes = [_block_means(_signal(file, row, column)) for row, column in file.sensor.planes]
    highlight, middle = (max(float(np.percentile(plane, q)) for plane in planes) for q in (percentile, 50))
    ratios = [wanted / value for value, wanted in ((highlight, level), (middle, MIDDLE)) if value > 0]
    return float(np.clip(min(ratios, default=LARGEST_AUTO_RATIO), 1.0, LARGEST_AUTO_RATIO))


def _signal(file: RawFile, row: int, column: int) -> NDArray[np.float32]:
    """One plane above black, white at 1; noise goes below 0, lest its mean be too bright."""
    black = file.sensor.black_at(row, column)
    plane = file.mosaic[row::2, column::2].astype(np.float32)
    signal: NDArray[np.float32] = (plane - np.float32(black)) / np.float32(file.sensor.white - black)
    return signal


def _block_means(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """[h, w] to [h // 8, w // 8]."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    blocks = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    means: NDArray[np.float32] = blocks.mean(axis=(1, 3))
    return means
