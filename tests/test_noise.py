"""The P+g camera, and where a gain comes from."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis, tukeylambda

from exposure.noise import CAMERAS, ReadNoise, choose_gain, expose_short, gain_from_noise_profile, tukey_lambda
from exposure.noise_fit import NoiseFit


def test_short_exposure_has_the_models_moments() -> None:
    clean = np.full((500, 500), 0.5)
    dn = expose_short(clean, ratio=100, gain=3.0, saturation=15583, read_noise=ReadNoise(6.0), seed=3)
    mean = 0.5 * 15583 / 100
    variance = 3.0 * mean + 36
    assert abs(dn.mean() - mean) < 5 * np.sqrt(variance / dn.size)
    assert abs(dn.var() / variance - 1) < 5 * np.sqrt(2 / dn.size)


def test_calibrated_gains() -> None:
    assert CAMERAS["SonyA7S2"].gain(3200) == pytest.approx(3.0, abs=0.01)
    assert CAMERAS["NikonD850"].gain(100) == pytest.approx(0.415, abs=1e-3)
    assert choose_gain("ILCE-7SM2", 3200, (), 15583)[0] == pytest.approx(3.0, abs=0.01)
    assert choose_gain("Canon EOS REBEL T5i", 6400, (), 15583)[0] == pytest.approx(28.65, abs=0.01)


def test_calibration_matches_the_published_files(data) -> None:  # type: ignore[no-untyped-def]
    import json

    for name, camera in CAMERAS.items():
        published = json.loads((data / "cameras" / f"{name}.json").read_text())
        assert (camera.gain_100, camera.gain_6400) == pytest.approx((published["Kmin"], published["Kmax"]), rel=1e-6)
        for key, scale in (("g_scale", camera.gaussian), ("G_scale", camera.tukey), ("R_scale", camera.row)):
            assert asdict(scale) == pytest.approx(published["Profile-1"][key], abs=1e-6)
        assert [shape / 70 for shape in camera.shapes] == pytest.approx(published["G_shape"], abs=1e-6)


@given(gain=st.floats(0.01, 10), saturation=st.floats(100, 65535))
def test_noise_profile_gives_the_gain(gain: float, saturation: float) -> None:
    scale = gain / saturation  # variance K * DN, in units of S
    assert gain_from_noise_profile([scale, 1e-7], saturation) == pytest.approx(gain)
    assert gain_from_noise_profile([scale, 1e-7] * 3, saturation) == pytest.approx(gain)


def test_an_unknown_gain_is_asked_for() -> None:
    with pytest.raises(
        ValueError, match=r"^its camera X100 is not calibrated, it has no noise profile; give --gain in DN"
    ):
        choose_gain("X100", 200, (), 4000)
    for useless in (-1.0, 50.0):  # nothing, and a white of a fiftieth of an electron
        with pytest.raises(ValueError, match=r"not calibrated, its noise profile is .*; give --gain"):
            choose_gain("X100", 200, (useless, 0.0), 4000)

    def small() -> NoiseFit:
        raise ValueError("its gain cannot be estimated: it is too small")

    with pytest.raises(ValueError, match=r"^its ISO is unknown, .*too small; give --iso for the calibrated NIKON"):
        choose_gain("NIKON D850", 0, (), 15583, small)
    fit = choose_gain("X100", 200, (0.0, 0.0), 4000, lambda: NoiseFit(2.0, 0.1, 3.0))
    assert fit == (2.0, "estimated from the file's noise, +- 0.1")


def test_the_eld_camera_has_rows_and_heavy_tails() -> None:
    noise = ReadNoise(scale=2.0, shape=-0.1, row=3.0, step=1.0)
    dn = expose_short(np.zeros((2000, 1000)), ratio=100, gain=3.0, saturation=15583, read_noise=noise, seed=3)
    rows = dn.mean(axis=1)
    assert rows.std() == pytest.approx(3.0, rel=0.1)  # 2000 rows: 1.6 % of a standard deviation, six times
    within = dn - rows[:, None]
    assert within.var() == pytest.approx(4.0 * tukeylambda.var(-0.1) + 1 / 12, rel=0.02)
    assert kurtosis(within, axis=None) > 1  # the logistic law, at shape 0, has 1.2


def test_planes_of_one_mosaic_row_share_its_noise() -> None:
    noise = ReadNoise(scale=1e-6, row=3.0)
    planes = expose_short(np.zeros((4, 30, 20)), ratio=100, gain=3.0, saturation=15583, read_noise=noise)
    np.testing.assert_allclose(planes[0], planes[1], atol=1e-4)
    np.testing.assert_allclose(planes[2], planes[3], atol=1e-4)
    assert np.abs(planes[0] - planes[2]).max() > 1


@pytest.mark.parametrize("shape", [-17, -8, 0, 4, 10])
def test_tukey_lambda_is_the_published_law(shape: int) -> None:
    uniform = np.linspace(0.001, 0.999, 999)
    np.testing.assert_allclose(tukey_lambda(uniform, shape / 70), tukeylambda.ppf(uniform, shape / 70), atol=1e-9)


def test_a_shot_is_drawn_around_the_calibration() -> None:
    camera, generator = CAMERAS["SonyA7S2"], np.random.default_rng(1)
    drawn = [np.log(camera.read_noise(3.0, "P+G+r+u", generator).row) for _ in range(4000)]
    middle = np.log(camera.read_noise(3.0, "P+G+r+u").row)
    assert np.mean(drawn) == pytest.approx(middle, abs=5 * camera.row.sigma / 4000**0.5)
    assert np.std(drawn) == pytest.approx(camera.row.sigma, rel=0.06)
    with pytest.raises(ValueError, match=r"P\+G\+r\+u"):
        camera.read_noise(3.0, "gauss")
