"""The four floats of a step, against the published loop's own expressions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exposure.schedule import PUBLISHED_PHOTON_UNIT, unroll

physics = {
    "ratio": st.floats(1, 1000),
    "gain": st.floats(0.01, 100),
    "saturation": st.floats(100, 65535),
    "passes": st.integers(1, 8),
}


@given(**physics)
def test_exposure_is_conserved(ratio: float, gain: float, saturation: float, passes: int) -> None:
    steps = unroll(ratio, gain, saturation, passes)
    assert len(steps) == passes
    for step in steps:
        assert step.keep + step.per_photon * step.photons == pytest.approx(1, abs=1e-12)


@given(**physics)
def test_steps_are_the_published_expressions(ratio: float, gain: float, saturation: float, passes: int) -> None:
    """x in photons is x / R / K * S, and back it is photons / r_next * R * K / S."""
    exposures = np.linspace(1, ratio, passes + 1)
    for step, now, after in zip(unroll(ratio, gain, saturation, passes), exposures, exposures[1:], strict=False):
        assert step.photon_gain == pytest.approx(saturation / (ratio / now) / gain / PUBLISHED_PHOTON_UNIT)
        assert step.photons == pytest.approx((after - 1) / ratio / gain * saturation)
        assert step.per_photon == pytest.approx(ratio * gain / saturation / after)
        assert step.keep == pytest.approx(1 / after)


def test_photon_unit_belongs_to_the_checkpoint() -> None:
    published, other = unroll(100, 3, 15583, 2), unroll(100, 3, 15583, 2, photon_unit=1000)
    assert other[1].photon_gain == pytest.approx(published[1].photon_gain * PUBLISHED_PHOTON_UNIT / 1000)
    assert other[1].photons == published[1].photons


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0.5, 3, 15583, 3), "ratio is 0.5; a target exposure is at least the file's own"),
        ((float("nan"), 3, 15583, 3), "ratio is nan"),
        ((float("inf"), 3, 15583, 3), "ratio is inf; it must be positive and finite"),
        ((100, 0, 15583, 3), "gain is 0"),
        ((100, -1, 15583, 3), "gain is -1"),
        ((100, 1e-9, 15583, 3), "gain is 1e-09; a pixel of 15583 DN would hold"),
        ((100, 3, 0, 3), "saturation is 0"),
        ((100, 3, 15583, 0), "passes is 0"),
    ],
)
def test_impossible_schedules_are_refused(arguments: tuple[float, float, float, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        unroll(*arguments)
