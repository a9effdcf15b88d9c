"""The U-Net against its description, and checkpoints that are, or are not, what they claim."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_nafnet import small_naf
from torch import Tensor
from torch.nn import functional as F

from exposure.networks import CheckpointError, CheckpointInfo, UNet, checkpoint, load_checkpoint, save_checkpoint

VARIANTS = [(inputs, adaptive) for inputs in (4, 8, 12) for adaptive in (False, True)]


def variant(inputs: int, adaptive: bool, width: int = 4) -> UNet:
    torch.manual_seed(inputs + adaptive)
    widths = [width * 2**level for level in range(5)]
    return UNet(with_photon=inputs > 4, concat_origin=inputs > 8, adaptive=adaptive, widths=widths).eval()


def described(state: dict[str, Tensor], x: Tensor, image: Tensor) -> Tensor:
    """The network once more, from the papers' text and the published parameter names."""

    def block(level: int, x: Tensor) -> Tensor:
        for name in (f"conv{level}_1", f"conv{level}_2"):
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
            x = torch.maximum(0.2 * x, x)
        return x

    skips = []
    for level in (1, 2, 3, 4):
        x = block(level, x)
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = block(5, x)
    for level in (6, 7, 8, 9):
        up = F.conv_transpose2d(x, state[f"upv{level}.weight"], state[f"upv{level}.bias"], stride=2)
        x = block(level, torch.cat([up, skips.pop()], 1))
    out = F.conv2d(x, state["conv10_1.weight"], state["conv10_1.bias"])
    if out.shape[1] == 4:
        return out.clamp(0, 1)
    m = torch.sigmoid(out[:, :1])
    return out[:, 1:5].clamp(0, 1) * m + (out[:, 5:] + image).clamp(0, 1) * (1 - m)


@pytest.mark.parametrize(("inputs", "adaptive"), VARIANTS)
def test_forward_is_the_description(inputs: int, adaptive: bool) -> None:
    network = variant(inputs, adaptive)
    image, original = torch.rand(2, 4, 32, 48), torch.rand(2, 4, 32, 48)
    planes = torch.cat([image, image * 0.4, original], 1)[:, :inputs]
    with torch.no_grad():
        expected = described(network.state_dict(), planes, image)
        torch.testing.assert_close(network(image, 0.4, original), expected, rtol=0, atol=1e-6)
        per_image = network(image, torch.tensor([0.4, 0.4]), original)
        torch.testing.assert_close(per_image, expected, rtol=0, atol=1e-6)


def test_published_size() -> None:
    assert sum(p.numel() for p in UNet().parameters()) == 7_761_801


@pytest.mark.parametrize(("inputs", "adaptive"), VARIANTS)
def test_both_formats_are_read_off_their_shapes(tmp_path: Path, inputs: int, adaptive: bool) -> None:
    network = variant(inputs, adaptive)
    published = {"netG": network.state_dict(), "opt_g": {}, "epoch": 1, "iterations": 2}
    torch.save(published, tmp_path / "a.pt")
    info = CheckpointInfo(photon_unit=1234.0, training_noise="P+g", licence="CC0-1.0", origin="a test")
    save_checkpoint(network, tmp_path / "a.safetensors", info, dtype=torch.float32)
    image = torch.rand(1, 4, 16, 16)
    with torch.no_grad():
        expected = network(image, 0.3, image)
        for name, unit in (("a.pt", 15583.0), ("a.safetensors", 1234.0)):
            loaded = load_checkpoint(tmp_path / name)
            assert (loaded.photon_unit, loaded.in_channels) == (unit, inputs)
            torch.testing.assert_close(loaded(image, 0.3, image), expected, rtol=0, atol=0)
    assert load_checkpoint(tmp_path / "a.safetensors").info == info
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_missing_inputs_are_named() -> None:
    image = torch.rand(1, 4, 16, 16)
    with pytest.raises(ValueError, match="photon_gain is missing"):
        variant(8, True)(image)
    with pytest.raises(ValueError, match="original is missing"):
        variant(12, True)(image, 0.5)


