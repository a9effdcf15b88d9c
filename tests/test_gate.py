"""The accuracy gate and the choice of FP32 islands: what they let pass, and what they do not."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_nafnet import naf

from exposure.export.gate import pass_gate
from exposure.export.precision import GraphError, HalfArithmetic, Traced, choose_islands, half_runner
from exposure.export.scene import Crop, Scene, low_light_crops, real_scenes, simulated_scenes
from exposure.networks import Network
from exposure.networks.nafnet import ChannelNorm

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """The smallest one, 16x16 in each plane."""
    return next(simulated_scenes((64, 96)))


@pytest.fixture(scope="module")
def crop() -> Crop:
    """A corner of the darkest crop."""
    darkest = list(low_light_crops(15583.0))[-1]
    return Crop(darkest.image[..., :64, :80].copy(), darkest.photon_gain)


def off_by(network: Network, change: Callable[[Array], Array]) -> Callable[..., Array]:
    """An engine that computes the network and then something else."""

    def run(*arrays: Array) -> Array:
        with torch.no_grad():
            return change(network(*(torch.from_numpy(array) for array in arrays)).numpy())

    return run


def with_nan(clean: Array) -> Array:
    clean = clean.copy()
    clean[0, 0, 3, 3] = np.nan
    return clean


@pytest.mark.parametrize(
    ("precision", "change", "sentence"),
    [
        ("f32", lambda clean: clean, None),
        ("f32", lambda clean: clean + 1e-4, r"agrees with FP32 torch to 80\.\d dB only .* at least 100 dB"),
        ("f16", lambda clean: clean + 1e-5, None),
        ("f16", lambda clean: clean + 2e-4, r"agrees with FP32 torch to 7\d\.\d dB only on the smallest scene, 16x16"),
        ("bf16", lambda clean: clean + 2e-5, None),
        ("bf16", lambda clean: clean + 5e-4, "at least 70 dB is needed"),
        ("f32", with_nan, "gives NaN or Inf on the smallest scene after pass 1"),
        ("f32", lambda clean: clean[..., :-1], "answers .* to an image of"),
    ],
)
def test_the_gate(
    network: Network, scene: Scene, precision: str, change: Callable[[Array], Array], sentence: str | None
) -> None:
    engine = off_by(network, change)
    if sentence is None:
        records = pass_gate(network, engine, precision, [scene], "the engine")
        assert [record["passes"] for record in records] == [1, 3]
    else:
        with pytest.raises(GraphError, match=sentence):
            pass_gate(network, engine, precision, [scene], "the engine")


def test_few_wrong_pixels_are_found(network: Network, scene: Scene) -> None:
    """PSNR alone would let them pass."""

    def dotted(clean: Array) -> Array:
        clean = clean.copy()
        clean.reshape(-1)[::200] += 5e-4
        return clean

    with pytest.raises(GraphError, match=r"differs from FP32 torch by 8\.\d DN \(99\.9th percentile, 14 bit\)"):
        pass_gate(network, off_by(network, dotted), "f16", [scene], "the engine")


@pytest.mark.parametrize(("precision", "most_dn"), [("f32", 0.5), ("f16", 4), ("bf16", 24)])
def test_the_most_that_a_pixel_may_be_off(network: Network, scene: Scene, precision: str, most_dn: float) -> None:
    """The table of export/README.md, from both sides."""

    def off(dn: float) -> Callable[..., Array]:
        dots = np.zeros(scene.image.shape, np.float32)
        dots.reshape(-1)[::200] = dn / 16383  # half a percent of the pixels: PSNR hardly counts them
        return off_by(network, lambda clean: clean + dots)

    once = replace(scene, passes=1, clean=None)
    pass_gate(network, off(0.97 * most_dn), precision, [once], "the engine")
    with pytest.raises(GraphError, match=f"at most {most_dn:g} DN are allowed"):
        pass_gate(network, off(1.03 * most_dn), precision, [once], "the engine")


def test_the_most_that_may_be_lost(network: Network, scene: Scene) -> None:
    once = replace(scene, passes=1, clean=None)
    near = replace(once, clean=pass_through(network, once) - np.float32(0.05))
    for loss_db, allowed in ((0.015, True), (0.025, False)):
        offset = np.float32(0.05 * (10 ** (loss_db / 20) - 1))
        engine = off_by(network, lambda clean, offset=offset: clean + offset)  # type: ignore[misc]
        with contextlib.nullcontext() if allowed else pytest.raises(GraphError, match=r"loses 0\.025 dB"):
            pass_gate(network, engine, "bf16", [near], "the engine")


def test_a_loss_of_quality_is_found(network: Network, scene: Scene) -> None:
    """An engine close enough to torch, but always away from the truth, of a network that is close to the truth."""
    assert scene.clean is not None
    offset = np.float32(2e-4)
    truth = Scene("known", scene.image, None, scene.ratio, scene.gain, scene.saturation, passes=1)
    clean = pass_through(network, truth)
    near = Scene("known", scene.image, clean - offset, scene.ratio, scene.gain, scene.saturation, passes=1)
    with pytest.raises(GraphError, match=r"loses \d\.\d+ dB against FP32 torch .* at most 0\.02 dB are allowed"):
        pass_gate(network, off_by(network, lambda its: its + offset), "bf16", [near], "the engine")


def pass_through(network: Network, scene: Scene) -> Array:
    kept: list[Array] = []

    def noted(clean: Array) -> Array:
        kept.append(clean)
        return clean

    pass_gate(network, off_by(network, noted), "f32", [scene], "the engine")
    return kept[0]


def test_scenes_are_what_they_are_called() -> None:
    scenes = {scene.name: scene for scene in simulated_scenes((301, 1250))}
    assert [scene.image.shape[2:] for scene in scenes.values()] == [(16, 16), (167, 234), (151, 625)]
    for scene in scenes.values():
        assert scene.clean is not None
        assert scene.image.mean() == pytest.approx(scene.clean.mean(), rel=0.3)  # noise clipped at 0 brightens


def test_real_scenes_are_bayer_files(data: object) -> None:
    assert data
    names = [scene.name for scene in real_scenes()]
    assert names == ["blackmagic_dark_GBRG_12bit.dng", "kodak_dc50_GRBG.kdc"]  # the others there are not


START = ["conv1_1", "conv1_2"]


@pytest.mark.parametrize("islands", [[], START, [*START, "conv9_2"]])
def test_half_arithmetic_is_that_of_half_tensors(network: Network, crop: Crop, islands: list[str]) -> None:
    """Imitated and computed by a processor in FP16: the same loss to 0.2 dB, to 0.5 where islands leave little."""
    image, gain = torch.from_numpy(crop.image), torch.tensor([crop.photon_gain], dtype=torch.float32)
    with torch.no_grad():
        expected = network(image, gain, image).numpy()
        computed = Traced(network, half=True, islands=islands)(image, gain, image).numpy()
    imitated = half_runner(network, islands)(image.numpy(), gain.numpy(), image.numpy())
    losses = [-10 * np.log10(np.mean((clean - expected) ** 2)) for clean in (computed, imitated)]
    assert losses[0] == pytest.approx(losses[1], abs=0.5 if islands else 0.2)
    assert losses[0] < (110 if islands else 100)  # a loss to be seen: FP32 agrees to 140 dB and more


@pytest.mark.usefixtures("data")
def test_the_shipped_network_needs_its_island(network: Network) -> None:
    """Measured, not believed: with the end of the body in FP16 a real file misses 4 DN, in FP32 it passes."""
    assert choose_islands(network, list(low_light_crops(network.photon_unit))[-1:], 1424 * 2128) == ["conv9_2"]
    dark = [scene for scene in real_scenes() if scene.name.startswith("blackmagic")]
    with pytest.raises(GraphError, match="at most 4 DN are allowed"):
        pass_gate(network, half_runner(network, []), "f16", dark, "without")
    assert pass_gate(network, half_runner(network, ["conv9_2"]), "f16", dark, "with")


def test_layers_that_leave_the_range_become_islands(crop: Crop) -> None:
    """A NAFNet with strong activations: its norms would square them beyond 65504, and answer 0 without a word."""
    loud = naf(8, True, 4, (1,), 1, (1,))
    with torch.no_grad():
        loud.intro.weight.mul_(1000)
    islands = choose_islands(loud, [crop], 1424 * 2128)
    assert {"encoders.0.0.norm1", "middle_blks.0.sca.0"} <= set(islands)
    norm, strong = ChannelNorm(4), 1000 * torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert norm(strong).std() > 0.9
        with HalfArithmetic():
            assert norm(strong).abs().median() == 0
