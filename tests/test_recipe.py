"""What is asked for: the target exposure, the strength, the exposure that is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CFAS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exposure import Sensor
from exposure.client.dng import software_told
from exposure.client.output import asked_for
from exposure.client.rawfile import RawFile, RawFileError
from exposure.client.recipe import Choice, Recipe, at_own_exposure, blended, finer
from exposure.client.target import LARGEST_AUTO_RATIO, brightest_ratio, ratio_from_ev, ratio_like
from exposure.client.triton import Answer
from exposure.noise import CAMERAS, ReadNoise, expose_short
from exposure.sensor import pack, recorded

SENSOR = Sensor((512, 520, 516, 512), 16383, CFAS["RGGB"])
FILE = RawFile(Path("short.arw"), np.full((64, 64), 600, np.uint16), SENSOR, iso=1600, exposure_s=1 / 30, aperture=2.8)


def dark(scene: NDArray[Any], ratio: float) -> RawFile:
    """A simulated exposure, `ratio` times too short, of a scene in [0, 1]."""
    dn = expose_short(scene, ratio=ratio, gain=3, saturation=SENSOR.saturation, read_noise=ReadNoise(6))
    return replace(FILE, mosaic=recorded(dn, SENSOR))


def test_stops_are_powers_of_two() -> None:
    assert [ratio_from_ev(ev) for ev in (0, 1, 3, 0.5)] == pytest.approx([1, 2, 8, 2**0.5])
    with pytest.raises(ValueError, match="--ev is -1"):
        ratio_from_ev(-1)


@pytest.mark.parametrize(
    ("change", "ratio"),
    [
        ({"exposure_s": 10}, 300),
        ({"exposure_s": 10, "iso": 400}, 75),  # a lower ISO gives fewer DN for the light
        ({"exposure_s": 10, "aperture": 5.6}, 75),  # two stops down
        ({"exposure_s": 10, "iso": 0, "aperture": 0}, 300),  # what one does not tell is taken as the same
        ({"exposure_s": 1 / 30.2}, 1),  # rounded times
    ],
)
def test_like_another_file(change: dict[str, float], ratio: float) -> None:
    assert ratio_like(FILE, replace(FILE, **change)) == pytest.approx(ratio, rel=0.01)  # type: ignore[arg-type]


def test_like_says_why_not() -> None:
    with pytest.raises(RawFileError, match=r"exposure time of long\.arw is unknown; give --ratio or --ev"):
        ratio_like(FILE, replace(FILE, path=Path("long.arw"), exposure_s=0))
    with pytest.raises(RawFileError, match=r"--like b\.arw has 0\.3 times its exposure"):
        ratio_like(FILE, replace(FILE, path=Path("b.arw"), exposure_s=1 / 100))


def test_a_result_does_not_tell_how_long_it_was_exposed() -> None:
    long = replace(FILE, path=Path("a_exposed.dng"), tags={"Software": (2, software_told(asked_for(8, 3, 3, 0)))})
    with pytest.raises(RawFileError, match=r"^--like a_exposed\.dng is a result of this command; give a file as"):
        ratio_like(FILE, long)


def test_what_makes_the_same_once_more_is_noted() -> None:
    recipe = Recipe(ratio=8, strength=0.7, keep_exposure=True)
    told = recipe.finish(FILE, Answer(FILE.mosaic, FILE.sensor), Choice(8, "", 3, "")).made_with
    assert told == "ratio 8, gain 3 DN/e-, passes 3, seed 0, strength 0.7, exposure kept, defects kept"


def test_what_no_network_was_trained_for_is_told() -> None:
    assert Recipe(ratio=300, gain=3).choose(FILE).ratio_reason == "as given"
    assert (
        Recipe(ratio=301, gain=3).choose(FILE).ratio_reason == "as given, beyond the 300 that networks are trained for"
    )


@pytest.mark.parametrize("share", [(1, 1), (1, 2)])
def test_what_was_denoised_before_tells_no_gain(share: tuple[int, int]) -> None:
    """Its noise is no photon noise any more, whatever its ISO or noise profile say."""
    file = replace(FILE, model="ILCE-7SM2", tags={"NoiseReductionApplied": (5, share)})
    with pytest.raises(ValueError, match=r"^its noise was reduced before, .*; give --gain in DN per electron$"):
        Recipe(ratio=20).choose(file)
    assert Recipe(ratio=20, gain=3).choose(file).gain == 3
    unknown = replace(file, tags={"NoiseReductionApplied": (5, (0, 1))})
    assert Recipe(ratio=20).choose(unknown).gain == CAMERAS["SonyA7S2"].gain(1600)


@pytest.mark.parametrize("ratio", [5, 50, 200])
def test_auto_finds_the_exposure_of_a_scene(ratio: float) -> None:
    """A scene whose middle is a grey card and whose highlights do not clip, shot too short, gets its exposure back."""
    scene = np.linspace(0.01, 0.36, 256 * 256).reshape(256, 256)
    assert brightest_ratio(dark(scene, ratio)) == pytest.approx(ratio, rel=0.05)


def test_auto_takes_neither_noise_nor_a_lamp_for_the_highlights() -> None:
    """Single pixels of so dark a file reach 1.2 times the brightest part; the lamp is 0.4 % of the frame."""
    scene = np.full((256, 256), 0.1)
    scene[:, :16] = 0.9
    file = dark(scene, 150)
    file.mosaic[112:128, 112:128] = 16383
    assert brightest_ratio(file) == pytest.approx(150, rel=0.05)


def test_auto_keeps_highlights_and_has_an_end() -> None:
    scene = np.full((256, 256), 0.02)
    scene[:, :32] = 0.9
    assert brightest_ratio(dark(scene, 20)) == pytest.approx(20, rel=0.1)
    assert brightest_ratio(dark(np.full((256, 256), 0.8), 1)) == 1
    assert brightest_ratio(dark(np.zeros((256, 256)), 100)) == LARGEST_AUTO_RATIO


def test_auto_goes_by_the_plane_that_clips_first() -> None:
    mosaic = np.tile(np.reshape(SENSOR.black, (2, 2)) + 10, (128, 128)).astype(np.uint16)
    mosaic[0::2, 1::2] += 990
    assert brightest_ratio(replace(FILE, mosaic=mosaic)) == pytest.approx(0.18 * (16383 - 520) / 1000)


def test_the_file_of_like_is_needed() -> None:
    recipe = Recipe(like=Path("long.arw"), gain=3)
    with pytest.raises(ValueError, match=r"long\.arw has not been read"):
        recipe.choose(FILE)
    long = replace(FILE, path=Path("long.arw"), exposure_s=8 * FILE.exposure_s)
    assert recipe.choose(FILE, long).ratio == pytest.approx(8)


def test_no_stop_at_all_is_an_exposure_too() -> None:
    assert Recipe(ev=0, gain=3).choose(FILE).ratio == 1
    with pytest.raises(ValueError, match="--ratio is 0; a target exposure"):
        Recipe(ratio=0)
    with pytest.raises(ValueError, match="ratio and ev are given"):
        Recipe(ratio=2, ev=0)


def test_a_given_iso_counts_before_the_files() -> None:
    file, camera = replace(FILE, model="ILCE-7SM2"), CAMERAS["SonyA7S2"]
    assert Recipe(ratio=2).choose(file).gain == camera.gain(1600)
    assert Recipe(ratio=2, iso=3200).choose(file).gain == camera.gain(3200)


@given(strength=st.floats(0, 1))
def test_strength_blends_between_its_ends(strength: float) -> None:
    random = np.random.default_rng(0)
    denoised, noisy = (random.integers(0, 65536, (8, 8)).astype(np.uint16) for _ in range(2))
    np.testing.assert_array_equal(blended(denoised, noisy.astype(np.float32), 1.0), denoised)
    np.testing.assert_array_equal(blended(denoised, noisy.astype(np.float32), 0.0), noisy)
    mixed = strength * denoised.astype(float) + (1 - strength) * noisy
    assert np.abs(blended(denoised, noisy.astype(np.float32), strength) - mixed).max() <= 0.51


@pytest.mark.parametrize("keep_exposure", [False, True])
def test_a_blend_leaves_the_dark_dark(keep_exposure: bool) -> None:
    """Noise about black, 20 times as bright: without its lower half, its mean would be 48 DN more (0.4 sigma R)."""
    noise = np.random.default_rng(0).normal(0, 6, (256, 256))
    file = replace(FILE, mosaic=recorded(noise, SENSOR))
    black = np.tile(np.array(SENSOR.black, np.uint16).reshape(2, 2), (128, 128))
    recipe = Recipe(ratio=20, strength=0.0, keep_exposure=keep_exposure)
    blend = recipe.finish(file, Answer(black, file.sensor), Choice(20, "", 3.0, ""))
    steps = blend.sensor.white / SENSOR.white
    assert abs((blend.mosaic / steps - black).mean()) < 4 * 120 / 256  # four standard errors


@settings(max_examples=20, deadline=None)
@given(ratio=st.floats(1, 300), white=st.sampled_from([1023, 4095, 16383, 51080, 65535]))
def test_the_own_exposure_is_kept_with_more_bits(ratio: float, white: int) -> None:
    sensor = Sensor((64, 66, 65, 64), white, CFAS["GBRG"])
    clean = np.random.default_rng(1).uniform(0, 1.2 / ratio, (33, 47))
    black = np.tile([[64, 66], [65, 64]], (17, 24))[:33, :47]
    own = np.rint(black + clean.clip(0, 1) * (white - black)).astype(np.uint16)
    lifted = np.rint(black + np.clip(clean * ratio, 0, 1) * (white - black)).astype(np.uint16)
    file = replace(FILE, mosaic=own, sensor=sensor)
    levels, mosaic = at_own_exposure(file, lifted, ratio, seed=0)
    steps = 65535 // white
    assert (levels.black, levels.white) == (tuple(steps * level for level in sensor.black), steps * white)
    exact = black + clean.clip(0, 1) * (white - black)
    clipped = (own - black) * np.float32(ratio) >= white - black
    assert np.abs(mosaic / steps - exact)[~clipped & (clean * ratio < 1)].max() <= 1 / steps + 0.5 / ratio + 0.01
    np.testing.assert_array_equal(mosaic[clipped] // steps, own[clipped])  # highlights are the file's own


@given(white=st.sampled_from([255, 1023, 3967, 4095, 8191, 8192, 15520, 16383, 51080]), most=st.integers(1, 65535))
def test_levels_become_as_fine_as_fourteen_bits_hold(white: int, most: int) -> None:
    mosaic, sensor = np.array([[5, most], [5, most]], np.uint16), Sensor((3, 4, 5, 6), white, CFAS["RGGB"])
    fine, levels, gain = finer(mosaic, sensor, 0.7)
    steps = round(levels.white / white)
    assert gain == steps * 0.7
    assert steps & (steps - 1) == 0
    assert levels.black == tuple(steps * level for level in sensor.black)
    assert fine.tolist() == 2 * [[5 * steps, most * steps]]  # nothing overflows
    assert steps == 1 or levels.white < 2**14
    assert 2 * levels.white >= 2**14 or 2 * steps * most > 65535  # no finer ones would do
    np.testing.assert_allclose(pack(fine, levels, 1), pack(mosaic, sensor, 1), atol=1e-6)


@pytest.mark.parametrize("keep_exposure", [False, True])
def test_a_coarse_file_is_asked_for_and_written_in_finer_levels(keep_exposure: bool) -> None:
    """Ten bits, as phones have them: a smooth ramp keeps more steps than the source has."""
    sensor, ratio = Sensor((64, 64, 64, 64), 1023, CFAS["RGGB"]), 4.0
    ramp = np.tile(np.linspace(0, 100, 1000), (40, 1))
    file = replace(FILE, mosaic=np.rint(64 + ramp / ratio).astype(np.uint16), sensor=sensor)
    recipe, choice = Recipe(ratio=ratio, keep_exposure=keep_exposure), Choice(ratio, "", 0.123456789, "")
    asked = recipe.request(file, choice)
    assert (asked["sensor"].white, asked["gain"]) == (16 * 1023, 16 * float(np.float32(0.123456789)))
    np.testing.assert_array_equal(asked["mosaic"], 16 * file.mosaic)
    answer = np.rint(16 * (64 + ramp)).astype(np.uint16)
    done = recipe.finish(file, Answer(answer, asked["sensor"]), choice)
    signal = (done.mosaic - done.sensor.black[0]) / done.sensor.saturation * (ratio if keep_exposure else 1)
    assert np.abs(signal - ramp / sensor.saturation).max() < (0.1 if keep_exposure else 0.032) / sensor.saturation
    assert "gain 0.12345679 DN/e-" in done.made_with  # that of the source's levels


def test_the_dither_is_that_of_the_seed() -> None:
    brighter = np.full_like(FILE.mosaic, 1000)
    one, again, other = (at_own_exposure(FILE, brighter, 7.3, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_the_noise_profile_is_that_of_the_new_exposure() -> None:
    choice = Choice(100, "as given", 3.0, "as given")
    brighter = Recipe(ratio=100).finish(FILE, Answer(FILE.mosaic, FILE.sensor), choice)
    own = Recipe(ratio=100, keep_exposure=True).finish(FILE, Answer(FILE.mosaic, FILE.sensor), choice)
    assert brighter.noise_profile == pytest.approx((3 / SENSOR.saturation, 0), abs=0)
    assert own.noise_profile == pytest.approx((0.03 / SENSOR.saturation, 0), abs=0)
    blend = Recipe(ratio=100, strength=0.7).finish(FILE, Answer(FILE.mosaic, FILE.sensor), choice).noise_profile
    assert blend == pytest.approx(((0.7 + 0.3 * 10) ** 2 * 3 / SENSOR.saturation, 0), abs=0)
    assert (
        brighter.noise_reduction,
        Recipe(ratio=2, strength=0.25).finish(FILE, Answer(FILE.mosaic, FILE.sensor), choice).noise_reduction,
    ) == (1, 0.25)


def test_the_noise_profile_knows_the_read_noise_of_calibrated_cameras() -> None:
    file = replace(FILE, model="ILCE-7SM2")
    _, offset = (
        Recipe(ratio=2, strength=0).finish(file, Answer(file.mosaic, file.sensor), Choice(2, "", 3.0, "")).noise_profile
    )
    assert offset == pytest.approx((2 * CAMERAS["SonyA7S2"].read_noise(3.0).scale / SENSOR.saturation) ** 2)


@pytest.mark.parametrize("keep_exposure", [False, True])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_noise_profile_bounds_the_noise(strength: float, keep_exposure: bool) -> None:
    """Of a flat grey, whose denoised result is a longer exposure of it, independent of the file."""
    gain, ratio, read_noise, signal = 3.0, 50.0, 6.0, 0.4
    random, sensor = np.random.default_rng(0), Sensor((800, 800, 800, 800), 16383, CFAS["RGGB"])
    saturation = sensor.saturation
    short = random.poisson(signal * saturation / (ratio * gain), (256, 256)) * gain
    short = np.rint(800 + short + random.normal(0, read_noise, short.shape))
    long = np.rint(800 + random.poisson(signal * saturation / gain, short.shape) * gain).astype(np.uint16)
    known = {"NoiseProfile": (12, (gain / saturation, (read_noise / saturation) ** 2))}
    file = replace(FILE, mosaic=short.astype(np.uint16), sensor=sensor, tags=known)
    recipe = Recipe(ratio=ratio, strength=strength, keep_exposure=keep_exposure)
    done = recipe.finish(file, Answer(long, file.sensor), Choice(ratio, "as given", gain, "as given"))
    found = np.var(done.mosaic / done.sensor.saturation)
    scale, offset = done.noise_profile
    told = scale * signal / (ratio if keep_exposure else 1) + offset
    assert 0.4 * told < found < 1.05 * told  # deviations that add up at most make half of it


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"ratio": 0.5}, "--ratio is 0.5"),
        ({"ev": float("nan")}, "--ev is nan"),
        ({"ratio": 2, "strength": 1.5}, "--strength is 1.5"),
        ({"ratio": 2, "iso": -1}, "--iso is -1"),
        ({"ratio": 2, "passes": 7}, "--passes is 7"),
        ({"ratio": 1e300}, "--ratio is 1e.300"),
        ({"ratio": 2, "gain": 1e39}, "--gain is 1e.39"),
        ({"ratio": 2, "gain": 1e-46}, "--gain is 1e-46"),
        ({}, "^nothing is given; give one of ratio, ev, like and auto$"),
        ({"ratio": 2, "ev": 3, "auto": True}, "^ratio and ev and auto are given"),
    ],
)
def test_senseless_recipes_are_refused(flags: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Recipe(**flags)  # type: ignore[arg-type]
