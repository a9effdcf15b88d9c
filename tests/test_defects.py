"""Hot and dead pixels: found where they are, against a slow definition; light is left alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exposure.client import rawfile
from exposure.client.recipe import Recipe
from exposure.client.triton import Answer
from exposure.defects import CERTAIN, ISOLATED, SHARED, STAR, SURE, _noise_of_black, find_defects
from exposure.noise import CAMERAS, NOISE_MODELS, expose_short
from exposure.sensor import Sensor, recorded

SENSOR = Sensor(black=(800, 800, 800, 800), white=16383, cfa=((0, 1), (1, 2)))
CAMERA, GAIN = CAMERAS["SonyA7S2"], 3.0
COLOURS = np.array([[0.4, 1.0], [1.0, 0.7]])  # how much of white light each position gets


def dark_shot(light: float = 0.05, side: int = 256, seed: int = 0, model: str = "P+g") -> NDArray[np.uint16]:
    """A wall in the dark, twice as bright at one side, exposed 100 times too short at ISO 3200."""
    clean = np.linspace(light, 2 * light, side) * np.tile(COLOURS, (side // 2, side // 2))
    noise = CAMERA.read_noise(GAIN, model)
    dn = expose_short(clean, ratio=100, gain=GAIN, saturation=SENSOR.saturation, read_noise=noise, seed=seed)
    return recorded(dn, SENSOR)


def slowly(mosaic: NDArray[np.uint16], sensor: Sensor, gain: float) -> dict[tuple[int, int], int]:
    """The definition, pixel by pixel: what is to be put where."""
    height, width = mosaic.shape
    black, noise = min(sensor.black), _noise_of_black(mosaic)

    def at(row: int, column: int) -> float:
        return float(mosaic[inside(row, height), inside(column, width)])

    def inside(place: int, side: int) -> int:
        """Beyond an edge stands again what is two pixels inside of it."""
        return place + 4 if place < 0 else place - 4 if place >= side else place

    def eight(row: int, column: int) -> list[float]:
        steps = [(2 * down, 2 * right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
        return [at(row + down, column + right) for down, right in steps]

    found = {}
    for row in range(height):
        for column in range(width):
            value, around = at(row, column), eight(row, column)
            usual = float(np.median(around))
            sign = 1 if value > usual else -1
            nearest = max(around) if sign > 0 else min(around)
            deviation = (gain * max(nearest - black, 0) + noise**2) ** 0.5
            if sign * (value - nearest) <= CERTAIN * deviation:
                continue
            if abs(value - usual) <= ISOLATED * (max(around) - min(around)):
                continue
            beside = [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
            shared = sign * sum(at(*place) - float(np.median(eight(*place))) for place in beside)
            unsure, excess = 8**0.5 * deviation, abs(value - usual)
            if shared < min(SHARED * excess + unsure, STAR * excess - SURE * unsure):
                found[row, column] = round(usual)
    return found


def found_in(mosaic: NDArray[np.uint16], sensor: Sensor = SENSOR, gain: float = GAIN) -> dict[tuple[int, int], int]:
    defects = find_defects(mosaic, sensor, gain)
    places = zip(defects.rows.tolist(), defects.columns.tolist(), strict=True)
    return dict(zip(places, defects.usual.tolist(), strict=True))


@settings(max_examples=40, deadline=None)  # the slow form takes its time
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    noise=st.sampled_from([0.3, 3.0, 30.0]),
    share=st.sampled_from([0.003, 0.03, 0.3]),
    gain=st.sampled_from([0.1, 3.0, 30.0]),
    level=st.sampled_from([10, 1000, 64000]),
)
def test_it_is_what_the_definition_says(
    seed: int, shape: tuple[int, int], noise: float, share: float, gain: float, level: float
) -> None:
    random = np.random.default_rng(seed)
    dn = random.normal(level, noise, shape) + (random.random(shape) < share) * random.normal(0, 1000, shape)
    mosaic = np.clip(np.rint(dn), 0, 65535).astype(np.uint16)
    sensor = Sensor((level - 10, level - 7, level - 9, level - 10), 65535, SENSOR.cfa)
    assert found_in(mosaic, sensor, gain) == slowly(mosaic, sensor, gain)


def test_hot_and_dead_pixels_are_found_in_the_dark() -> None:
    """All but a few whose charge is 20 times the noise of black, at the edges too; and no other."""
    mosaic, random = dark_shot(), np.random.default_rng(1)
    rows, columns = (place.ravel() * 8 for place in np.mgrid[:32, :32])
    rows, columns = rows + random.integers(0, 3, rows.shape), columns + random.integers(0, 3, rows.shape)
    hot = mosaic.copy()
    hot[rows, columns] += np.uint16(150)
    found = found_in(hot)
    assert found.keys() <= set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(found) > 0.97 * rows.size
    corrected = find_defects(hot, SENSOR, GAIN).corrected(hot)
    places = tuple(np.array(list(found)).T)
    assert np.abs(corrected[places].astype(int) - mosaic[places]).max() < 50  # noise of it, and of a median

    bright = dark_shot(light=0.4) * np.uint16(20)
    dead = bright.copy()
    dead[rows, columns] = 800
    assert len(found_in(dead, gain=20 * GAIN)) > 0.99 * rows.size


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("iso", [100, 3200, 25600])
def test_noise_is_left_alone(name: str, iso: float) -> None:
    """Of Gaussian read noise, not a pixel. The Tukey law has outliers of its own: one in 800 pixels at most."""
    gain = CAMERAS[name].gain(iso)
    for light in (0.0, 0.5):
        for model in NOISE_MODELS:
            clean, noise = np.full((384, 384), light), CAMERAS[name].read_noise(gain, model)
            dn = expose_short(clean, ratio=100, gain=gain, saturation=SENSOR.saturation, read_noise=noise)
            found = found_in(recorded(dn, SENSOR), gain=gain)
            assert len(found) <= (0 if model == "P+g" else clean.size / 800)


@pytest.mark.parametrize("floor", [799.0, 800.0, 803.0, 812.0])
def test_what_clipping_at_black_leaves_is_left_alone(floor: float) -> None:
    """A camera that cuts noise off below `floor`, where black is at 800: half of the pixels, or only the brightest."""
    dn = np.random.default_rng(4).normal(800, 6, (512, 512))
    assert not found_in(np.rint(np.maximum(dn, floor)).astype(np.uint16))


def test_clipped_lights_do_not_tell_the_noise_of_black() -> None:
    mosaic = dark_shot(0.001, side=512)
    mosaic[:, :100] = 16383
    assert _noise_of_black(mosaic) == pytest.approx(_noise_of_black(mosaic[:, 100:]), rel=0.1)
    assert not found_in(mosaic)


@pytest.mark.parametrize(
    ("colour", "width", "photons", "most"),
    [
        ("white", 0.4, 1000, 0.02),
        ("white", 0.6, 1000, 0),
        ("white", 1.0, 1000, 0),
        ("white", 0.4, 50, 0.07),  # faint, so that what its neighbours get is hardly above their noise
        ("white", 0.5, 50, 0.02),
        ("white", 0.6, 50, 0.005),
        ("red lamp", 0.6, 1000, 0.02),
        ("blue lamp", 0.6, 1000, 0.01),
        ("deep red", 1.0, 1000, 0.3),  # what no other filter lets through: some are lost
    ],
)
def test_points_of_light_are_left_alone(colour: str, width: float, photons: float, most: float) -> None:
    """So many photons, wherever they fall, as a lens spreads them: `width` is sigma in pixels."""
    through = {
        "white": COLOURS,
        "red lamp": np.array([[1, 0.12], [0.12, 0.04]]),
        "blue lamp": np.array([[0.03, 0.15], [0.15, 1]]),
        "deep red": np.array([[1, 0.03], [0.03, 0.01]]),
    }[colour]
    random, side, hit, stars = np.random.default_rng(2), 384, 0, []
    light, fine = np.full((side, side), 0.3), 9  # points in a pixel, on a side, of which the light is the mean
    offsets = (np.arange(-5 * fine, 6 * fine) + 0.5) / fine
    for row in range(12, side - 12, 12):
        for column in range(12, side - 12, 12):
            place = random.uniform(0, 2, 2)
            profiles = [np.exp(-((offsets - at) ** 2) / (2 * width**2)).reshape(11, fine).sum(axis=1) for at in place]
            spread = np.outer(*profiles)
            box = np.s_[row - 5 : row + 6, column - 5 : column + 6]
            light[box] += photons * spread / spread.sum() * np.tile(through, (192, 192))[box]
            stars.append(np.array([row, column]) + np.floor(place))
    mosaic = recorded(GAIN * random.poisson(light) + random.normal(0, 6, light.shape), SENSOR)
    found = np.array(list(found_in(mosaic))).reshape(-1, 2)
    hit = sum(bool((np.abs(found - star).max(axis=1, initial=-1) < 2).any()) for star in stars if len(found))
    assert hit <= most * len(stars)


def test_edges_and_lines_are_left_alone() -> None:
    mosaic = dark_shot()
    mosaic[:, 100:] += np.uint16(3000)
    mosaic[50, :] += np.uint16(3000)
    mosaic[np.arange(256), np.arange(256)] += np.uint16(3000)
    assert not found_in(mosaic)


@pytest.mark.parametrize("noise", [2.0, 10.0, 50.0])
def test_the_noise_of_black_is_known_beside_light_and_defects(noise: float) -> None:
    random = np.random.default_rng(3)
    dn = random.normal(1000, noise, (512, 768)) + 5000 * (random.random((512, 768)) < 1e-3)
    dn[:, 400:] += random.normal(3000, 300, (512, 368))
    assert _noise_of_black(np.rint(dn).astype(np.uint16)) == pytest.approx(noise, rel=0.15)


def test_a_real_dark_file_has_few(data: Path) -> None:
    file = rawfile.read(data / "raw" / "blackmagic_dark_GBRG_12bit.dng")
    choice = Recipe(ratio=8).choose(file)
    assert choice.defects is not None
    assert 1 <= len(choice.defects) <= 20
    assert "defective pixels corrected" in str(choice)


def test_what_the_network_sees_and_what_is_blended_are_corrected() -> None:
    """Also where the result is at the file's own exposure; not where they are to be kept."""
    mosaic = dark_shot()
    mosaic[100, 100] += np.uint16(2000)
    file = rawfile.RawFile(Path("a.dng"), mosaic, SENSOR, model="ILCE-7SM2", iso=3200)
    for recipe in (Recipe(ratio=20), Recipe(ratio=20, strength=0.5), Recipe(ratio=20, keep_exposure=True)):
        for kept in (False, True):
            recipe = replace(recipe, keep_defects=kept)
            choice = recipe.choose(file)
            asked = recipe.request(file, choice)["mosaic"]
            answer = Answer(np.full_like(mosaic, 900), SENSOR)
            exposed = recipe.finish(file, answer, choice)
            hot = np.abs(exposed.mosaic.astype(int) - np.median(exposed.mosaic))[100, 100] > 500
            assert (asked[100, 100] > 2000) == kept
            assert hot == (kept and (recipe.strength < 1 or recipe.keep_exposure))  # brightened, its own pixel clips
            assert exposed.made_with.endswith("defects kept" if kept else "1 defects corrected")


def test_a_bright_defect_does_not_keep_auto_from_brightening() -> None:
    mosaic = dark_shot(0.01)
    mosaic[::16, ::16] = 16383  # one in each block of the planes that are judged
    file = rawfile.RawFile(Path("a.dng"), mosaic, SENSOR, model="ILCE-7SM2", iso=3200)
    corrected, kept = (Recipe(auto=True, keep_defects=keep).choose(file).ratio for keep in (False, True))
    assert corrected > 5 * kept
