"""The loop, against the paper's recurrence written out by hand."""

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from exposure import denoise, unroll
from exposure.kernels import arrays, library
from exposure.networks import UNet

PHYSICS: dict[str, Any] = {"ratio": 100.0, "gain": 3.0, "saturation": 15583.0}


def half_way(x: Tensor, photon_gain: float, original: Tensor) -> Tensor:
    """A stand-in for a network with a closed form: moves half way to grey, and sees the photon gain."""
    return (0.5 * x + 0.2 + 0.01 * photon_gain + 0.05 * original).clamp(0, 1)


@pytest.fixture(scope="module")
def small() -> UNet:
    torch.manual_seed(0)
    return UNet(widths=(8, 8, 8, 8, 8)).eval()


def test_mean_noise_is_the_recurrence() -> None:
    image = torch.rand(2, 4, 16, 16)
    for passes in (1, 2, 3, 4):
        x = image
        exposures = np.linspace(1, 100, passes + 1)
        for i, (now, after) in enumerate(itertools.pairwise(exposures)):
            clean = half_way(x, now * 15583 / (100 * 3 * 15583), image)
            if i + 1 < passes:  # photons of the file, plus those of after - 1 further exposures
                electrons = image / 100 / 3 * 15583 + clean / 100 * (after - 1) / 3 * 15583
                x = electrons / after * 100 * 3 / 15583
        result = denoise(half_way, image, **PHYSICS, passes=passes, noise="mean")
        # four passes of a dozen FP32 roundings of 6e-8 each, the recurrence in another order
        torch.testing.assert_close(result, clean, rtol=0, atol=1e-5)


def test_poisson_noise_has_the_injections_moments() -> None:
    """After one injection, x = keep * x_0 + per_photon * Poisson(photons * clean)."""
    seen: list[Tensor] = []

    def watch(x: Tensor, *_: object) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 0.3)

    image = torch.full((1, 4, 128, 128), 0.6)
    denoise(watch, image, **PHYSICS, passes=2, seed=5)
    step = unroll(100, 3, 15583, 2)[0]
    x, n = seen[1].double(), image.numel()
    mean, variance = step.keep * 0.6 + (1 - step.keep) * 0.3, step.per_photon**2 * step.photons * 0.3
    assert abs(x.mean().item() - mean) < 5 * (variance / n) ** 0.5
    assert abs(x.var().item() / variance - 1) < 5 * (2 / n) ** 0.5


def _injected(noise: str) -> list[NDArray[Any]]:
    """What four passes inject into a grey image, in standard deviations, when every estimate is grey."""
    seen: list[Tensor] = []

    def watch(x: Tensor, *_: object) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 0.3)

    denoise(watch, torch.full((1, 4, 128, 128), 0.6), **PHYSICS, passes=4, seed=5, noise=noise)
    return [((x - x.mean()) / x.std()).numpy() for x in seen[1:]]


def test_draws_are_antithetic_two_and_two_or_independent() -> None:
    chance = 4.5 / 256  # standard deviations of the correlation of 256 x 256 independent pairs
    first, second, third = _injected("poisson")
    # not -1: about one count in ten is drawn at a second attempt
    assert np.mean(first * second) < -0.85
    assert abs(np.mean(first * third)) < chance
    assert abs(np.mean(second * third)) < chance
    independent = _injected("independent")
    np.testing.assert_array_equal(independent[0], first)
    for one, other in itertools.combinations(independent, 2):
        assert abs(np.mean(one * other)) < chance


def test_the_public_form_is_what_others_call() -> None:
    named = ("ratio", "gain", "saturation", "passes", "seed", "noise")
    given = {name: p.default for name, p in inspect.signature(denoise).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert given == dict.fromkeys(named, inspect.Parameter.empty) | {"passes": 3, "seed": 0, "noise": "poisson"}
    image = torch.rand(1, 4, 32, 32)
    drawn = denoise(half_way, image, **PHYSICS)
    assert torch.equal(denoise(half_way, image, **PHYSICS, passes=3, seed=0, noise="poisson"), drawn)
    assert not torch.equal(denoise(half_way, image, **PHYSICS, noise="mean"), drawn)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (16, 32), (33, 50)])
