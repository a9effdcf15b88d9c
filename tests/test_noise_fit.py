"""The gain estimated from a file alone, against files of known gain."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from exposure.noise import CAMERAS, NOISE_MODELS, choose_gain, expose_short
from exposure.noise_fit import fit_noise
from exposure.sensor import Sensor, recorded, unpack
from exposure.training.scenes import DAYLIGHT, unprocessed

SENSOR = Sensor(black=(800, 810, 805, 800), white=16383, cfa=((1, 2), (0, 1)))
CAMERA = CAMERAS["SonyA7S2"]


def smooth_scene(side: int = 512) -> NDArray[Any]:
    """Walls, sky and a textured corner, packed [4, side, side] in [0, 1]."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    light = 0.05 + 0.5 * rows * (columns > 0.3) + 0.3 * (rows > 0.6)
    texture = 0.2 * np.random.default_rng(0).random((side, side)) * ((rows < 0.3) & (columns < 0.3))
    return ((light + texture)[None] * np.array([0.5, 1.0, 0.6, 1.0])[:, None, None]).astype(np.float32)


def shot(clean: NDArray[Any], gain: float, ratio: float, model: str = "P+g", seed: int = 0) -> NDArray[Any]:
    height, width = (2 * side for side in clean.shape[1:])
    black = np.tile(np.reshape(SENSOR.black, (2, 2)), (height // 2, width // 2))
    signal = (unpack(clean, SENSOR, (height, width)) - black) / SENSOR.saturation
    noise = CAMERA.read_noise(gain, model)
    dn = expose_short(signal, ratio=ratio, gain=gain, saturation=SENSOR.saturation, read_noise=noise, seed=seed)
    return recorded(dn, SENSOR)


@pytest.mark.parametrize("model", NOISE_MODELS)
@pytest.mark.parametrize("gain", [0.1, 0.3, 1.0, 3.0, 10.0, 24.0])
def test_known_gains_are_found(gain: float, model: str) -> None:
    for ratio in (10, 100, 300):
        fit = fit_noise(shot(smooth_scene(), gain, ratio, model), SENSOR)
        assert fit.gain == pytest.approx(gain, rel=0.15)
        assert abs(fit.gain - gain) < 6 * fit.error  # where the model holds, the error is honest
        assert fit.error < 0.2 * fit.gain


def test_known_gains_are_found_in_photographs(data: Path) -> None:
    """Texture that looks like noise makes it harder: half are within 8 %, all within 45 %."""
    off = []
    for name in ("budgie-lake-sherburne", "budgie-san-francisco-skyline", "elementary-william-bout-lighthouse"):
        with Image.open(data / "photos" / f"{name}.jpg") as image:
            picture = np.asarray(image.convert("RGB"), np.float32)[:960, :960] / 255
        for gain in (1.0, 3.0, 10.0):
            fit = fit_noise(shot(unprocessed(picture, DAYLIGHT), gain, 100), SENSOR)
            off.append(abs(np.log(fit.gain / gain)))
    assert np.median(off) < 0.08
    assert max(off) < 0.37


def test_the_error_is_honest_where_texture_passes_for_noise(data: Path) -> None:
    """Of every sixth photograph: 0.80 here; without the disagreement of places 1.05, without that of halves 0.94."""
    deviations = []
    for path in sorted((data / "photos").glob("*.jpg"))[::6]:
        with Image.open(path) as image:
            picture = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2)).convert("RGB")
        clean = unprocessed(np.asarray(picture, np.float32) / 255, DAYLIGHT)
        for gain in (1.0, 3.0):
            fit = fit_noise(shot(clean, gain, 100), SENSOR)
            deviations.append((fit.gain - gain) / fit.error)
    assert len(deviations) == 16
    assert np.sqrt(np.mean(np.square(deviations))) < 0.9


def test_a_dark_scene_with_few_lights_is_not_estimated_too_low(data: Path) -> None:
    """Its bins are skewed: the median variance of one beside its mean level told 2.04 to 2.24 here."""
    with Image.open(data / "photos" / "budgie-blue-periwinkle.jpg") as image:
        picture = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2)).convert("RGB")
    clean = unprocessed(np.asarray(picture, np.float32) / 255, DAYLIGHT)
    for seed in range(2):
        fit = fit_noise(shot(clean, 3.0, 100, seed=seed), SENSOR)
        assert fit.gain == pytest.approx(3.0, rel=0.1)
        assert abs(fit.gain - 3.0) < 3 * fit.error


