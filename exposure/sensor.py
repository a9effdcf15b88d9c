"""What a sensor recorded, and the four planes that networks see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RED, GREEN, BLUE = 0, 1, 2
SMALLEST_SIDE = 32  # of a served mosaic: one padded cell of the deepest network level

Cfa = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Sensor:
    """How to read a mosaic: DN minus black is signal, and the CFA says of which colour.

    black: DN without light at each position of the 2x2 cell, row by row.
    white: DN at saturation, the same for all positions.
    cfa: colour of each cell position: 0 red, 1 green, 2 blue (TIFF/EP CFAPattern codes).

    Raises ValueError when the levels or the pattern cannot belong to a Bayer sensor.
    """

    black: tuple[float, float, float, float]
    white: float
    cfa: Cfa

    def __post_init__(self) -> None:
        object.__setattr__(self, "black", tuple(float(level) for level in self.black))
        object.__setattr__(self, "white", float(self.white))
        object.__setattr__(self, "cfa", tuple(tuple(int(colour) for colour in row) for row in self.cfa))
        colours = [colour for row in self.cfa for colour in row]
        diagonals = {frozenset(colours[0::3]), frozenset(colours[1:3])}
        if len(colours) != 4 or diagonals != {frozenset({GREEN}), frozenset({RED, BLUE})}:
            raise ValueError(f"cfa is {colours}; a Bayer cell has red and blue on one diagonal and green on the other")
        if len(self.black) != 4 or not all(np.isfinite(self.black)) or min(self.black) < 0:
            raise ValueError(f"black is {list(self.black)}; it must be four levels of 0 DN or more")
        if not max(self.black) < self.white <= 65535:
            raise ValueError(f"white is {self.white:g}; it must lie above black ({max(self.black):g}), up to 65535")

    @property
    def saturation(self) -> float:
        """S: the DN between black and white, averaged over the cell."""
        return self.white - sum(self.black) / 4

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """Cell position (row, column) of each plane, circling from red: R, G in red's row, B, G in blue's row."""
        red = np.asarray(self.cfa).ravel().tolist().index(RED)
        row, column = divmod(red, 2)
        return (row, column), (row, 1 - column), (1 - row, 1 - column), (1 - row, column)

    def black_at(self, row: int, column: int) -> float:
        """Black level in DN of one cell position."""
        return self.black[2 * row + column]

    def black_of(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Black level in DN of every pixel of a mosaic [H, W]."""
        cells = np.array(self.black, np.float32).reshape(2, 2)
        return np.tile(cells, [(side + 1) // 2 for side in shape])[: shape[0], : shape[1]]


def pack(mosaic: NDArray[np.uint16], sensor: Sensor, ratio: float = 1.0, *, multiple: int = 1) -> NDArray[np.float32]:
    """Turn raw DN into what the network sees, already brightened by `ratio`.

    mosaic: [H, W] in DN, first pixel at the cell's origin; odd sides are completed by reflection.
    multiple: plane sides are padded to it by reflection at the bottom and right, as the network needs.
    Returns [4, h, w] in [0, 1], planes as in `Sensor.planes`: clamp((DN - black) / (white - black) * R, 0, 1).
    """
    if mosaic.ndim != 2 or min(mosaic.shape) < 2:
        raise ValueError(f"mosaic is {shape_text(mosaic.shape)}; it must have two dimensions of at least one 2x2 cell")
    height, width = mosaic.shape
    rows, columns = (reflected(side, side + side % 2) for side in (height, width))
    if height % 2 or width % 2:
        mosaic = mosaic[rows][:, columns]
    image = np.empty((4, (height + 1) // 2, (width + 1) // 2), np.float32)
    for plane, (row, column) in zip(image, sensor.planes, strict=True):
        black = sensor.black_at(row, column)
        np.subtract(mosaic[row::2, column::2], np.float32(black), out=plane)
        plane *= np.float32(ratio / (sensor.white - black))
        np.clip(plane, 0, 1, out=plane)
    return np.ascontiguousarray(pad(image, multiple))


def check_planes(planes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ValueError where planes, [4, h, w], do not hold a mosaic of `shape`, (H, W)."""
    height, width = shape
    if planes[0] != 4 or not (0 < height <= 2 * planes[1] and 0 < width <= 2 * planes[2]):
        raise ValueError(f"image is {shape_text(planes)}; a {height}x{width} mosaic needs 4 half-size planes")


def unpack(image: NDArray[np.float32], sensor: Sensor, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Turn planes back into the mosaic that a sensor with the same black and white would have recorded.

    image: [4, h, w] signal, clamped to [0, 1]; anything beyond `shape` is padding and cropped.
    shape: (H, W) of the mosaic. Returns [H, W] in DN, rounded. The inverse of `pack` at ratio 1.
    """
    check_planes(image.shape, shape)
    mosaic = np.empty(shape, np.uint16)
    for plane, (row, column) in zip(image, sensor.planes, strict=True):
        black = sensor.black_at(row, column)
        target = mosaic[row::2, column::2]
        signal = plane[: target.shape[0], : target.shape[1]]
        level = np.clip(signal, 0, 1) * np.float32(sensor.white - black) + np.float32(black)
        target[:] = np.rint(level, out=level)
    return mosaic


def recorded(dn: NDArray[np.floating[Any]], sensor: Sensor) -> NDArray[np.uint16]:
    """The mosaic that a sensor's converter makes of `dn`, [H, W] above black: whole numbers from 0 to white.

    Noise that falls below black is recorded too.
    """
    return np.clip(np.rint(dn + sensor.black_of(dn.shape)), 0, sensor.white).astype(np.uint16)


def check_tile(shape: Sequence[int], origin: Sequence[int]) -> None:
    """Refuse what no server takes: a mosaic with a side below SMALLEST_SIDE, an origin outside the frame."""
    if min(shape) < SMALLEST_SIDE:
        raise ValueError(f"mosaic is {shape_text(shape)}; both sides must be at least {SMALLEST_SIDE}")
    if min(origin) < 0:
        raise ValueError(f"origin is {list(origin)}; it must lie in the frame, at 0 or more")


def plane_side(side: int, multiple: int) -> int:
    """Side of the planes of a mosaic's side: half of it, rounded up to `multiple`."""
    return -(-side // (2 * multiple)) * multiple


def pad(image: Any, multiple: int) -> Any:
    """Pad the last two axes to the next multiple by reflection at the bottom and right; any size.

    image: a NumPy array or a torch tensor, returned in kind.
    """
    height, width = image.shape[-2:]
    if height % multiple == 0 and width % multiple == 0:
        return image
    rows, columns = (reflected(side, -(-side // multiple) * multiple) for side in (height, width))
    return image[..., rows, :][..., columns]


def reflected(side: int, length: int) -> NDArray[np.intp]:
    """Indices 0 .. length-1 folded back into 0 .. side-1 about the edge pixels, as np.pad(mode="reflect") does."""
    period = max(2 * (side - 1), 1)
    position = np.arange(length) % period
    return np.minimum(position, period - position) if side > 1 else np.zeros(length, np.intp)


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it: 1112x1952."""
    return "x".join(str(side) for side in shape) or "a scalar"