def test_any_size(small: UNet, size: tuple[int, int]) -> None:
    image = torch.rand(1, 4, *size)
    result = denoise(small, image, **PHYSICS, passes=2)
    assert result.shape == image.shape
    assert result.min() >= 0
    assert result.max() <= 1


def test_padding_is_reflection_at_bottom_and_right(small: UNet) -> None:
    image = torch.rand(1, 4, 20, 30)
    padded = torch.nn.functional.pad(image, (0, 2, 0, 12), mode="reflect")
    result = denoise(small, image, **PHYSICS, passes=3, noise="mean")
    torch.testing.assert_close(result, denoise(small, padded, **PHYSICS, passes=3, noise="mean")[..., :20, :30])


def test_the_seed_decides(small: UNet) -> None:
    image = torch.rand(1, 4, 32, 32)
    first = denoise(small, image, **PHYSICS, seed=7)
    assert torch.equal(first, denoise(small, image, **PHYSICS, seed=7))
    assert not torch.equal(first, denoise(small, image, **PHYSICS, seed=8))
    assert torch.equal(denoise(small, image, **PHYSICS, passes=1, seed=1), denoise(small, image, **PHYSICS, passes=1))


def test_the_input_is_clipped() -> None:
    image = torch.rand(1, 4, 16, 16) * 2 - 0.5
    expected = denoise(half_way, image.clip(0, 1), **PHYSICS, noise="mean")
    assert torch.equal(denoise(half_way, image, **PHYSICS, noise="mean"), expected)


class OnCard(Tensor):
    """Stands in for a tensor on a GPU."""

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


def test_without_cuda_kernels_the_cpu_draws_the_same(small: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(1, 4, 32, 32)
    expected = denoise(small, image, **PHYSICS, seed=7)
    monkeypatch.setattr(library, "CUDA", "libnowhere.so")
    monkeypatch.setattr(arrays, "lies_on_gpu", lambda array: isinstance(array, OnCard))
    library.cuda_library.cache_clear()
    result = denoise(small, image.as_subclass(OnCard), **PHYSICS, seed=7)
    assert isinstance(result, OnCard)
    assert torch.equal(result, expected)


def test_a_batch_is_its_images_alone(small: UNet) -> None:
    images = torch.rand(3, 4, 32, 32)
    batch = denoise(small, images, **PHYSICS, noise="mean")
    # a convolution of another batch may sum in another order: some FP32 roundings in each of 18 layers
    torch.testing.assert_close(batch[1:2], denoise(small, images[1:2], **PHYSICS, noise="mean"), rtol=0, atol=1e-5)


def test_the_input_is_not_changed(small: UNet) -> None:
    image = torch.rand(1, 4, 32, 32) * 2 - 0.5
    before = image.clone()
    denoise(small, image, **PHYSICS)
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ratio": 0.5}, "ratio is 0.5"),
        ({"gain": 0}, "gain is 0"),
        ({"saturation": -1}, "saturation is -1"),
        ({"passes": 0}, "passes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"noise": "gauss"}, 'noise is "gauss"'),
        ({"image": torch.rand(4, 8, 8)}, "image is torch.float32 4x8x8"),
        ({"image": torch.rand(1, 3, 8, 8)}, "image is torch.float32 1x3x8x8"),
        ({"image": torch.zeros(1, 4, 8, 8, dtype=torch.int32)}, "image is torch.int32"),
    ],
)
def test_misuse_is_one_sentence(small: UNet, change: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"image": torch.rand(1, 4, 16, 16), **PHYSICS, **change}
    with pytest.raises(ValueError, match=sentence):
        denoise(small, arguments.pop("image"), **arguments)
