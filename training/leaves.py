"""Dead leaves: clean pictures from nothing but a seed.

Opaque leaves fall on each other until nothing else shows. With a power law for their sizes such pictures have the edges
and the scale invariance of photographs (Lee, Mumford and Huang, IJCV 2001), and denoisers learn from them nearly what
they learn from photographs (Achddou, Gousseau and Ladjal, 2021).
"""

import numpy as np
from numpy.typing import NDArray

COVER, MOST = 4.0, 3000  # leaves fall until they could cover the canvas this many times; more would be specks


def dead_leaves(side: int, seed: int) -> NDArray[np.float32]:
    """A picture [side, side, 3] in [0, 1], as sRGB values, the same for the same seed: leaves, textures, soft shade."""
    generator = np.random.default_rng(seed)
    radii = _radii(generator, side)
    grey, colourful = generator.uniform(0, 1, (8, 1)), generator.uniform(0, 0.8) * generator.uniform(-0.5, 0.5, (8, 3))
    palette = np.clip(grey + colourful, 0, 1)  # most of the world is hardly coloured
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = palette[0]
    for radius in sorted(radii, reverse=generator.random() < 0.5):
        _drop(canvas, radius, palette[generator.integers(len(palette))], generator)
    return np.clip(canvas * _shade(side, generator), 0, 1)


def _radii(generator: np.random.Generator, side: int) -> NDArray[np.float64]:
    """Radii in pixels with density r^-3 between a random smallest and largest, enough to cover the canvas."""
    smallest, largest = generator.uniform(1.5, 8.0), side * generator.uniform(0.15, 0.5)
    count = int(COVER * side**2 / (2 * np.pi * smallest**2 * np.log(largest / smallest)))
    uniform = generator.random(min(count, MOST))
    return smallest / np.sqrt(1 - uniform * (1 - (smallest / largest) ** 2))


def _drop(
    canvas: NDArray[np.float32], radius: float, colour: NDArray[np.float64], generator: np.random.Generator
) -> None:
    """One leaf: a wobbly ellipse of one colour with its own texture, its edge one pixel soft."""
    side = len(canvas)
    row, column = generator.uniform(0, side, 2)
    reach = int(np.ceil(1.3 * radius)) + 1
    top, left = max(int(row) - reach, 0), max(int(column) - reach, 0)
    area = canvas[top : int(row) + reach + 1, left : int(column) + reach + 1]
    y = (np.arange(top, top + area.shape[0]) - row)[:, None].astype(np.float32)
    x = (np.arange(left, left + area.shape[1]) - column)[None].astype(np.float32)
    turn, squeeze = generator.uniform(0, np.pi), generator.uniform(0.5, 1.0)
    along, across = np.cos(turn) * x + np.sin(turn) * y, (np.cos(turn) * y - np.sin(turn) * x) / squeeze
    distance = np.hypot(along, across)
    if radius > 4:
        lobes, phase = generator.integers(2, 7), generator.uniform(0, 2 * np.pi)
        distance = distance * (1 + generator.uniform(0, 0.25) * np.sin(lobes * np.arctan2(across, along) + phase))
    opacity = np.clip(squeeze * (radius - distance) + 0.5, 0, 1)[..., None]
    jitter = generator.normal(0, 0.06, 3)
    leaf = (colour + jitter) * _texture(along, across, radius, generator)
    area += opacity * (leaf.astype(np.float32) - area)


def _texture(
    along: NDArray[np.float32], across: NDArray[np.float32], radius: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """A factor around 1, [rows, columns, 1 or 3]: plain, shaded, striped or grainy."""
    kind = generator.choice(4, p=(0.25, 0.3, 0.25, 0.2))
    if kind == 0 or radius < 3:
        return np.ones((1, 1, 1), np.float32)
    if kind == 1:
        return (1 + generator.uniform(-0.6, 0.6) * along / radius)[..., None]
    if kind == 2:
        wave = 2 * np.pi / generator.uniform(2.5, max(radius, 4.0))
        return (1 + generator.uniform(0.02, 0.4) * np.sin(wave * along + 0.3 * wave * across))[..., None]
    grain = generator.normal(0, 1, (*along.shape, 1)).astype(np.float32)
    coarse = generator.integers(1, 5)
    grain = np.repeat(np.repeat(grain[::coarse, ::coarse], coarse, 0), coarse, 1)[: along.shape[0], : along.shape[1]]
    return 1 + generator.uniform(0.02, 0.3) * grain


def _shade(side: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Soft light across the picture, [side, side, 1]: a plane and a few wide bumps."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    light = 1 + generator.uniform(-0.4, 0.4) * (rows - 0.5) + generator.uniform(-0.4, 0.4) * (columns - 0.5)
    for _ in range(generator.integers(0, 3)):
        row, column, width = generator.uniform(0, 1), generator.uniform(0, 1), generator.uniform(0.15, 0.5)
        light += generator.uniform(-0.6, 0.6) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / width**2)
    return np.asarray(np.clip(light, 0.1, 2.0)[..., None], np.float32)
