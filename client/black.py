"""The black level of a DNG as its tags tell it; LibRaw cuts its fractions off, and takes the mean of what slopes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tags import numbers

STEPS = 1024  # of a DN: what a result can tell exactly, whatever fractions its source used
Black = tuple[float, float, float, float]


def black_of(
    tags: Mapping[str, tuple[int, Any]], shape: tuple[int, int], corner: tuple[int, int]
) -> tuple[Black, NDArray[np.float32] | None]:
    """Black of the four cells of a mosaic in DN, to 1/1024, and what its pixels deviate from it, [H, W] in DN, or None.

    The black of a pixel is BlackLevel, repeated from the active area's corner, + BlackLevelDeltaH of its column +
    BlackLevelDeltaV of its row (DNG 1.4). corner: row and column of the mosaic's first pixel in the active area.
    Raises KeyError where there is no BlackLevel, and ValueError, one sentence, for what cannot be handled.
    """
    if "BlackLevel" not in tags:
        raise KeyError("BlackLevel")
    levels = numbers(tags, "BlackLevel")
    repeat = [int(side) for side in numbers(tags, "BlackLevelRepeatDim") or (1, 1)]
    if len(repeat) != 2 or min(repeat) < 1 or len(levels) != repeat[0] * repeat[1]:
        raise ValueError(f"its black level makes no sense: {len(levels)} numbers for cells of {repeat}")
    rows, columns = repeat
    pattern = np.roll(np.reshape(levels, (rows, columns)), (-corner[0], -corner[1]), axis=(0, 1))
    cell = np.tile(pattern, (2, 2))[:2, :2]
    if not np.array_equal(np.tile(pattern, (2, 2)), np.tile(cell, (rows, columns))):
        raise ValueError(f"its black level repeats every {rows}x{columns} pixels; no more than 2x2 is handled")
    slopes = [
        np.array(numbers(tags, name) or np.zeros(start + length), np.float32)[start : start + length]
        for name, start, length in zip(("BlackLevelDeltaV", "BlackLevelDeltaH"), corner, shape, strict=True)
    ]
    if (len(slopes[0]), len(slopes[1])) != shape:
        raise ValueError("the slopes of its black level are shorter than its active area")
    # of every other step, and whole where there are slopes: what whole steps deviate by can then be taken off exactly
    means = [[_level(slope[start::2]) for start in (0, 1)] for slope in slopes]
    b0, b1, b2, b3 = (round(float(level) * STEPS) / STEPS for level in (cell + np.add.outer(*means)).ravel())
    uneven = [slope - np.resize(mean, len(slope)) for slope, mean in zip(slopes, means, strict=True)]
    deviation = np.add.outer(*uneven) if any(np.ptp(slope) > 0 for slope in uneven) else None
    return (b0, b1, b2, b3), deviation


def _level(slope: NDArray[np.float32]) -> float:
    return float(slope.mean() if np.ptp(slope) == 0 else np.rint(slope.mean()))
