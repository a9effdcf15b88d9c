"""What is done to a file: the choices before the request, and what becomes of the answer."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exposure.defects import Defects, find_defects
from exposure.noise import CAMERAS, calibrated_camera, choose_gain, noise_profile
from exposure.noise_fit import fit_noise
from exposure.schedule import SERVED_PASSES
from exposure.sensor import Sensor

from . import target
from .output import FORMATS, Exposed, asked_for
from .rawfile import RawFile
from .tags import known_numbers
from .triton import Answer

LARGEST_DN = np.float32(65535)
LEVELS = 2**14  # that a result has room for: coarser steps show in smooth shadows, where noise hid them before
LARGEST_FP32 = float(np.finfo(np.float32).max)  # ratio and gain are sent so


@dataclass(frozen=True)
class Choice:
    """R and K of one file, and where each comes from; its defective pixels, or None where they are kept."""

    ratio: float
    ratio_reason: str
    gain: float
    gain_reason: str
    defects: Defects | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        chosen = f"ratio {self.ratio:.4g} ({self.ratio_reason}), gain {self.gain:.3g} DN/e- ({self.gain_reason})"
        count = len(self.defects or ())
        return f"{chosen}, {count} defective {'pixel' if count == 1 else 'pixels'} corrected" if count else chosen

    def as_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "ratio": self.ratio,
            "ratio_reason": self.ratio_reason,
            "gain": self.gain,
            "gain_reason": self.gain_reason,
            "defective_pixels": None if self.defects is None else len(self.defects),
        }


@dataclass(frozen=True)
class Recipe:
    """The flags of `exposure denoise` that decide what a result looks like, one to one.

    One of ratio, ev, like and auto must be given. Raises ValueError, one sentence, for values that make no sense.
    """

    ratio: float | None = None
    ev: float | None = None
    like: Path | None = None
    auto: bool = False
    gain: float | None = None
    iso: float | None = None
    passes: int = 3
    seed: int = 0
    strength: float = 1.0
    keep_exposure: bool = False
    keep_defects: bool = False
    formats: tuple[str, ...] = ("dng",)
    preview: bool = False

    def __post_init__(self) -> None:
        values = {"ratio": self.ratio, "ev": self.ev, "like": self.like, "auto": self.auto or None}
        targets = [name for name, value in values.items() if value is not None]
        if len(targets) != 1:
            given = f"{' and '.join(targets)} are given" if targets else "nothing is given"
            raise ValueError(f"{given}; give one of ratio, ev, like and auto")
        if self.ratio is not None and not 1 <= self.ratio <= LARGEST_FP32:
            remark = (
                "no exposure is that long" if self.ratio > 1 else "a target exposure is at least the file's own (1)"
            )
            raise ValueError(f"--ratio is {self.ratio:g}; {remark}")
        if self.ev is not None:
            target.ratio_from_ev(self.ev)
        if self.gain is not None and not _is_positive(self.gain):
            raise ValueError(f"--gain is {self.gain:g}; it must be positive, in DN per electron")
        if self.iso is not None and not 0 < self.iso < np.inf:
            raise ValueError(f"--iso is {self.iso:g}; it must be positive")
        if self.passes not in SERVED_PASSES:
            raise ValueError(f"--passes is {self.passes}; choose from {SERVED_PASSES}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"--seed is {self.seed}; it must be an unsigned 64-bit integer")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"--strength is {self.strength:g}; it is the share of the denoised result, from 0 to 1")
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(f'--format "{name}" is unknown; choose from {",".join(FORMATS)}')

    def choose(self, file: RawFile, long: RawFile | None = None) -> Choice:
        """R, K and defects of one file; long: of --like. Raises ValueError where it does not tell what is needed."""
        gain, reason = self._gain(file)
        defects = None if self.keep_defects else find_defects(file.mosaic, file.sensor, gain)
        return Choice(*self._ratio(_corrected(file, defects), long), gain, reason, defects)

    def _ratio(self, file: RawFile, long: RawFile | None) -> tuple[float, str]:
        if self.ratio is not None:
            return self.ratio, f"as given{_beyond(self.ratio)}"
        if self.ev is not None:
            ratio = target.ratio_from_ev(self.ev)
            return ratio, f"{self.ev:+g} EV{_beyond(ratio)}"
        if self.like is not None:
            if long is None:
                raise ValueError(f"{self.like} has not been read")
            ratio = target.ratio_like(file, long)
            return ratio, f"like {long.path.name}{_beyond(ratio)}"
        return target.brightest_ratio(file), "from the histogram"

    def _gain(self, file: RawFile) -> tuple[float, str]:
        if self.gain is not None:
            return self.gain, "as given"
        if any(share > 0 for share in known_numbers(file.tags, "NoiseReductionApplied")):
            raise ValueError(
                "its noise was reduced before, so that nothing tells its gain; give --gain in DN per electron"
            )
        if self.iso is not None and not calibrated_camera(file.model, file.sensor.saturation):
            levels = f"this is {file.model or 'unknown'}, with {file.sensor.saturation:g} DN from black to white"
            raise ValueError(f"--iso works for {', '.join(CAMERAS)} alone, at 14 bits; {levels}: give --gain")
        iso = file.iso if self.iso is None else self.iso
        return choose_gain(
            file.model, iso, file.noise_profile, file.sensor.saturation, lambda: fit_noise(file.mosaic, file.sensor)
        )

    def request(self, file: RawFile, choice: Choice) -> dict[str, Any]:
        """The arguments of `Client.answer`, in the levels of `finer`; the gain, in FP32 as it is told, too."""
        mosaic = _corrected(file, choice.defects).mosaic
        mosaic, sensor, gain = finer(mosaic, file.sensor, float(np.float32(choice.gain)))
        physics = {"ratio": choice.ratio, "gain": gain, "passes": self.passes, "seed": self.seed}
        return {"mosaic": mosaic, "sensor": sensor, **physics}

    def has_new_levels(self, file: RawFile, choice: Choice) -> bool:
        """Whether black and white of a result are others than the file's."""
        return self.keep_exposure or _fineness(_corrected(file, choice.defects).mosaic, file.sensor) > 1

    def finish(self, file: RawFile, answer: Answer, choice: Choice) -> Exposed:
        """What is written: the answer, in its levels, blended with the brightened file, at the exposure asked for."""
        fine, denoised = _in_levels_of(answer.sensor, _corrected(file, choice.defects)), answer.denoised
        if self.strength < 1:
            denoised = blended(denoised, _multiplied(fine, choice.ratio), self.strength)
        scale, offset = self._noise(file, choice)
        made_with = asked_for(
            choice.ratio,
            choice.gain,
            self.passes,
            self.seed,
            answer.checkpoint,
            strength=self.strength,
            keep_exposure=self.keep_exposure,
            defects=None if choice.defects is None else len(choice.defects),
            dark_frames=file.dark_frames,
        )
        if not self.keep_exposure:
            return Exposed(fine.sensor, denoised, (scale, offset), self.strength, made_with)
        sensor, mosaic = at_own_exposure(fine, denoised, choice.ratio, self.seed)
        profile = scale / choice.ratio, offset / choice.ratio**2
        return Exposed(sensor, mosaic, profile, self.strength, made_with)

    def _noise(self, file: RawFile, choice: Choice) -> tuple[float, float]:
        """The noise profile of a result, about the most that is left: variance = scale * signal + offset.

        Denoised, the photon noise of the exposure that it stands for, K / S * signal. The brightened file has R times
        that, and R^2 times its read noise, where a profile or a calibration tells it; in a blend, deviations add up.
        """
        own = 1 - self.strength
        camera = calibrated_camera(file.model, file.sensor.saturation)
        read_noise = camera.read_noise(choice.gain).scale if camera else 0.0
        scale, offset = noise_profile(choice.gain, read_noise, file.sensor.saturation)
        told = [value for value in file.noise_profile[1::2] if np.isfinite(value)]
        offset = max(float(np.mean(told)), 0.0) if told else offset
        return (self.strength + own * choice.ratio**0.5) ** 2 * scale, (own * choice.ratio) ** 2 * offset


