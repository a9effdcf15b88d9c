"""The P+g camera, and where a gain comes from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exposure.noise import CAMERAS, choose_gain, expose_short, gain_from_noise_profile


def test_short_exposure_has_the_models_moments() -> None:
    clean = np.full((500, 500), 0.5)
    dn = expose_short(clean, ratio=100, gain=3.0, saturation=15583, read_noise=6.0, seed=3)
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
        scale = published["Profile-1"]["g_scale"]
        assert (camera.gain_100, camera.gain_6400) == pytest.approx((published["Kmin"], published["Kmax"]), rel=1e-6)
        assert (camera.read_slope, camera.read_bias) == pytest.approx((scale["slope"], scale["bias"]), rel=1e-6)


@given(gain=st.floats(0.01, 50), saturation=st.floats(100, 65535))
def test_noise_profile_gives_the_gain(gain: float, saturation: float) -> None:
    scale = gain / saturation  # variance K * DN, in units of S
    assert gain_from_noise_profile([scale, 1e-7], saturation) == pytest.approx(gain)
    assert gain_from_noise_profile([scale, 1e-7] * 3, saturation) == pytest.approx(gain)


def test_an_unknown_gain_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"no calibration of X100.*--gain"):
        choose_gain("X100", 200, (), 4000)
    with pytest.raises(ValueError, match="--iso"):
        choose_gain("NIKON D850", 0, (), 4000)
    with pytest.raises(ValueError, match="noise profile"):
        choose_gain("X100", 200, (-1.0, 0.0), 4000)
