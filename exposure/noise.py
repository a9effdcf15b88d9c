"""Noise: how a camera turns light into DN, and what one electron is worth (the gain)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .noise_fit import NoiseFit

NOISE_MODELS = ("P+g", "P+G+r+u")
CALIBRATED_LEVELS = (2**13, 2**14)  # white - black in DN of a 14-bit file


@dataclass(frozen=True)
class Scale:
    """A noise scale in DN that follows the gain: log(scale) = slope * log(K) + bias, spread by sigma (natural log)."""

    slope: float
    bias: float
    sigma: float

    def at(self, gain: float, generator: np.random.Generator | None = None) -> float:
        """The scale in DN at a gain: one draw from its measured spread, without a generator the middle."""
        spread = generator.normal(0.0, self.sigma) if generator else 0.0
        return exp(self.slope * log(gain) + self.bias + spread)


@dataclass(frozen=True)
class ReadNoise:
    """What the electronics add to the photons' own noise, in DN.

    scale: of the noise of each pixel: its standard deviation, or with a `shape` the scale of a Tukey-lambda law.
    shape: lambda of that law; None for a Gaussian.
    row: standard deviation of what all pixels of a mosaic row share. step: DN of one level of the converter.
    """

    scale: float
    shape: float | None = None
    row: float = 0.0
    step: float = 0.0


@dataclass(frozen=True)
class Camera:
    """Noise calibration of one camera model (ELD, Wei et al., CVPR 2020 and TPAMI 2021).

    gain_100, gain_6400: system gain K in DN per electron at ISO 100 and 6400, linear in ISO between.
    gaussian: read noise of the `P+g` model. tukey, row: read and row noise of `P+G+r+u`.
    shapes: lambda of the Tukey law at the calibrated ISO steps, in 70ths.
    names: what the EXIF model tag says, in lower case.
    """

    gain_100: float
    gain_6400: float
    gaussian: Scale
    tukey: Scale
    row: Scale
    shapes: tuple[int, ...]
    names: tuple[str, ...]

    def gain(self, iso: float) -> float:
        """System gain K in DN per electron; continued linearly beyond ISO 6400."""
        if not iso > 0:
            raise ValueError(f"iso is {iso:g}; it must be positive")
        return self.gain_100 + (self.gain_6400 - self.gain_100) * (iso - 100) / (6400 - 100)

    def read_noise(self, gain: float, model: str = "P+g", generator: np.random.Generator | None = None) -> ReadNoise:
        """Read noise at a gain: one shot's draw from the measured spread, without a generator its middle.

        model: "P+g" (Poisson and Gaussian) or "P+G+r+u" (Poisson, Tukey lambda, rows, quantisation).
        """
        if model not in NOISE_MODELS:
            raise ValueError(f'noise model is "{model}"; it must be one of {", ".join(NOISE_MODELS)}')
        if model == "P+g":
            return ReadNoise(self.gaussian.at(gain, generator))
        shape = generator.choice(self.shapes) if generator else median(self.shapes)
        return ReadNoise(self.tukey.at(gain, generator), float(shape) / 70, self.row.at(gain, generator), step=1.0)


# Measured by the authors of ELD, published with their code under the MIT licence.
CAMERAS = {
    "SonyA7S2": Camera(
        gain_100=0.0939161,
        gain_6400=6.0106285,
        gaussian=Scale(0.5407496, 1.2182371, 0.2675121),
        tukey=Scale(0.4621050, 0.5657147, 0.2633712),
        row=Scale(0.5275360, -0.5917003, 0.2942881),
        shapes=(8, 9, 4, 3, 0, 0, -3, -4, -6, -6, -6, -6, -8, -8, -10, -9, -10, -10),
        names=("ilce-7sm2",),
    ),
    "NikonD850": Camera(
        gain_100=0.4150393,
        gain_6400=26.5625169,
        gaussian=Scale(0.5634613, 0.7994101, 0.2140823),
        tukey=Scale(0.4773897, -0.0904450, 0.2392006),
        row=Scale(0.4482922, -1.7977103, 0.2321799),
        shapes=(-8, -8, -14, -14, -15, -15, -16, -16, -17, -17, -12, -12, -10, -10, -7, -7),
        names=("nikon d850",),
    ),
    "CanonEOS5D4": Camera(
        gain_100=0.2181895,
        gain_6400=13.9641288,
        gaussian=Scale(0.6771268, 1.5121877, 0.2464110),
        tukey=Scale(0.6558756, 1.0926868, 0.2860472),
        row=Scale(0.4712798, -0.8078959, 0.2436176),
        shapes=(11, 10, 6, 6, 14, 14, 7, 6, 4, 5, 2, 2, 1, 2, 6, 5, 8, 8),
        names=("canon eos 5d mark iv",),
    ),
    "CanonEOS70D": Camera(
        gain_100=0.4074970,
        gain_6400=26.0798077,
        gaussian=Scale(0.5681184, 1.9982664, 0.2487022),
        tukey=Scale(0.4868061, 1.4642679, 0.3820056),
        row=Scale(0.7292221, -0.9370565, 0.2502156),
        shapes=(10, 10, 8, 8, 2, 2, -7, -6, -12, -12, -11, -11, -6, -6, -2, -2),
        names=("canon eos 70d",),
    ),
    "CanonEOS700D": Camera(
        gain_100=0.4476289,
        gain_6400=28.6482491,
        gaussian=Scale(0.6524588, 2.0798639, 0.2578159),
        tukey=Scale(0.5982362, 1.5370439, 0.3888189),
        row=Scale(0.6220588, -0.7756471, 0.2484808),
        shapes=(9, 9, 7, 7, 1, 1, -6, -7, -10, -11, -9, -9, -2, -2, 1, 1),
        names=("canon eos 700d", "canon eos rebel t5i", "canon eos kiss x7i"),
    ),
}


def calibrated_camera(model: str, saturation: float) -> Camera | None:
    """The calibration of the camera that wrote this EXIF model tag, if there is one for levels such as these.

    saturation: S, white - black in DN. The cameras were measured in 14 bit; a DN of a 12-bit mode or of a rescaled file
    is another one.
    """
    name = model.strip().lower()
    if not CALIBRATED_LEVELS[0] <= saturation < CALIBRATED_LEVELS[1]:
        return None
    return next((camera for key, camera in CAMERAS.items() if name in (*camera.names, key.lower())), None)


LARGEST_SCALE = 0.1  # of a noise profile: 10 electrons at white


def gain_from_noise_profile(profile: Sequence[float], saturation: float) -> float:
    """System gain K in DN per electron from a DNG NoiseProfile tag (51041).

    profile: pairs (s, o), one for all colours or one per colour; variance = s * signal + o with signal in [0, 1].
    Shot noise has variance K * DN, so K = s * S; colours are averaged.
    """
    scales = list(profile[0::2])
    if not scales or len(profile) % 2 or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        raise ValueError(
            f"noise profile is {list(profile)}; it must hold pairs with a scale above 0, and up to {LARGEST_SCALE:g}"
        )
    return saturation * sum(scales) / len(scales)


def noise_profile(gain: float, read_noise: float, saturation: float) -> tuple[float, float]:
    """The pair (s, o) of a DNG NoiseProfile tag, the inverse of `gain_from_noise_profile`: s = K / S, o = (g / S)^2.

    gain: K in DN per electron. read_noise: g, standard deviation in DN. saturation: S in DN.
    """
    return gain / saturation, (read_noise / saturation) ** 2


def choose_gain(
    model: str,
    iso: float,
    profile: Sequence[float],
    saturation: float,
    fit: Callable[[], NoiseFit] | None = None,
) -> tuple[float, str]:
    """System gain K in DN per electron from what a file says of itself, and where it comes from.

    A calibrated camera at a known ISO (0 where unknown) comes first, then the DNG noise profile (empty where absent),
    then `fit`, an estimate from the file's own noise. Raises ValueError, one sentence that asks for the gain, when
    nothing tells.
    """
    camera = calibrated_camera(model, saturation)
    if camera and iso:
        return camera.gain(iso), f"calibrated {model} at ISO {iso:g}"
    reasons = ["its ISO is unknown" if camera else f"{f'its camera {model}'.rstrip()} is not calibrated"]
    try:
        return gain_from_noise_profile(profile, saturation), "noise profile of the file"
    except ValueError as error:
        reasons.append(f"its {error}" if profile else "it has no noise profile")
    if fit:
        try:
            found = fit()
            return found.gain, f"estimated from the file's noise, +- {found.error:.2g}"
        except ValueError as error:
            reasons.append(str(error))
    remedy = f"give --iso for the calibrated {model}, or --gain" if camera else "give --gain"
    raise ValueError(f"{', '.join(reasons)}; {remedy} in DN per electron")


def expose_short(
    clean: NDArray[np.floating[Any]],
    *,
    ratio: float,
    gain: float,
    saturation: float,
    read_noise: ReadNoise,
    seed: int | np.random.Generator = 0,
) -> NDArray[np.float64]:
    """Simulate what a sensor reads when it gets only 1/ratio of the light.

    clean: signal in [0, 1] of the long exposure, a mosaic [H, W] or its planes [4, h, w].
    Returns DN above black of the short exposure, not rounded and not clipped:
    Poisson(clean * S / (R * K)) * K + read noise + row noise + quantisation noise.
    """
    generator = np.random.default_rng(seed)
    dn = generator.poisson(np.clip(clean, 0, 1) * saturation / (ratio * gain)) * float(gain)
    if read_noise.shape is None:
        dn += generator.normal(0.0, read_noise.scale, clean.shape)
    else:
        dn += read_noise.scale * tukey_lambda(generator.random(clean.shape), read_noise.shape)
    if read_noise.row:
        dn += read_noise.row * _rows(generator, clean.shape)
    if read_noise.step:
        dn += generator.uniform(-0.5 * read_noise.step, 0.5 * read_noise.step, clean.shape)
    return dn


def tukey_lambda(uniform: NDArray[np.float64], shape: float) -> NDArray[np.float64]:
    """Quantile function of the Tukey-lambda law: heavy tails below 0, logistic at 0, nearly Gaussian at 0.14."""
    below = np.maximum(uniform, np.finfo(np.float64).tiny)  # a uniform draw may be exactly 0
    if shape == 0:
        return np.log(below) - np.log1p(-uniform)
    return (below**shape - (1 - uniform) ** shape) / shape


def _rows(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """One normal number for each row of the mosaic; planes 0, 1 and planes 2, 3 come from the same rows."""
    if len(shape) == 2:
        return generator.normal(size=(shape[0], 1))
    return np.repeat(generator.normal(size=(2, shape[1], 1)), 2, axis=0)