def _corrected(file: RawFile, defects: Defects | None) -> RawFile:
    return replace(file, mosaic=defects.corrected(file.mosaic)) if defects else file


def _is_positive(gain: float) -> bool:
    """Also as the server gets it, in FP32."""
    return float(np.finfo(np.float32).tiny) <= gain <= LARGEST_FP32


def formats_of(text: str) -> tuple[str, ...]:
    """The formats of a --format flag, each once, under the names that `output` knows."""
    names = (name.strip().lower() for name in text.split(","))
    return tuple(dict.fromkeys({"tif": "tiff", "jpeg": "jpg"}.get(name, name) for name in names))


def _beyond(ratio: float) -> str:
    """A remark where no published or shipped network was trained for so much."""
    longest = target.LARGEST_AUTO_RATIO
    return f", beyond the {longest:g} that networks are trained for" if ratio > longest else ""


def finer(mosaic: NDArray[np.uint16], sensor: Sensor, gain: float) -> tuple[NDArray[np.uint16], Sensor, float]:
    """A mosaic [H, W] in levels 2^n times finer, as far as 14 bits hold white; gain: K, to be in DN of these, too."""
    steps = _fineness(mosaic, sensor)
    return (mosaic * np.uint16(steps), _in_steps(sensor, steps), steps * gain) if steps > 1 else (mosaic, sensor, gain)