def test_places_without_noise_tell_nothing() -> None:
    mosaic = shot(smooth_scene(), 3.0, 100)
    lamp, dead = mosaic.copy(), mosaic.copy()
    lamp[:64, :64] = 15800  # where the sensor saturates, which is below the white that the file declares
    dead[:64] = 800
    for broken in (lamp, dead):
        assert fit_noise(broken, SENSOR).gain == pytest.approx(3.0, rel=0.05)


def test_files_clipped_at_black_are_not_estimated_too_high(data: Path) -> None:
    """As this project writes them. With the half of the noise that is left in the dark, the first told +17 %."""
    with Image.open(data / "photos" / "budgie-tea-gardens.jpg") as image:
        picture = np.asarray(image.convert("RGB"), np.float32)[:960, :960] / 255
    black = np.tile(np.reshape(SENSOR.black, (2, 2)), (480, 480)).astype(np.uint16)
    for gain in (3.0, 10.0):
        fit = fit_noise(np.maximum(shot(unprocessed(picture, DAYLIGHT), gain, 100), black), SENSOR)
        assert fit.gain == pytest.approx(gain, rel=0.1)
        assert abs(fit.gain - gain) < 3 * fit.error
    with pytest.raises(ValueError, match="show noise and are not clipped"):
        fit_noise(np.maximum(shot(unprocessed(picture, DAYLIGHT) / 30, 10.0, 100), black), SENSOR)


@pytest.mark.parametrize(("black", "cut"), [(512.5, 512), (512, 514)])
def test_where_noise_is_cut_off_is_seen(data: Path, black: float, cut: int) -> None:
    """Below a black that is no whole number, and above it: taken for noise, what is left told 4.1 and 4.6."""
    with Image.open(data / "photos" / "pop-jared-evans-119758.jpg") as image:
        picture = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2)).convert("RGB")
    clean = unprocessed(np.asarray(picture, np.float32) / 255, DAYLIGHT)
    sensor = Sensor(black=(black,) * 4, white=16383, cfa=SENSOR.cfa)
    moved = shot(clean, 3.0, 100).astype(float) - unpack(
        np.zeros_like(clean), SENSOR, (2 * clean.shape[1], 2 * clean.shape[2])
    )
    mosaic = np.maximum(np.rint(moved + black), cut).astype(np.uint16)
    fit = fit_noise(mosaic, sensor)
    assert abs(fit.gain - 3.0) < min(2 * fit.error, 0.6)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="not clipped"):
        fit_noise(np.full((512, 512), 16383, np.uint16), SENSOR)
    with pytest.raises(ValueError, match="it is too small"):
        fit_noise(np.full((96, 96), 1000, np.uint16), SENSOR)
    with pytest.raises(ValueError, match="cannot be estimated"):
        fit_noise(np.full((64, 64), 1000, np.uint16), SENSOR)
    dark = (
        np.random.default_rng(0).normal(800, 5, (512, 512)).astype(np.uint16)
    )  # a cap on the lens: no light, no slope
    with pytest.raises(ValueError, match=r"the noise tells .* \+- "):
        fit_noise(dark, SENSOR)
    with pytest.raises(ValueError, match=r"the noise tells"):
        fit_noise(unpack(smooth_scene(), SENSOR, (1024, 1024)), SENSOR)  # noiseless


def test_the_estimate_is_the_last_resort() -> None:
    dark = shot(smooth_scene(), 3.0, 100)
    gain, reason = choose_gain("X100", 200, (), SENSOR.saturation, lambda: fit_noise(dark, SENSOR))
    assert gain == pytest.approx(3.0, rel=0.15)
    assert reason.startswith("estimated from the file's noise, +- 0.")
    never = {"fit": lambda: pytest.fail("there is a better source")}
    assert choose_gain("ILCE-7SM2", 3200, (), 15583, **never)[1].startswith("calibrated")
    assert choose_gain("X100", 200, (1e-4, 0), 15583, **never)[1].startswith("noise profile")
    # the calibration counts DN of 14 bits, and neither those of a 12-bit mode nor of a file that was rescaled
    assert choose_gain("NIKON D850", 6400, (1e-4, 0), 3995)[1].startswith("noise profile")
    assert choose_gain("ILCE-7SM2", 3200, (1e-4, 0), 4 * 15583)[1].startswith("noise profile")
    flat = np.full((512, 512), 1000, np.uint16)
    with pytest.raises(ValueError, match=r"cannot be estimated.*--gain"):
        choose_gain("X100", 200, (), SENSOR.saturation, lambda: fit_noise(flat, SENSOR))
