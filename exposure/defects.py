"""Defective pixels: hot ones, which add charge of their own to any exposure, and dead ones, which tell less light.

The long exposure that a dark file stands for would have few beside its light; brightened, the dark file has them all.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sensor import Sensor

CERTAIN = 6.0  # standard deviations beyond the nearest in value of its neighbours
ISOLATED = 2.5  # times what these neighbours differ from each other: beside texture, nothing is called defective
SHARED = 0.1  # of its excess: points of light bring more to the pixels around, but for some of one pure colour
STAR = 0.8  # of its excess: what a star brings to the pixels around, as narrow as 0.45 pixels (standard deviation)
SURE = 2.0  # standard deviations of their noise that a defect's must lack of that
MARGIN = 3  # pixels to the farthest that is asked: a neighbour of a neighbour
ROWS = 64  # that are looked at together, so that they stay in the processor's caches
BLOCK, BLOCKS, QUIETEST = 32, 24, 10  # pixels on a side, blocks on a side, and percentile: where the noise is black's
CLIPPED = 0.1  # share of a block's pixels that have its lowest, or highest value: it tells no noise
LEAST_NOISE = 1.0  # DN; what is less, the converter's steps hide
MEDIAN_OF_DIFFERENCES = 0.6745 * 2**0.5  # standard deviations of a normal law, its median magnitude
NEIGHBOURS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column)

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Defects:
    """Defective pixels of a mosaic. rows, columns: where they are; usual: DN to be put there; [n] each."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    usual: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.usual)

    def corrected(self, mosaic: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """The mosaic without them; itself, where there are none."""
        if not len(self):
            return mosaic
        corrected = mosaic.copy()
        corrected[self.rows, self.columns] = self.usual
        return corrected


def find_defects(mosaic: NDArray[np.uint16], sensor: Sensor, gain: float) -> Defects:
    """Find pixels that do not tell the light, and what the eight nearest of their colour tell instead: their median.

    mosaic: [H, W] in DN, sides of at least 4. gain: K in DN per electron. A pixel is defective where it is brighter, or
    darker, than each of these eight by more than noise can be, its distance from their median is more than texture, and
    the pixels around it, most of other colours, do not share in that: a star's image is wider than a pixel. Where that
    could hide in their noise, nothing is called defective. Not found are two that touch, and what is lost in noise or
    texture. Nothing is, where no part of the mosaic tells its noise.
    """
    padded, noise_of_black = _padded(mosaic), _noise_of_black(mosaic)
    rows, columns, noise = _outliers(padded, min(sensor.black), gain, noise_of_black)
    eight = _of_its_colour(padded, rows, columns)
    usual = np.median(eight, axis=0)
    excess = padded[rows, columns] - usual
    defective = np.abs(excess) > ISOLATED * np.ptp(eight, axis=0)
    shared = np.sign(excess) * sum(_excess(padded, rows + row, columns + column) for row, column in NEIGHBOURS)
    unsure = len(NEIGHBOURS) ** 0.5 * noise  # which is in the sum, too
    defective &= shared < np.minimum(SHARED * np.abs(excess) + unsure, STAR * np.abs(excess) - SURE * unsure)
    found = (rows[defective] - MARGIN, columns[defective] - MARGIN)
    return Defects(*found, np.rint(usual[defective]).astype(np.uint16))


def _padded(mosaic: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """A mosaic with MARGIN more on each side: beyond an edge stands again what is two pixels inside of it, so that no
    pixel is its own neighbour, and colours keep their places."""
    height, width = mosaic.shape
    padded = np.empty((height + 2 * MARGIN, width + 2 * MARGIN), np.uint16)
    padded[MARGIN:-MARGIN, MARGIN:-MARGIN] = mosaic
    for side in (padded, padded.T):
        side[:MARGIN], side[-MARGIN:] = side[MARGIN + 1 : 2 * MARGIN + 1], side[-2 * MARGIN - 1 : -MARGIN - 1]
    return padded


def _noise_of_black(mosaic: NDArray[np.uint16]) -> float:
    """Standard deviation in DN of pixels of one colour where a mosaic is quietest, whatever defects are there.

    Blocks that are clipped do not count, nor those whose noise is less than a step; infinite where there are no others.
    """
    rows, columns = (range(0, max(side - BLOCK, 0) + 1, max(side // BLOCKS, BLOCK)) for side in mosaic.shape)
    blocks = np.array([mosaic[row : row + BLOCK, column : column + BLOCK] for row in rows for column in columns], int)
    ends = (extreme(axis=(1, 2), keepdims=True) for extreme in (blocks.min, blocks.max))
    clear = blocks[np.max([np.mean(blocks == end, axis=(1, 2)) for end in ends], axis=0) < CLIPPED]
    if not len(clear):
        return np.inf
    spreads = np.median(np.abs(clear[:, :, 2:] - clear[:, :, :-2]), axis=(1, 2))
    return max(float(np.percentile(spreads, QUIETEST)) / MEDIAN_OF_DIFFERENCES, LEAST_NOISE)


def _outliers(
    padded: NDArray[np.uint16], black: float, gain: float, noise_of_black: float
) -> tuple[Places, Places, NDArray[np.float64]]:
    """Where a pixel of a padded mosaic is brighter or darker than all eight of its colour by more than noise can be.

    Returns rows, columns, and the standard deviation in DN of noise there, by the nearest of the eight in value.
    """
    least = np.uint16(min(CERTAIN * noise_of_black, 65535))
    found = [np.empty((3, 0))]
    for top in range(MARGIN, len(padded) - MARGIN, ROWS):
        strip = padded[top - 2 : min(top + ROWS, len(padded) - MARGIN) + 2, MARGIN - 2 : 2 - MARGIN]
        pixel, brightest, darkest = strip[2:-2, 2:-2], _farthest(strip, np.maximum), _farthest(strip, np.minimum)
        beyond = np.maximum(pixel, brightest) - brightest + darkest - np.minimum(pixel, darkest)  # one of both is 0
        rows, columns = np.divmod(np.flatnonzero(beyond > least), beyond.shape[1])  # faster than np.nonzero of two axes
        value, excess = pixel[rows, columns], beyond[rows, columns]
        nearest = np.where(value > brightest[rows, columns], value - excess, value + excess)
        noise = np.sqrt(gain * np.maximum(nearest - black, 0) + noise_of_black**2)
        found.append(np.array([rows + top, columns + MARGIN, noise])[:, excess > CERTAIN * noise])
    rows, columns, noise = np.concatenate(found, axis=1)
    return rows.astype(np.intp), columns.astype(np.intp), noise


def _farthest(strip: NDArray[np.uint16], extreme: np.ufunc) -> NDArray[np.uint16]:
    """Of the eight nearest of its colour, the maximum or minimum, for each pixel that is 2 or more from the edge."""
    sides = extreme(strip[:, :-4], strip[:, 4:])
    rows = extreme(sides, strip[:, 2:-2])
    farthest: NDArray[np.uint16] = extreme(extreme(rows[:-4], rows[4:]), sides[2:-2])
    return farthest


def _of_its_colour(padded: NDArray[np.uint16], rows: Places, columns: Places) -> NDArray[np.float64]:
    """The eight nearest pixels of the same colour, [8, n] in DN."""
    return np.array([padded[rows + 2 * row, columns + 2 * column] for row, column in NEIGHBOURS], float)


def _excess(padded: NDArray[np.uint16], rows: Places, columns: Places) -> NDArray[np.float64]:
    """What pixels have beyond the median of those eight, in DN."""
    excess: NDArray[np.float64] = padded[rows, columns] - np.median(_of_its_colour(padded, rows, columns), axis=0)
    return excess