def _fineness(mosaic: NDArray[np.uint16], sensor: Sensor) -> int:
    """2^n, as far as 14 bits hold white so many times, and 16 the brightest pixel."""
    steps, most = 1, int(mosaic.max())
    while 2 * steps * sensor.white < LEVELS and 2 * steps * most <= LARGEST_DN:
        steps *= 2
    return steps


def _in_levels_of(sensor: Sensor, file: RawFile) -> RawFile:
    """The file in those levels, a whole number of times finer than its own."""
    steps = round(sensor.white / file.sensor.white)
    return file if steps == 1 else replace(file, mosaic=file.mosaic * np.uint16(steps), sensor=sensor)


def _in_steps(sensor: Sensor, steps: int) -> Sensor:
    """Levels so many times finer."""
    b0, b1, b2, b3 = (steps * level for level in sensor.black)
    return replace(sensor, black=(b0, b1, b2, b3), white=steps * sensor.white)


def _multiplied(file: RawFile, ratio: float) -> NDArray[np.float32]:
    """The brightened file in DN, with the noise below black: without it, its mean would lift and tint shadows."""
    black = file.sensor.black_of(file.mosaic.shape)
    return np.clip((file.mosaic - black) * np.float32(ratio) + black, -LARGEST_DN, np.float32(file.sensor.white))


def blended(denoised: NDArray[np.uint16], noisy: NDArray[np.float32], strength: float) -> NDArray[np.uint16]:
    """strength * denoised + (1 - strength) * noisy, in DN of the same levels, rounded; what is below 0 is 0."""
    mixed = noisy + np.float32(strength) * (denoised.astype(np.float32) - noisy)
    rounded: NDArray[np.uint16] = np.rint(mixed).clip(0, LARGEST_DN).astype(np.uint16)
    return rounded


def at_own_exposure(
    file: RawFile, denoised: NDArray[np.uint16], ratio: float, seed: int
) -> tuple[Sensor, NDArray[np.uint16]]:
    """Take the brightness back: the denoised signal / R, in levels a whole number of times finer, up to 16 bits.

    Where the brightened file clips, its own pixels stay. Rounding is dithered, since a later push makes its steps
    visible: a quarter of a DN for 14 bit, where the read noise was several DN.
    Returns the finer levels, and the mosaic in them.
    """
    steps = int(65535 // file.sensor.white)
    black = file.sensor.black_of(file.mosaic.shape)
    own = file.mosaic - black
    clips = own * np.float32(ratio) >= file.sensor.white - black
    signal = np.where(clips, own, (denoised - black) / np.float32(ratio))
    dither = np.random.default_rng(seed).random(denoised.shape, np.float32)
    level = np.floor(np.float32(steps) * (signal + black) + dither)
    mosaic: NDArray[np.uint16] = np.clip(level, 0, 65535).astype(np.uint16)
    return _in_steps(file.sensor, steps), mosaic
