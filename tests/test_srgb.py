"""sRGB as light, against the curve of the field; what sample, training and evaluation share is written once."""

from typing import Any

import numpy as np
import pytest
from conftest import PROJECT
from numpy.typing import NDArray
from skimage.color import rgb2xyz

from exposure.srgb import linear_light


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_light_is_the_known_one(dtype: type) -> None:
    srgb: NDArray[Any] = np.linspace(0, 1, 3 * 256, dtype=dtype).reshape(1, 256, 3)
    light = linear_light(srgb)
    assert light.dtype == dtype
    red_green_blue = rgb2xyz(np.eye(3)[None])[0]  # no curve bends 0 and 1
    np.testing.assert_allclose(light @ red_green_blue, rgb2xyz(srgb), atol=1e-6)


@pytest.mark.parametrize("mark", ["0.04045", "peak_signal_noise_ratio"])
def test_each_has_one_home(mark: str) -> None:
    sources = [path for folder in ("exposure", "client", "training") for path in (PROJECT / folder).rglob("*.py")]
    homes = [path.name for path in sources if mark in path.read_text()]
    assert homes == (["srgb.py"] if mark == "0.04045" else [])
