"""NAFNet against its paper, and published variants read off their state dicts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from exposure import denoise
from exposure.networks import CheckpointError, CheckpointInfo, NAFNet, load_checkpoint, save_checkpoint

# width, encoder, middle and decoder blocks: the four that ExposureDiffusion names naf, naf2, naf3 and naf4
PUBLISHED = {
    "naf": (16, (), 1, ()),
    "naf2": (16, (2, 2, 4, 4), 12, (2, 2, 2, 2)),
    "naf3": (16, (1, 1, 1, 1), 1, (1, 1, 1, 1)),
    "naf4": (16, (), 8, ()),
}
VARIANTS = [(inputs, adaptive) for inputs in (4, 8, 12) for adaptive in (False, True)]


def naf(
    inputs: int = 8,
    adaptive: bool = True,
    width: int = 4,
    encoder: tuple[int, ...] = (1, 2),
    middle: int = 2,
    decoder: tuple[int, ...] = (2, 1),
) -> NAFNet:
    """A seeded network whose residual branches matter: beta and gamma are 0 when new."""
    torch.manual_seed(inputs + adaptive)
    network = NAFNet(
        with_photon=inputs > 4,
        concat_origin=inputs > 8,
        adaptive=adaptive,
        width=width,
        encoder_blocks=encoder,
        middle_blocks=middle,
        decoder_blocks=decoder,
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")) or "norm" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return network.eval()


def small_naf(inputs: int, adaptive: bool) -> NAFNet:
    """Every kind of layer, once: tracing takes seconds for each block."""
    return naf(inputs, adaptive, 4, (0,), 1, (0,))


def described(state: dict[str, Tensor], levels: int, x: Tensor, image: Tensor) -> Tensor:
    """The network once more, from the paper's text and figure 3, and the published parameter names."""

    def convolved(name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)

    def norm(name: str, x: Tensor) -> Tensor:
        last = F.layer_norm(x.movedim(1, -1), x.shape[1:2], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
        return last.movedim(-1, 1)

    def gated(x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return x[:, :half] * x[:, half:]

    def block(name: str, x: Tensor) -> Tensor:
        z = convolved(f"{name}.conv1", norm(f"{name}.norm1", x))
        z = gated(convolved(f"{name}.conv2", z, padding=1, groups=z.shape[1]))
        z = z * convolved(f"{name}.sca.1", F.adaptive_avg_pool2d(z, 1))
        y = x + convolved(f"{name}.conv3", z) * state[f"{name}.beta"]
        z = convolved(f"{name}.conv5", gated(convolved(f"{name}.conv4", norm(f"{name}.norm2", y))))
        return y + z * state[f"{name}.gamma"]

    def blocks(name: str, x: Tensor) -> Tensor:
        for index in range(sum(key.startswith(f"{name}.") and key.endswith(".beta") for key in state)):
            x = block(f"{name}.{index}", x)
        return x

    x, skips = convolved("intro", x, padding=1), []
    for level in range(levels):
        skips.append(blocks(f"encoders.{level}", x))
        x = convolved(f"downs.{level}", skips[-1], stride=2)
    x = blocks("middle_blks", x)
    for level in range(levels):
        up = F.pixel_shuffle(convolved(f"ups.{level}.0", x), 2)
        x = blocks(f"decoders.{level}", up + skips.pop())
    out = convolved("ending", x, padding=1)
    if out.shape[1] == 4:
        return (out + image).clamp(0, 1)
    m = torch.sigmoid(out[:, :1])
    return out[:, 1:5].clamp(0, 1) * m + (out[:, 5:] + image).clamp(0, 1) * (1 - m)


@pytest.mark.parametrize(("inputs", "adaptive"), VARIANTS)
@pytest.mark.parametrize("levels", [((), 2, ()), ((1, 2), 2, (2, 1)), ((1, 0, 1), 1, (0, 1, 1))])
def test_forward_is_the_description(
    inputs: int, adaptive: bool, levels: tuple[tuple[int, ...], int, tuple[int, ...]]
) -> None:
    encoder, middle, decoder = levels
    network = naf(inputs, adaptive, 4, encoder, middle, decoder)
    image, original = torch.rand(2, 4, 24, 40), torch.rand(2, 4, 24, 40)
    planes = torch.cat([image, image * 0.4, original], 1)[:, :inputs]
    with torch.no_grad():
        expected = described(network.state_dict(), len(encoder), planes, image)
        assert expected.std() > 0.01
        torch.testing.assert_close(network(image, 0.4, original), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("inputs", [8, 12])
def test_published_variants_are_read_off_their_state_dicts(tmp_path: Path, variant: str, inputs: int) -> None:
    network = naf(inputs, True, *PUBLISHED[variant])
    torch.save({"netG": network.state_dict(), "opt_g": {}, "epoch": 300, "iterations": 1}, tmp_path / "a.pt")
    save_checkpoint(network, tmp_path / "a.safetensors", CheckpointInfo(), dtype=torch.float32)
    image = torch.rand(1, 4, 32, 48)
    with torch.no_grad():
        expected = network(image, 0.3, image)
        for name in ("a.pt", "a.safetensors"):
            loaded = load_checkpoint(tmp_path / name)
            assert isinstance(loaded, NAFNet)
            assert (loaded.in_channels, loaded.multiple) == (inputs, 2 ** len(PUBLISHED[variant][1]))
            torch.testing.assert_close(loaded(image, 0.3, image), expected, rtol=0, atol=0)


def test_published_names() -> None:
    names = set(naf(8, True, *PUBLISHED["naf3"]).state_dict())
    block = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "beta", "gamma", "sca.1.weight", "sca.1.bias"]
    block += [f"conv{i}.{kind}" for i in range(1, 6) for kind in ("weight", "bias")]
    assert {f"middle_blks.0.{name}" for name in block} == {name for name in names if name.startswith("middle")}
    for name in ("intro.weight", "downs.3.bias", "ups.0.0.weight", "encoders.3.0.beta", "decoders.3.0.gamma"):
        assert name in names
    assert "ups.0.0.bias" not in names


@pytest.mark.parametrize(("variant", "parameters"), [("naf3", 1_137_492), ("naf4", 19_732)])
def test_published_sizes(variant: str, parameters: int) -> None:
    """The counts that the published code states for 4 inputs and 4 outputs."""
    assert sum(p.numel() for p in naf(4, False, *PUBLISHED[variant]).parameters()) == parameters


def test_the_loop_takes_it_at_any_size() -> None:
    network = naf()
    image = torch.rand(1, 4, 21, 34)
    clean = denoise(network, image, ratio=50, gain=3, saturation=15583, passes=3, noise="mean")
    assert clean.shape == image.shape
    assert 0 <= clean.min() <= clean.max() <= 1


def test_tiles_are_not_the_frame() -> None:
    """Channel attention sees the whole image: a fact that users of tiles must know, held here."""
    network = naf()
    image = torch.cat([torch.rand(1, 4, 64, 64), 0.02 * torch.rand(1, 4, 64, 64)], 3)
    with torch.no_grad():
        frame, tile = network(image, 0.4), network(image[..., :64], 0.4)
    assert (frame[..., :32] - tile[..., :32]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"intro.weight": torch.zeros(4, 6, 3, 3)}, "intro has 6 inputs"),
        ({"ending.weight": torch.zeros(3, 4, 3, 3)}, "ending has 3 outputs"),
        ({"encoders.1.5.beta": torch.zeros(1, 8, 1, 1)}, r"lacks encoders\.1\.2\."),
        ({"middle_blks.0.conv4.weight": torch.zeros(8, 16, 1, 1)}, r"conv4\.weight has shape \[8, 16, 1, 1\]"),
        ({"downs.2.weight": torch.zeros(32, 16, 2, 2)}, "lacks"),
    ],
)
def test_broken_checkpoints_are_one_sentence(tmp_path: Path, change: dict[str, Tensor], sentence: str) -> None:
    torch.save({"netG": naf().state_dict() | change}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)
