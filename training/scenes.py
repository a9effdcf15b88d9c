"""Clean RAW from pictures: what a sensor would have read, had it taken the scene in the photograph.

Unprocessing (Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019): inverse tone curve, linear
light, camera colours, white balance, exposure. Every choice is drawn anew for each crop, from a seed.
"""

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exposure.srgb import linear_light

from .leaves import dead_leaves

SUFFIXES: Set[str] = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}
CANVAS, REUSED = 320, 40  # side of a canvas of leaves in pixels; how many crops are cut from it, for it takes long
DECODED_BYTES = 2**29  # of decoded pictures that a process keeps; others are decoded again for each crop
ZOOM = 3.0  # at most, pictures are shrunk by; that frees them of JPEG blocks too


@dataclass(frozen=True)
class Development:
    """How a camera's signal became a picture, to be undone.

    tone: whether an S-shaped tone curve was applied. colours: [3, 3], linear sRGB to camera, rows sum to 1.
    red, blue: white-balance gains. exposure: factor on the signal; what exceeds 1 is clipped, as a sensor clips.
    """

    tone: bool
    colours: NDArray[np.float64]
    red: float
    blue: float
    exposure: float


# What a typical daylight picture needs: the fixed development of all simulated evaluation.
DAYLIGHT = Development(
    tone=False,
    colours=np.array([[0.70, 0.25, 0.05], [0.15, 0.75, 0.10], [0.03, 0.22, 0.75]]),
    red=2.0,
    blue=1.6,
    exposure=1.0,
)


def random_development(generator: np.random.Generator) -> Development:
    """Any camera, any light, from overexposed to dim scenes."""
    spill = generator.uniform(0.0, 0.35, (3, 3)) * (1 - np.eye(3))
    return Development(
        tone=bool(generator.random() < 0.5),
        colours=spill + np.diag(1 - spill.sum(axis=1)),
        red=float(generator.uniform(1.2, 2.8)),
        blue=float(generator.uniform(1.2, 2.8)),
        exposure=float(2.0 ** generator.uniform(-1.5, 0.5)),
    )


def unprocessed(srgb: NDArray[np.float32], development: Development) -> NDArray[np.float32]:
    """The packed RAW behind a picture: [2h, 2w, 3] sRGB in [0, 1] to [4, h, w] signal in [0, 1]; planes R, G, B, G."""
    if development.tone:  # the inverse of 3x^2 - 2x^3
        srgb = 0.5 - np.sin(np.arcsin(1 - 2 * srgb) / 3)
    balance = np.array([development.red, 1.0, development.blue])
    camera = linear_light(srgb) @ (development.exposure * development.colours / balance[:, None]).T.astype(np.float32)
    red, green, blue = np.moveaxis(camera, -1, 0)
    planes = [red[0::2, 0::2], green[0::2, 1::2], blue[1::2, 1::2], green[1::2, 0::2]]
    return np.clip(np.stack(planes), 0, 1).astype(np.float32)


class Scenes:
    """An endless list of clean crops, [4, side, side] in [0, 1]; the same index and seed give the same crop.

    photographs: pictures to unprocess; leaves: the share of crops that come from dead leaves, all where none is given.
    """

    def __init__(self, photographs: Sequence[Path] = (), *, side: int, leaves: float = 0.3, seed: int = 0) -> None:
        if not 0 <= leaves <= 1:
            raise ValueError(f"share of dead leaves is {leaves:g}; it must lie in [0, 1]")
        self.photographs, sizes = photographs, [_bytes_decoded(path, 2 * side) for path in photographs]
        kept = max(1, DECODED_BYTES * len(sizes) // max(1, sum(sizes)))
        self._photograph = lru_cache(maxsize=kept)(read_picture)
        self.side, self.seed = side, seed
        self.leaves = leaves if self.photographs else 1.0
        self._canvas = lru_cache(maxsize=4)(lambda number: dead_leaves(max(CANVAS, 2 * side), (seed << 32) + number))

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        generator = np.random.default_rng([self.seed, index])
        if generator.random() < self.leaves:
            picture = self._from_leaves(index, generator)
        else:
            picture = self._from_photograph(generator)
        if generator.random() < 0.5:
            picture = picture.swapaxes(0, 1)
        planes = unprocessed(picture, random_development(generator))
        down, right = generator.choice([1, -1], 2)  # mirrored planes are those of another Bayer phase
        return np.ascontiguousarray(planes[:, ::down, ::right])

    def _from_photograph(self, generator: np.random.Generator) -> NDArray[np.float32]:
        image = self._photograph(self.photographs[generator.integers(len(self.photographs))])
        pixels = 2 * self.side
        zoom = generator.uniform(1.0, min(ZOOM, min(image.size) / pixels))  # smaller is sharper
        x, y = (generator.uniform(0, side - zoom * pixels) for side in image.size)
        box = (x, y, x + zoom * pixels, y + zoom * pixels)
        crop = image.resize((pixels, pixels), Image.Resampling.BICUBIC, box)
        return np.asarray(crop, np.float32) / 255

    def _from_leaves(self, index: int, generator: np.random.Generator) -> NDArray[np.float32]:
        canvas = self._canvas(int(index * self.leaves) // REUSED)
        row, column = generator.integers(0, len(canvas) - 2 * self.side + 1, 2)
        return canvas[row : row + 2 * self.side, column : column + 2 * self.side]


def pictures_in(folder: Path, suffixes: Set[str] = SUFFIXES) -> list[Path]:
    """All pictures of a folder and its subfolders, by name. Raises ValueError where there is none."""
    found = sorted(path for path in folder.rglob("*") if is_of(path, suffixes))
    if not found:
        raise ValueError(f"{folder}: there is no picture in it ({', '.join(sorted(suffixes))})")
    return found


def is_of(path: Path, suffixes: Set[str]) -> bool:
    """Whether a file bears one of them, and is not hidden, as the ._a.jpg that macOS leaves on other file systems."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def listed(path: Path) -> list[str]:
    """The entries of a list file, one a line; blank lines and those that start with # do not count."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def read_picture(path: Path) -> Image.Image:
    """A picture as sRGB. Raises ValueError, one sentence, for what is none."""
    with _opened(path) as image:
        return image.convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header is read, and nothing more."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # which the conversion clips to white
                raise ValueError(f"{path}: a grey picture of more than 8 bits; save it with 8")
            yield image
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{path}: more than {most} megapixels, the most that a picture may have") from error
    except (OSError, SyntaxError) as error:  # the latter of a PNG whose chunks are broken
        raise ValueError(f"{path}: not a picture that can be read") from error


def _bytes_decoded(path: Path, crop: int) -> int:
    with _opened(path) as picture:
        if min(picture.size) < crop:
            raise ValueError(f"{path} is {picture.width}x{picture.height}; a crop needs {crop} pixels a side")
        return 3 * picture.width * picture.height
