"""Frames of any size: tiles that overlap enough to leave no seam."""

import math
from dataclasses import dataclass
from itertools import pairwise, product

from exposure.sensor import SMALLEST_SIDE

GRID = SMALLEST_SIDE  # mosaic pixels: tiles that begin on it are pooled and padded as the frame is
# Mosaic pixels that a tile computes beyond what is kept of it: more than the 214 that one pass of the U-Net looks away.
# The outer parts of further passes' fields tip single photon draws over: client/README.md has the figures.
MARGIN = 224
TILE_PIXELS = 13_000_000  # of a request, where nothing else is asked: what a server needs for it is in client/README.md
SMALLEST_TILE = (2 * MARGIN + 6 * GRID) ** 2  # smaller ones would compute little else than margins
MOST_PIECES = 64  # along one side
LONGEST = 4 / 3  # sides of a tile over that of a square as large: frames of 16:9 need no more


@dataclass(frozen=True)
class Tile:
    """A part of a frame that is sent as one request, and the part of the answer that is kept, both in the frame."""

    rows: slice
    columns: slice
    kept_rows: slice
    kept_columns: slice

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first pixel in the frame: ORIGIN of the request."""
        return self.rows.start, self.columns.start

    @property
    def kept(self) -> tuple[slice, slice]:
        """The kept part, counted from the tile's own first pixel."""
        top, left = self.origin
        return (
            slice(self.kept_rows.start - top, self.kept_rows.stop - top),
            slice(self.kept_columns.start - left, self.kept_columns.stop - left),
        )


def longest_side(most_pixels: int) -> int:
    """Of what is sent, in mosaic pixels: an engine that takes this in both directions takes the tiles of any frame."""
    return _padded(math.ceil(LONGEST * math.sqrt(most_pixels)))


def plan_tiles(shape: tuple[int, int], most_pixels: int) -> list[Tile]:
    """Cover a frame of `shape` with tiles of at most `most_pixels`, the least work first; one tile where it fits.

    All tiles have one size once padded, so that an engine is compiled once. They begin on multiples of GRID, and only a
    tile at the frame's border is padded, as the whole frame would be. Raises ValueError for a bound that is too small.
    """
    if most_pixels < SMALLEST_TILE:
        raise ValueError(f"the tile bound is {most_pixels} pixels; a tile holds at least {SMALLEST_TILE}")
    longest, work = longest_side(most_pixels), dict[tuple[int, int], int]()
    for down, across in product(range(1, MOST_PIECES + 1), repeat=2):
        sides = _length(_padded(shape[0]), down), _length(_padded(shape[1]), across)
        if math.prod(sides) <= most_pixels and max(sides) <= longest:
            work[down, across] = down * across * math.prod(sides)
    if not work:
        raise ValueError(
            f"{shape[0]}x{shape[1]} pixels need more than {MOST_PIECES} tiles of {most_pixels} along a side"
        )
    down, across = min(work, key=work.__getitem__)
    columns = _pieces(shape[1], across)
    return [Tile(r, c, kept_r, kept_c) for (r, kept_r), (c, kept_c) in product(_pieces(shape[0], down), columns)]


def _padded(side: int) -> int:
    return -(-side // GRID) * GRID


def _length(padded: int, count: int) -> int:
    """Of each of `count` tiles: neighbours share two margins."""
    return padded if count == 1 else min(padded, _padded(-(-(padded + (count - 1) * 2 * MARGIN) // count)))


def _pieces(side: int, count: int) -> list[tuple[slice, slice]]:
    """What is sent and what is kept along one side."""
    padded = _padded(side)
    length = _length(padded, count)
    starts = [(padded - length) * i // max(count - 1, 1) // GRID * GRID for i in range(count)]
    cuts = [0, *((a + length + b) // 2 for a, b in pairwise(starts)), side]
    sent = [slice(start, min(start + length, side)) for start in starts]
    return list(zip(sent, (slice(*cut) for cut in pairwise(cuts)), strict=True))
