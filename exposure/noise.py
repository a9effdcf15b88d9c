"""Noise: how a camera turns light into DN, and what one electron is worth (the gain)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Camera:
    """Noise calibration of one camera model (ELD, Wei et al., CVPR 2020 and TPAMI 2021).

    gain_100, gain_6400: system gain K in DN per electron at ISO 100 and 6400, linear in ISO between.
    read_slope, read_bias: log of the Gaussian read noise (DN) against log K.
    names: what the EXIF model tag says, in lower case.
    """

    gain_100: float
    gain_6400: float
    read_slope: float
    read_bias: float
    names: tuple[str, ...]

    def gain(self, iso: float) -> float:
        """System gain K in DN per electron; continued linearly beyond ISO 6400."""
        if not iso > 0:
            raise ValueError(f"iso is {iso:g}; it must be positive")
        return self.gain_100 + (self.gain_6400 - self.gain_100) * (iso - 100) / (6400 - 100)

    def read_noise(self, gain: float) -> float:
        """Standard deviation g of the Gaussian read noise in DN, the middle of its measured spread."""
        return exp(self.read_slope * log(gain) + self.read_bias)


# Measured by the authors of ELD, published with their code under the MIT licence.
CAMERAS = {
    "SonyA7S2": Camera(0.0939161, 6.0106285, 0.5407496, 1.2182371, ("ilce-7sm2",)),
    "NikonD850": Camera(0.4150393, 26.5625169, 0.5634613, 0.7994101, ("nikon d850",)),
    "CanonEOS5D4": Camera(0.2181895, 13.9641288, 0.6771268, 1.5121877, ("canon eos 5d mark iv",)),
    "CanonEOS70D": Camera(0.4074970, 26.0798077, 0.5681184, 1.9982664, ("canon eos 70d",)),
    "CanonEOS700D": Camera(
        0.4476289,
        28.6482491,
        0.6524588,
        2.0798639,
        ("canon eos 700d", "canon eos rebel t5i", "canon eos kiss x7i"),
    ),
}


def calibrated_camera(model: str) -> Camera | None:
    """The calibration of the camera that wrote this EXIF model tag, if there is one."""
    name = model.strip().lower()
    return next((camera for key, camera in CAMERAS.items() if name in (*camera.names, key.lower())), None)


def gain_from_noise_profile(profile: Sequence[float], saturation: float) -> float:
    """System gain K in DN per electron from a DNG NoiseProfile tag (51041).

    profile: pairs (s, o), one for all colours or one per colour; variance = s * signal + o with signal in [0, 1].
    Shot noise has variance K * DN, so K = s * S; colours are averaged.
    """
    scales = list(profile[0::2])
    if not scales or len(profile) % 2 or not all(np.isfinite(scales)) or min(scales) <= 0:
        raise ValueError(f"noise profile is {list(profile)}; it must hold pairs with a positive, finite scale")
    return saturation * sum(scales) / len(scales)


def choose_gain(model: str, iso: float, noise_profile: Sequence[float], saturation: float) -> tuple[float, str]:
    """System gain K in DN per electron from what a file says of itself, and where it comes from.

    A calibrated camera at a known ISO (0 where unknown) comes first, then the DNG noise profile (empty where absent).
    Raises ValueError, one sentence that asks for the gain, when neither is there.
    """
    camera = calibrated_camera(model)
    if camera and iso:
        return camera.gain(iso), f"calibrated {model} at ISO {iso:g}"
    if noise_profile:
        return gain_from_noise_profile(noise_profile, saturation), "noise profile of the file"
    if camera:
        raise ValueError(f"its ISO is unknown; give --iso for the calibrated {model}, or --gain in DN per electron")
    name = model or "this camera"
    raise ValueError(f"its gain is unknown: no calibration of {name}, no noise profile; give --gain in DN per electron")


def expose_short(
    clean: NDArray[np.floating[Any]], *, ratio: float, gain: float, saturation: float, read_noise: float, seed: int = 0
) -> NDArray[np.float64]:
    """Simulate the `P+g` camera: what a sensor reads when it gets only 1/ratio of the light.

    clean: signal in [0, 1] of the long exposure. Returns DN above black of the short one, not rounded:
    Poisson(clean * S / (R * K)) * K + N(0, read_noise).
    """
    generator = np.random.default_rng(seed)
    electrons = generator.poisson(np.clip(clean, 0, 1) * saturation / (ratio * gain))
    return electrons * gain + generator.normal(0.0, read_noise, clean.shape)
