"""What training sees: every camera, sensitivity, exposure and noise model, as often as it says."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest, loguniform, uniform

from exposure.noise import CAMERAS, NOISE_MODELS, Camera
from exposure.training import shots
from exposure.training.scenes import DAYLIGHT, Scenes, unprocessed
from exposure.training.shots import Range, Shots


def test_shots_are_of_everything_that_is_trained_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Kolmogorov and Smirnov; were the laws as they should be, one seed in ten thousand would fail."""
    asked: list[tuple[str, float, str]] = []
    read_noise = Camera.read_noise

    def noted(self: Camera, gain: float, model: str, generator: np.random.Generator) -> Any:
        asked.append((next(name for name, camera in CAMERAS.items() if camera is self), gain, model))
        return read_noise(self, gain, model, generator)

    monkeypatch.setattr(Camera, "read_noise", noted)
    crops = Shots(Scenes(side=16, seed=3), Range())
    monkeypatch.setattr(Scenes, "__getitem__", lambda *_: np.full((4, 16, 16), 0.5, np.float32))
    ratios = [float(crops[index].ratio) for index in range(1500)]

    cameras, models = Counter(name for name, _, _ in asked), Counter(model for _, _, model in asked)
    assert set(cameras) == set(CAMERAS)
    assert min(cameras.values()) > 0.8 * 1500 / len(CAMERAS)
    assert set(models) == set(NOISE_MODELS)
    assert min(models.values()) > 0.9 * 1500 / len(NOISE_MODELS)
    spans = [CAMERAS[name].gain(iso) for name, _, _ in asked for iso in (100, 25600)]
    places = [
        np.log(gain / low) / np.log(high / low)
        for (_, gain, _), low, high in zip(asked, spans[::2], spans[1::2], strict=True)
    ]
    assert kstest(places, "uniform").pvalue > 1e-4
    law = lambda ratio: (loguniform(1, 300).cdf(ratio) + uniform(1, 299).cdf(ratio)) / 2  # noqa: E731
    assert kstest(ratios, law).pvalue > 1e-4


def test_a_tone_curve_is_undone() -> None:
    linear = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    toned = 3 * linear**2 - 2 * linear**3
    undone = unprocessed(toned, replace(DAYLIGHT, tone=True))
    np.testing.assert_allclose(undone, unprocessed(linear, DAYLIGHT), atol=2e-4)


def test_as_many_crops_are_leaves_as_was_asked_for(photographs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def leaves(self: Scenes, index: int, _: np.random.Generator) -> NDArray[Any]:
        drawn.append(index)
        return np.zeros((2 * self.side, 2 * self.side, 3), np.float32)

    monkeypatch.setattr(Scenes, "_from_leaves", leaves)
    crops = Scenes(photographs, side=16, leaves=0.3, seed=1)
    for index in range(300):
        crops[index]
    assert abs(len(drawn) / 300 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 300)


def test_crops_are_of_every_bayer_phase(photographs: list[Path]) -> None:
    """Mirrored and turned: of a picture with one bright corner, that corner comes to lie in each of four."""
    picture = np.zeros((64, 64, 3), np.float32)
    picture[:32, :32] = 1
    crops = Scenes(photographs, side=32, leaves=0, seed=0)
    found = set()
    for index in range(40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scenes, "_from_photograph", lambda *_: picture)
            plane = crops[index][1]
        found.add(tuple(side // 16 for side in np.unravel_index(plane.argmax(), plane.shape)))
    assert found == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_brightened_is_clipped_where_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shots, "expose_short", lambda *_, **__: np.array([[[-5.0, 0.0, 77.915, 1e4]]]))
    image = shots.brightened(np.zeros((1, 1, 4), np.float32), 100, 3, CAMERAS["SonyA7S2"].read_noise(3.0), 0)
    np.testing.assert_allclose(image, [[[0, 0, 0.5, 1]]], rtol=1e-4)


def test_defects_are_hot_or_dead_and_few() -> None:
    ratio, dim = 50.0, np.float32(0.02)
    shares, charges, dead = [], [], 0
    for seed in range(40):
        image = np.full((4, 256, 256), dim, np.float32)
        shots.add_defects(image, ratio, np.random.default_rng(seed))
        changed = image[image != dim]
        shares.append(changed.size / image.size)
        dead += np.count_nonzero(changed == 0)
        charges += ((changed[changed > 0] - dim) * shots.SATURATION / ratio).tolist()
        assert image.max() <= 1
    low, high = shots.DEFECTS
    assert np.mean(shares) == pytest.approx((high - low) / np.log(high / low), rel=0.4)
    assert dead / (dead + len(charges)) == pytest.approx(shots.DEAD, abs=0.04)
    most = (1 - dim) * shots.SATURATION / ratio  # beyond it, the brightened pixel is white
    assert kstest(np.array(charges)[np.array(charges) < 0.99 * most], loguniform(1, 0.99 * most).cdf).pvalue > 1e-4


def test_half_of_the_shots_have_no_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[float] = []
    monkeypatch.setattr(shots, "add_defects", lambda _, ratio, __: called.append(ratio))
    monkeypatch.setattr(Scenes, "__getitem__", lambda *_: np.full((4, 16, 16), 0.5, np.float32))
    crops = Shots(Scenes(side=16, seed=3), Range())
    for index in range(400):
        crops[index]
    assert abs(len(called) / 400 - 0.5) < 4 * np.sqrt(0.25 / 400)
