"""The exposure schedule: every number that physics contributes to a pass."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

PUBLISHED_PHOTON_UNIT = 15583.0
"""Photon unit of the published checkpoints: white 16383 - black 800, in DN of the Sony A7S2."""

SERVED_PASSES = (1, 2, 3, 4)  # one ensemble each; the paper uses 3, and a fourth hurts
TRAINED_RATIOS = (1.0, 300.0)  # of the default network; the other shipped ones and the published saw 20 to 300
MOST_ELECTRONS = 2.0**24  # beyond, FP32 cannot count; a hundred times the deepest photosite


@dataclass(frozen=True)
class Step:
    """One pass: the four floats that kernels, engines and served models see instead of R, K and S."""

    photon_gain: float
    """Scales the image to the photon planes that the network was trained with."""
    photons: float
    """Electrons that a full-scale pixel collects during the injected exposure."""
    keep: float
    """Weight of the packed input in the next image."""
    per_photon: float
    """Signal that one injected electron adds to the next image."""


def unroll(
    ratio: float, gain: float, saturation: float, passes: int, *, photon_unit: float = PUBLISHED_PHOTON_UNIT
) -> tuple[Step, ...]:
    """Plan `passes` network evaluations from the file's own exposure to one `ratio` times longer.

    ratio: R, target exposure / exposure of the file, at least 1.
    gain: K, the system gain in DN per electron.
    saturation: S, white - black in DN.
    photon_unit: U, a property of the checkpoint, in DN.

    Exposure is conserved in every step: `keep + per_photon * photons == 1`.
    Raises ValueError for values outside these ranges. Source: ExposureDiffusion, ICCV 2023, section 3.
    """
    for name, value in (("ratio", ratio), ("gain", gain), ("saturation", saturation)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value:g}; it must be positive and finite")
    if ratio < 1:
        raise ValueError(f"ratio is {ratio:g}; a target exposure is at least the file's own (1)")
    if saturation / gain > MOST_ELECTRONS:
        raise ValueError(
            f"gain is {gain:g}; a pixel of {saturation:g} DN would hold {saturation / gain:.1g} electrons, "
            f"and {MOST_ELECTRONS:.0f} can be counted"
        )
    if passes < 1:
        raise ValueError(f"passes is {passes}; at least one network evaluation is needed")
    if not photon_unit > 0:
        raise ValueError(f"photon unit is {photon_unit:g}; it must be positive")
    exposure = np.linspace(1.0, ratio, passes + 1).tolist()
    electrons = saturation / (ratio * gain)
    return tuple(step_between(now, after, electrons, photon_unit) for now, after in pairwise(exposure))


def step_between(now: Any, after: Any, electrons: Any, photon_unit: float) -> Step:
    """The step from one cumulative exposure to a longer one, both in units of the file's own.

    electrons: S / (R * K), those that the file holds where its brightened image is 1. Numbers, or one an image.
    """
    return Step(
        photon_gain=now * electrons / photon_unit,
        photons=(after - 1.0) * electrons,
        keep=1.0 / after,
        per_photon=1.0 / (electrons * after),
    )