def _broken(tmp_path: Path, change: str) -> Path:
    state: dict[Any, torch.Tensor] = variant(8, True).state_dict()
    if change == "lacks a name":
        del state["upv7.bias"]
    elif change == "lacks the first layer":
        del state["conv1_1.weight"]
    elif change == "has a surplus name":
        state["conv11_1.weight"] = torch.zeros(1)
    elif change == "has a wrong shape":
        state["conv3_2.weight"] = torch.zeros(16, 16, 5, 5)
    elif change == "has 6 inputs":
        state["conv1_1.weight"] = torch.zeros(4, 6, 3, 3)
    elif change == "has 3 outputs":
        state["conv10_1.weight"], state["conv10_1.bias"] = torch.zeros(3, 4, 1, 1), torch.zeros(3)
    elif change == "has NaN":
        state["conv5_1.bias"][3] = float("nan")
    elif change == "has a scalar":
        state["conv1_1.weight"] = torch.tensor(1.0)
    elif change == "is FP64 beyond FP32":
        state["conv5_1.bias"] = torch.full((64,), 1e300, dtype=torch.float64)
    elif change == "is sparse":
        state["conv5_1.bias"] = state["conv5_1.bias"].to_sparse()
    elif change == "is on no device":
        state["conv5_1.bias"] = state["conv5_1.bias"].to("meta")
    elif change == "has integers":
        state["conv5_1.bias"] = torch.zeros(64, dtype=torch.int64)
    elif change == "would take terabytes":
        state["conv4_1.weight"] = state["conv5_1.weight"] = torch.zeros(600_000, 1, 1, 1)
    elif change == "would take more than 64 bits count":
        state = small_naf(8, True).state_dict() | {f"downs.{level}.weight": torch.zeros(1) for level in range(70)}
    elif change == "has a number for a name":
        state = {**small_naf(8, True).state_dict(), 7: torch.zeros(1)}
    path = tmp_path / "broken.pt"
    torch.save({"weights": state} if change == "has no netG" else {"netG": state}, path)
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("lacks a name", r"lacks upv7\.bias"),
        ("lacks the first layer", r"conv1_1\.weight"),
        ("has a surplus name", r"unknown name conv11_1\.weight"),
        ("has a wrong shape", r"conv3_2\.weight has shape \[16, 16, 5, 5\]"),
        ("has 6 inputs", "conv1_1 has 6 inputs"),
        ("has 3 outputs", "conv10_1 has 3 outputs"),
        ("has NaN", r"conv5_1\.bias holds values that are not finite"),
        ("has a scalar", "not a known network"),
        ("is FP64 beyond FP32", r"conv5_1\.bias holds values that are not finite numbers in FP32"),
        ("is sparse", r"conv5_1\.bias is torch\.float32, torch\.sparse_coo, cpu; it must be dense"),
        ("is on no device", r"conv5_1\.bias is torch\.float32, torch\.strided, meta; it must be dense"),
        ("has integers", r"conv5_1\.bias is torch\.int64"),
        ("would take terabytes", r"has shape \[600000, 1, 1, 1\]; this network needs"),
        ("would take more than 64 bits count", "torch cannot build one of these widths"),
        ("has a number for a name", "has the unknown name 7"),
        ("has no netG", '"netG"'),
    ],
)
def test_broken_checkpoints_are_one_sentence(tmp_path: Path, change: str, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_checkpoint(_broken(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_weights_of_8_bits_are_read(tmp_path: Path) -> None:
    """torch stores FP8, and computes next to nothing with it."""
    network = variant(8, True)
    save_checkpoint(network, tmp_path / "a.safetensors", CheckpointInfo(), dtype=torch.float8_e4m3fn)
    loaded = load_checkpoint(tmp_path / "a.safetensors").state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded[name], value.to(torch.float8_e4m3fn).float(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"a text", b"\x80\x02junk", bytes(range(256)) * 40])
def test_other_files_are_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="not a") as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_absent_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_photon_unit_must_be_a_number(tmp_path: Path) -> None:
    info = CheckpointInfo(photon_unit="many")  # type: ignore[arg-type]
    save_checkpoint(variant(8, True), tmp_path / "a.safetensors", info)
    with pytest.raises(CheckpointError, match='photon_unit is "many"'):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_checkpoint_survives_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    path = tmp_path / "a.safetensors"
    save_checkpoint(variant(8, True), path, CheckpointInfo())
    saved = path.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(variant(4, True), path, CheckpointInfo())
    assert path.read_bytes() == saved
    assert list(tmp_path.iterdir()) == [path]
