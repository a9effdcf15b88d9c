"""pack and unpack against the definition, for every phase, size and level."""

from typing import Any

import numpy as np
import pytest
from conftest import CFAS
from hypothesis import given
from hypothesis import strategies as st

from exposure.sensor import Sensor, check_tile, pack, pad, recorded, reflected, unpack


@st.composite
def sensors(draw: Any) -> Sensor:
    white = draw(st.integers(200, 65535))
    black = draw(st.tuples(*[st.integers(0, white - 100)] * 4))
    return Sensor(black, white, draw(st.sampled_from(list(CFAS.values()))))


@given(sensor=sensors(), height=st.integers(2, 41), width=st.integers(2, 41), seed=st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(sensor: Sensor, height: int, width: int, seed: int) -> None:
    black = np.tile(np.reshape(sensor.black, (2, 2)), (21, 21))[:height, :width]
    mosaic = np.random.default_rng(seed).integers(black.astype(int), int(sensor.white) + 1).astype(np.uint16)
    image = pack(mosaic, sensor, multiple=16)
    assert image.dtype == np.float32
    assert image.shape[1] % 16 == 0
    assert image.shape[2] % 16 == 0
    np.testing.assert_array_equal(unpack(image, sensor, mosaic.shape), mosaic)


@pytest.mark.parametrize("phase", CFAS)
def test_planes_circle_from_red(phase: str) -> None:
    sensor = Sensor((0, 0, 0, 0), 65535, CFAS[phase])
    colours = np.tile(np.array(CFAS[phase], np.uint16), (4, 4))
    planes = pack(colours, sensor)[:, 0, 0] * 65535
    np.testing.assert_allclose(planes, [0, 1, 2, 1], atol=1e-3)
    (red_row, _), (second_row, _), (blue_row, _), (fourth_row, _) = sensor.planes
    assert (second_row, fourth_row) == (red_row, blue_row)


@given(sensor=sensors(), ratio=st.floats(1, 300), seed=st.integers(0, 1000))
def test_pack_is_the_formula(sensor: Sensor, ratio: float, seed: int) -> None:
    mosaic = np.random.default_rng(seed).integers(0, 65536, (6, 8)).astype(np.uint16)
    image = pack(mosaic, sensor, ratio)
    for plane, (row, column) in zip(image, sensor.planes, strict=True):
        black = sensor.black[2 * row + column]
        expected = np.clip((mosaic[row::2, column::2] - black) / (sensor.white - black) * ratio, 0, 1)
        np.testing.assert_allclose(plane, expected, rtol=1e-5, atol=1e-6)  # FP32: two roundings of 6e-8, times ratio


@given(sensor=sensors(), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 1000))
def test_what_is_recorded_is_rounded_about_black(sensor: Sensor, height: int, width: int, seed: int) -> None:
    mosaic = np.random.default_rng(seed).integers(0, int(sensor.white) + 1, (height, width)).astype(np.uint16)
    black = np.tile(np.reshape(sensor.black, (2, 2)), (5, 5))[:height, :width]
    np.testing.assert_array_equal(recorded(mosaic - black + 0.49, sensor), np.minimum(mosaic, sensor.white))
    assert (recorded(np.full((height, width), -7e4), sensor) == 0).all()
    assert (recorded(np.full((height, width), 7e4), sensor) == sensor.white).all()


@given(side=st.integers(1, 40), more=st.integers(0, 70))
def test_reflection_is_numpys(side: int, more: int) -> None:
    np.testing.assert_array_equal(reflected(side, side + more), np.pad(np.arange(side), (0, more), mode="reflect"))


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_padding_keeps_the_image(height: int, width: int) -> None:
    image = np.random.default_rng(0).random((4, height, width), np.float32)
    padded = pad(image, 16)
    assert padded.shape[1] % 16 == padded.shape[2] % 16 == 0
    np.testing.assert_array_equal(padded[:, :height, :width], image)


def test_saturation_goes_by_the_mean_black() -> None:
    assert Sensor((500, 510, 520, 550), 16383, CFAS["RGGB"]).saturation == 16383 - 520


def test_saturation_is_clamped() -> None:
    sensor = Sensor((512, 512, 512, 512), 16383, CFAS["RGGB"])
    assert pack(np.full((4, 4), 20000, np.uint16), sensor).max() == 1
    assert pack(np.full((4, 4), 100, np.uint16), sensor, 300).min() == 0
    assert (unpack(np.full((4, 2, 2), 7, np.float32), sensor, (4, 4)) == 16383).all()


@pytest.mark.parametrize(
    ("black", "white", "cfa", "sentence"),
    [
        ((0, 0, 0, 0), 100, ((0, 0), (1, 2)), "cfa is"),
        ((0, 0, 0, 0), 100, ((1, 1), (0, 2)), "cfa is"),
        ((0, 0, 0, 0), 100, ((0, 1), (1, 3)), "cfa is"),
        ((0, 0, 0, 100), 100, CFAS["RGGB"], "white is 100"),
        ((0, 0, 0, float("nan")), 100, CFAS["RGGB"], "black is"),
        ((-1, 0, 0, 0), 100, CFAS["RGGB"], "black is"),
        ((0, 0, 0, 0), 70000, CFAS["RGGB"], "white is 70000"),
        ((0, 0, 0, 0), float("nan"), CFAS["RGGB"], "white is nan"),
    ],
)
def test_impossible_sensors_are_refused(black: Any, white: float, cfa: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sensor(black, white, cfa)


def test_impossible_mosaics_are_refused() -> None:
    with pytest.raises(ValueError, match="31x64"):
        check_tile((31, 64), (0, 0))
    with pytest.raises(ValueError, match="origin"):
        check_tile((32, 64), (0, -2))
    with pytest.raises(ValueError, match="mosaic is"):
        pack(np.zeros((4, 4, 3), np.uint16), Sensor((0, 0, 0, 0), 100, CFAS["RGGB"]))
    with pytest.raises(ValueError, match="image is 4x2x2"):
        unpack(np.zeros((4, 2, 2), np.float32), Sensor((0, 0, 0, 0), 100, CFAS["RGGB"]), (6, 4))
    for none in ((0, 4), (4, -2)):
        with pytest.raises(ValueError, match="half-size planes"):
            unpack(np.zeros((4, 2, 2), np.float32), Sensor((0, 0, 0, 0), 100, CFAS["RGGB"]), none)
