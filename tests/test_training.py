"""Scenes, shots, the training loop and its resumption."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exposure.client.command import main
from exposure.denoise import denoise, photon_counts
from exposure.kernels.library import threads
from exposure.networks import CheckpointError, NAFNet, UNet, load_checkpoint, save_checkpoint
from exposure.networks.checkpoint import CheckpointInfo
from exposure.schedule import PUBLISHED_PHOTON_UNIT
from exposure.training import command as training_command
from exposure.training import loop, scenes
from exposure.training.diffusion import Diffusion, diffusion_losses, load_diffusion, sample
from exposure.training.leaves import dead_leaves
from exposure.training.loop import Plan, Trainer, rollout, straight_through
from exposure.training.report import Report, denoised
from exposure.training.scenes import DAYLIGHT, Development, Scenes, pictures_in, read_picture, unprocessed
from exposure.training.shots import Range, Shots
from exposure.training.start import fresh, widened, with_origin

NARROW = (2, 3, 4, 5, 6)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small networks wait for each other
    yield
    torch.set_num_threads(threads)


class Silent:
    """A report that only counts."""

    def losses(self, *_: object) -> None: ...

    def quality(self, *_: object) -> None: ...


def narrow(**flags: bool) -> UNet:
    torch.manual_seed(1)
    network = UNet(widths=NARROW, **flags)
    network.info, network.photon_unit = CheckpointInfo(), PUBLISHED_PHOTON_UNIT
    return network


def bias_of(network: UNet) -> torch.Tensor:
    """Of its last layer: what it estimates on its own."""
    bias = network.conv10_1.bias
    assert bias is not None
    return bias


def test_leaves_are_pictures_of_their_seed() -> None:
    picture = dead_leaves(96, 5)
    assert picture.shape == (96, 96, 3)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 1
    np.testing.assert_array_equal(picture, dead_leaves(96, 5))
    assert not np.array_equal(picture, dead_leaves(96, 6))


def test_leaves_have_the_spectrum_of_photographs() -> None:
    power = np.mean([np.abs(np.fft.fft2(dead_leaves(128, seed).mean(axis=2))) ** 2 for seed in range(12)], axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    bands = [power[(frequency > low) & (frequency <= 1.5 * low)].mean() for low in (0.02, 0.04, 0.08, 0.16)]
    slope = np.polyfit(np.log([0.02, 0.04, 0.08, 0.16]), np.log(bands), 1)[0]
    assert -3.0 < slope < -1.2  # photographs: power falls as frequency^-2, give or take


def test_unprocessing_undoes_a_development() -> None:
    neutral = Development(tone=False, colours=np.eye(3), red=2.0, blue=1.6, exposure=0.5)
    grey = np.full((4, 6, 3), 0.5, np.float32)
    linear = ((0.5 + 0.055) / 1.055) ** 2.4
    planes = unprocessed(grey, neutral)
    assert planes.shape == (4, 2, 3)
    np.testing.assert_allclose(planes[:, 0, 0], 0.5 * linear / np.array([2.0, 1.0, 1.6, 1.0]), rtol=1e-5)
    for colour, place in enumerate([(0, 0), (0, 1), (1, 1), (1, 0)]):  # R G B G in a circle
        dot = np.zeros((2, 2, 3), np.float32)
        dot[place] = 1
        assert unprocessed(dot, DAYLIGHT)[:, 0, 0].nonzero()[0].tolist() == [colour]


def test_scenes_and_shots_are_those_of_their_index(photographs: list[Path]) -> None:
    shots, again = (Shots(Scenes(photographs, side=32, seed=7), Range()) for _ in range(2))
    for index in (0, 3, 1000):
        for one, other in zip(shots[index], again[index], strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        shot = shots[index]
        assert shot.image.shape == shot.clean.shape == (4, 32, 32)
        assert 1 <= shot.ratio <= 300
        assert shot.electrons > 0
    assert not np.array_equal(shots[0].clean, shots[1].clean)


def test_a_shot_is_its_scene_with_noise() -> None:
    """The mean over many shots of one bright scene is the scene: nothing is scaled wrongly."""
    limits = Range(iso=(100, 100), ratio=(20, 20), cameras=("SonyA7S2",))
    shots = Shots(Scenes(side=32, seed=2), limits)
    errors = [(shot.image - shot.clean)[shot.clean < 0.5].mean() for shot in (shots[index] for index in range(40))]
    assert abs(np.mean(errors)) < 1e-3


def one_batch() -> list[torch.Tensor]:
    shot = Shots(Scenes(side=32), Range())[0]
    return [torch.from_numpy(np.asarray(part))[None] for part in shot]


def test_rollout_judges_every_pass_and_feeds_gradients_through(monkeypatch: pytest.MonkeyPatch) -> None:
    network = narrow()

    def last_loss_and_its_gradients() -> tuple[float, torch.Tensor]:
        losses, auxiliary = rollout(network, *one_batch(), passes=3, generator=torch.Generator().manual_seed(0))
        assert len(losses) == len(auxiliary) == 3
        gradients = torch.autograd.grad(losses[-1], list(network.parameters()))
        return losses[-1].item(), torch.cat([gradient.ravel() for gradient in gradients])

    loss, through = last_loss_and_its_gradients()
    assert torch.isfinite(through).all()
    monkeypatch.setattr(loop, "straight_through", lambda *given, **which: straight_through(*given, **which).detach())
    same_loss, cut = last_loss_and_its_gradients()
    assert same_loss == loss
    assert (through - cut).norm() > 0.01 * through.norm()  # the earlier passes' share


def test_rollout_is_the_loop_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (image, clean, ratio, electrons) = narrow(), one_batch()
    with torch.no_grad():
        bias_of(network).add_(0.5)  # estimates that are not clamped
    monkeypatch.setattr(loop, "straight_through", lambda rate, **_: rate)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[2 / 3, 1 / 3]]))
    losses, _ = rollout(network, image, clean, ratio, electrons, passes=3)
    physics: dict[str, Any] = {"ratio": ratio.item(), "gain": 15583 / (ratio * electrons).item(), "saturation": 15583.0}
    expected = denoise(network, image, **physics, passes=3, noise="mean")
    assert losses[-1].item() == pytest.approx((expected - clean).abs().mean().item(), rel=1e-5)


def test_the_auxiliary_loss_judges_the_branch_that_is_used() -> None:
    network, (image, clean, ratio, electrons) = narrow(), one_batch()
    with torch.no_grad():
        bias_of(network)[0] = 30  # a mask of 1: the direct estimate alone
        _, (auxiliary,) = rollout(network, image, clean, ratio, electrons, passes=1)
        photon_gain = electrons.item() / network.photon_unit
        output = network.last(network.features(network.inputs(image, photon_gain, image)))
        _, direct, _ = network.branches(output, image)
    assert auxiliary.item() == pytest.approx((direct - clean).abs().mean().item(), rel=1e-4)


def test_the_learning_rate_rises_is_halved_and_ends_near_nothing() -> None:
    plan = Plan(iterations=100, warm_up=10, learning_rate=1.0)
    assert [plan.rate_at(i) for i in (0, 9, 49, 50, 75, 99)] == pytest.approx([0.1, 1, 1, 0.5, 0.5, 0.02])


def test_the_average_follows_slowly(tmp_path: Path) -> None:
    trainer = Trainer(narrow(), Plan(side=32), tmp_path)
    trainer.iteration = 10**6
    before = copy.deepcopy(trainer.average)
    trainer.step(*one_batch())
    weights = (network.parameters() for network in (before, trainer.average, trainer.network))
    for old, average, current in zip(*weights, strict=True):
        torch.testing.assert_close(average, 0.999 * old + 0.001 * current, rtol=0, atol=1e-7)


def test_a_run_survives_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    trainer = Trainer(narrow(), Plan(side=32), tmp_path)
    trainer.save()
    saved = (tmp_path / "latest.pt").read_bytes()
    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="the disk is full"):
        trainer.save()
    assert (tmp_path / "latest.pt").read_bytes() == saved


def test_a_draw_is_poissons_with_the_gradient_of_its_rate() -> None:
    rate = torch.full((2, 4, 64, 64), 7.0, requires_grad=True)
    drawn, mirrored = (straight_through(rate, [3, 5], index) for index in (0, 1))
    for shot, seed in ((0, 3), (1, 5)):
        torch.testing.assert_close(drawn[shot], photon_counts(rate[shot].detach(), seed=seed, index=0))
    assert drawn.mean().item() == pytest.approx(7, abs=0.1)
    assert drawn.var().item() == pytest.approx(7, rel=0.05)
    assert torch.corrcoef(torch.stack([drawn.ravel(), mirrored.ravel()]).detach())[0, 1] < -0.9  # as served
    (3 * drawn).sum().backward()
    assert rate.grad is not None
    assert (rate.grad == 3).all()


def test_a_networks_own_photon_unit_is_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    network, seen = narrow(), []
    inputs = network.inputs

    def noted(x: torch.Tensor, gain: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        seen.append(gain)
        return inputs(x, gain, image)

    monkeypatch.setattr(network, "inputs", noted)
    for network.photon_unit in (PUBLISHED_PHOTON_UNIT, PUBLISHED_PHOTON_UNIT / 4):
        rollout(network, *one_batch(), passes=1)
    torch.testing.assert_close(seen[1], 4 * seen[0])


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    plan = Plan(iterations=6, batch=2, side=32, passes=2, warm_up=2, save_every=3)
    shots = Shots(Scenes(side=32), Range())
    whole = Trainer(narrow(), plan, tmp_path / "whole")
    whole.run(shots, Silent())  # type: ignore[arg-type]
    stopped = Trainer(narrow(), plan, tmp_path / "stopped")

    class Stop(Silent):
        def quality(self, *_: object) -> None:
            raise KeyboardInterrupt

    stopped.plan = replace(plan, report_every=4)  # after the save at 3: one step is lost, and done again
    with pytest.raises(KeyboardInterrupt):
        stopped.run(shots, Stop())  # type: ignore[arg-type]
    again = Trainer(narrow(), plan, tmp_path / "stopped")
    assert again.iteration == 3
    again.run(shots, Silent())  # type: ignore[arg-type]
    for one, other in zip(whole.average.parameters(), again.average.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # channels-last sums may be ordered anew
    published = load_checkpoint(tmp_path / "stopped" / "latest.pt")
    assert published.with_photon
    assert not (tmp_path / "stopped" / ".latest.pt.part").exists()


def test_the_seed_decides_exposures_and_photons(tmp_path: Path) -> None:
    """The crops are the same; a CPU's generator heeds no more than 32 bits of what it is given."""
    seen = []

    def drawn(network: Any, image: Any, *_: Any, generator: torch.Generator, **__: Any) -> Any:
        seen.append(tuple(torch.rand(4, generator=generator).tolist()))
        return [network(image, 1.0, image).mean((1, 2, 3))], []

    for seed in (0, 1, 61):
        trainer = Trainer(narrow(), Plan(side=16, passes=1, seed=seed), tmp_path, drawn)
        for trainer.iteration in (6, 7):
            trainer.step(torch.rand(1, 4, 16, 16), torch.rand(1, 4, 16, 16), torch.ones(1), torch.ones(1))
    assert len(set(seen)) == len(seen) == 6


def test_a_tenth_less_error_counts_the_same_in_every_shot(tmp_path: Path) -> None:
    def bright_and_dark(network: UNet, *_: torch.Tensor, **__: object) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        bright, dark = 1 + bias_of(network)[:2]
        return [torch.stack([bright, 100 * dark])], []

    trainer = Trainer(narrow(), Plan(side=32, passes=1), tmp_path, bright_and_dark)
    trainer.optimizers = []  # no other weight has a gradient
    with torch.no_grad():
        trainer.network.conv10_1.bias.zero_()
    (reported,) = trainer.step(*one_batch())
    bright, dark = trainer.network.conv10_1.bias.grad[:2]
    assert bright.item() == pytest.approx(dark.item(), rel=2e-3)  # LEAST_ERROR is a thousandth of the smaller error
    assert reported.item() == pytest.approx(50.5)  # and the L1 itself is told


def test_training_makes_it_better(tmp_path: Path) -> None:
    plan = Plan(iterations=60, batch=4, side=32, passes=2, learning_rate=3e-3, warm_up=5, averaging=0.9)
    trainer = Trainer(narrow(), plan, tmp_path)
    shots = Shots(Scenes(side=32), Range(iso=(400, 800), ratio=(50, 100)))
    batch = [torch.from_numpy(np.stack([shots[i][part] for i in range(16)])) for part in range(4)]
    before = rollout(trainer.average, *batch, passes=2)[0][-1].mean().item()
    trainer.run(shots, Silent())  # type: ignore[arg-type]
    assert rollout(trainer.average, *batch, passes=2)[0][-1].mean().item() < 0.8 * before


def test_diffusion_learns_and_samples_what_a_perfect_network_would(tmp_path: Path) -> None:
    plan = Plan(iterations=70, batch=4, side=32, passes=1, learning_rate=3e-3, warm_up=5, averaging=0.9)
    trainer = Trainer(Diffusion([8] * 5), plan, tmp_path, diffusion_losses)
    shots = Shots(Scenes(side=32), Range(iso=(400, 800), ratio=(50, 100)))
    batch = [torch.from_numpy(np.stack([shots[i][part] for i in range(16)])) for part in range(4)]

    def loss() -> float:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            return diffusion_losses(trainer.average, *batch, passes=1, generator=generator)[0][0].mean().item()

    before = loss()
    trainer.run(shots, Silent())  # type: ignore[arg-type]
    assert loss() < 0.7 * before
    image, clean = batch[:2]
    assert sample(trainer.average, image[..., :30, :21], 3).shape == (16, 4, 30, 21)

    class Perfect(Diffusion):
        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            return 2 * clean - 1

    for steps in (1, 4):
        torch.testing.assert_close(sample(Perfect(NARROW), image, steps), clean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_ddim_goes_down_the_levels_by_its_rule(steps: int) -> None:
    """For an estimate that is half of x, a step multiplies x by a number: equation 12 of the paper with eta 0."""
    levels: list[float] = []

    class Half(Diffusion):
        def forward(self, x: torch.Tensor, level: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            levels.append(level[0].item())
            return x / 2

    noise = 0.01 * torch.randn((1, 4, 32, 32), generator=torch.Generator().manual_seed(7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: noise)
        result = sample(Half(NARROW), torch.rand(1, 4, 32, 32), steps)
    betas = np.linspace(1e-4, 0.02, 1000)
    visited = [round(999 - 999 * step / steps) for step in range(steps)]
    kept = [np.prod(1 - betas[: level + 1]) for level in visited]
    np.testing.assert_allclose(levels, np.sqrt(1 - np.array(kept)), rtol=1e-5)
    factor = 1.0
    for now, after in zip(kept, [*kept[1:], 1.0], strict=True):
        factor *= np.sqrt(after) / 2 + np.sqrt((1 - after) / (1 - now)) * (1 - np.sqrt(now) / 2)
    torch.testing.assert_close(result, (factor * noise + 1) / 2, rtol=0, atol=1e-6)


def test_a_fresh_network_keeps_the_size_of_a_signal() -> None:
    network, sizes = fresh((8, 16, 32, 64, 128), 0), []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer is not network.last:
            layer.register_forward_hook(lambda *given: sizes.append(given[-1].square().mean().sqrt().item()))
    signal = torch.randn(1, network.in_channels, 64, 64)
    with torch.no_grad():
        network.features(signal)
    down = sizes[:10]  # the way up halves what the transposed convolutions bring, which keep PyTorch's weights
    assert 0.4 < min(down) <= max(down) < 2.5


def test_pictures_while_training_are_of_the_loop() -> None:
    """Of a network whose estimate is what it was told of the photons."""
    shot = Shots(Scenes(side=32), Range())[0]

    class Telling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, photon_gain: float, _: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x, photon_gain)

    told = denoised(Telling(), shot, 1).mean().item()  # type: ignore[arg-type]
    assert told == pytest.approx(shot.electrons / PUBLISHED_PHOTON_UNIT, rel=1e-5)


@pytest.mark.parametrize("flags", [{}, {"concat_origin": True}, {"with_photon": False, "adaptive": False}])
def test_a_widened_network_computes_the_same(flags: dict[str, bool]) -> None:
    network = narrow(**flags).eval()
    wide = widened(network, 4).eval()
    assert wide.conv5_1.out_channels == 4 * NARROW[4]
    image = torch.rand(1, 4, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(wide(image, 2.0, image), network(image, 2.0, image), rtol=0, atol=1e-5)
    other = widened(network, 4, seed=1)
    assert not torch.equal(other.conv5_1.weight, wide.conv5_1.weight)


def test_a_network_given_the_file_itself_computes_the_same_and_learns_to_use_it() -> None:
    network = narrow().eval()
    seeing = with_origin(network)
    assert seeing.concat_origin
    assert with_origin(seeing) is seeing
    image, original = torch.rand(2, 1, 4, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(seeing(image, 2.0, original), network(image, 2.0), rtol=0, atol=1e-6)
    seeing(image, 2.0, original).sum().backward()
    assert seeing.conv1_1.weight.grad is not None
    assert seeing.conv1_1.weight.grad[:, 8:].abs().sum() > 0


def test_the_command_trains_a_checkpoint_that_denoises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = "--iterations 4 --batch 2 --side 32 --passes 2 --save-every 2 --report-every 4 --licence CC0-1.0"
    widths = ["--widths", "2", "3", "4", "5", "6"]
    assert main(["train", "--out", str(run), *flags.split(), *widths]) == 0
    network = load_checkpoint(run / "unet.safetensors")
    assert network.info.licence == "CC0-1.0"
    assert "P+G+r+u" in network.info.training_noise
    weights = [weight for weight in network.parameters() if weight.ndim == 4]
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in weights)  # an engine in BF16 has the same
    result = denoise(network, torch.rand(1, 4, 20, 20), ratio=100, gain=3.0, saturation=15583)
    assert torch.isfinite(result).all()
    assert list((run / "tensorboard").glob("events*"))
    grown = ["--init", str(run / "unet.safetensors"), "--concat-origin", "--widen", "2"]
    again = flags.removesuffix(" --licence CC0-1.0").split()
    assert main(["train", "--out", str(tmp_path / "next"), *grown, *again]) == 0
    network = load_checkpoint(tmp_path / "next" / "unet.safetensors")
    assert isinstance(network, UNet)
    assert network.info.licence == "CC0-1.0"  # that of what it began with
    assert re.fullmatch(r"4 iterations of .*; then 4 iterations of 2 crops, .* h", network.info.origin)
    assert network.concat_origin
    assert network.conv5_1.out_channels == 12
    on = [flag if flag != "4" else "5" for flag in again]  # further, without what it began with, which it remembers
    on += ["--out", str(tmp_path / "next")]
    assert main(["train", *on, "--concat-origin", "--widths", "4", "6", "8", "10", "12"]) == 0
    for name in ("unet.safetensors", "latest.pt"):
        told = load_checkpoint(tmp_path / "next" / name).info
        assert told.licence == "CC0-1.0"
        assert re.fullmatch(r"4 iterations of .*; then 5 iterations of 2 crops, .* h", told.origin)
    other = ["--init", str(tmp_path / "next" / "unet.safetensors")]
    assert main(["train", *other, *on]) == 1
    assert "holds a run that began with another --init; choose another --out" in capsys.readouterr().err


def test_a_run_keeps_the_photon_unit_that_it_started_with(tmp_path: Path) -> None:
    save_checkpoint(narrow(), tmp_path / "first.safetensors", CheckpointInfo(photon_unit=4000.0))
    flags = f"--init {tmp_path / 'first.safetensors'} --out {tmp_path} --iterations 1 --batch 1 --side 16 --passes 1"
    assert main(["train", *flags.split()]) == 0
    assert load_checkpoint(tmp_path / "unet.safetensors").photon_unit == 4000.0


def test_a_saved_run_keeps_its_photon_unit_too(tmp_path: Path) -> None:
    """`latest.pt`, from which the next run is to start; and its own continuation, whatever that starts from."""
    save_checkpoint(narrow(), tmp_path / "first.safetensors", CheckpointInfo(photon_unit=4000.0))
    flags = f"--out {tmp_path} --batch 1 --side 16 --passes 1 --iterations"
    assert main(["train", *flags.split(), "1", "--init", str(tmp_path / "first.safetensors")]) == 0
    assert load_checkpoint(tmp_path / "latest.pt").photon_unit == 4000.0
    assert main(["train", *flags.split(), "2", "--widths", *map(str, NARROW)]) == 0
    assert load_checkpoint(tmp_path / "unet.safetensors").photon_unit == 4000.0


def test_a_run_goes_on_as_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(flags: str) -> int:
        always = f"--out {tmp_path} --side 16 --passes 1 --widths 2 3 4 5 6"
        return main(["train", *always.split(), *flags.split()])

    assert run("--batch 1 --iterations 1") == 0
    written = (tmp_path / "unet.safetensors").read_bytes()
    assert run("--batch 1 --iterations 1 --save-every 7 --report-every 7") == 0
    assert (tmp_path / "unet.safetensors").read_bytes() == written
    assert run("--batch 3 --iterations 1 --seed 5") == 1
    told = capsys.readouterr().err
    assert f"{tmp_path} holds a run with --batch 1, --seed 0, not --batch 3, --seed 5; choose another --out" in told
    assert (tmp_path / "unet.safetensors").read_bytes() == written
    assert run("--batch 1 --iterations 2 --leaves 0.5") == 1
    assert "holds a run on other pictures, --held-out or --leaves" in capsys.readouterr().err
    assert run("--batch 1 --iterations 2") == 0
    assert load_checkpoint(tmp_path / "unet.safetensors").info.origin.startswith("2 iterations of 1 crops")


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    """A server's checkpoint is compared by its SHA-256."""
    network, info = narrow(), CheckpointInfo(licence="CC0-1.0", origin='a "test", Grün')
    for name in "abcdefgh":
        save_checkpoint(network, tmp_path / name, info)
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.info == info
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


def test_the_result_is_written_before_the_last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Report, "quality", fails)
    flags = f"--out {tmp_path} --iterations 1 --batch 1 --side 16 --widths 2 3 4 5 6"
    assert main(["train", *flags.split()]) == 1
    assert load_checkpoint(tmp_path / "unet.safetensors").with_photon


def test_a_gpu_is_given_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Plan().workers == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Plan().workers == min(8, threads())
    assert Plan(workers=3).workers == 3


def test_pictures_are_decoded_when_they_are_needed(photographs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []

    def watched(path: Path) -> Image.Image:
        decoded.append(path)
        with Image.open(path) as image:
            return image.convert("RGB")

    monkeypatch.setattr(scenes, "read_picture", watched)
    many = Scenes(photographs, side=32, leaves=0, seed=7)
    assert not decoded
    crops = [many[index] for index in range(8)]
    assert sorted(decoded) == photographs  # each once
    monkeypatch.setattr(scenes, "DECODED_BYTES", 1)
    few = Scenes(photographs, side=32, leaves=0, seed=7)
    for index, crop in enumerate(crops):
        np.testing.assert_array_equal(few[index], crop)
    assert len(decoded) > 2 * len(photographs)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_sentence(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "broken.jpg"
    Image.fromarray((255 * dead_leaves(160, 1)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    plan = Plan(iterations=1, batch=1, side=32, workers=workers)
    trainer = Trainer(narrow(), plan, tmp_path)
    with pytest.raises(ValueError, match=rf"^{path}: not a picture that can be read$"):
        trainer.run(Shots(Scenes([path], side=32, leaves=0), Range()), Silent())  # type: ignore[arg-type]


def test_a_fresh_network_is_that_of_its_seed() -> None:
    """Whatever was drawn before it in this process."""
    torch.manual_seed(1)
    one = fresh((2, 3, 4, 5, 6), 7).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = (fresh((2, 3, 4, 5, 6), seed).state_dict() for seed in (7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("weight"))


def test_held_out_pictures_are_never_trained_on(
    photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], float]] = []

    class Watched(Scenes):
        def __init__(self, pictures: list[Path], **more: Any) -> None:
            seen.append(([path.name for path in pictures], more["leaves"]))
            super().__init__(pictures, **more)

    monkeypatch.setattr(training_command, "Scenes", Watched)
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(f"# a comment\r\n\r\n{photographs[0].name}\r\nanother.jpg\r\n", newline="")
    folder = photographs[0].parent
    flags = f"--photos {folder} --held-out {held_out} --out {tmp_path / 'run'} --side 16 --iterations 1 --batch 1"
    assert main(["train", *flags.split(), "--widths", "2", "3", "4", "5", "6"]) == 0
    assert seen == [([photographs[0].name], 0), ([path.name for path in photographs[1:]], 0.3)]


def test_a_folder_of_held_out_pictures_alone_is_refused(
    photographs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("".join(f"{path.name}\n" for path in photographs))
    flags = ["--photos", str(photographs[0].parent), "--held-out", str(held_out), "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 1
    assert "none is left to train on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", [b"x", None])
def test_a_folder_with_a_foreign_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: bytes | None
) -> None:
    if what is None:
        torch.save({"netG": narrow().state_dict()}, tmp_path / "latest.pt")
    else:
        (tmp_path / "latest.pt").write_bytes(what)
    before = (tmp_path / "latest.pt").read_bytes()
    assert main(["train", "--out", str(tmp_path), "--widths", "2", "3", "4", "5", "6"]) == 1
    assert "latest.pt was not left by a run of exposure train" in capsys.readouterr().err
    assert (tmp_path / "latest.pt").read_bytes() == before


def test_muon_gets_the_convolutions_alone(tmp_path: Path) -> None:
    network = NAFNet(width=2, encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,))
    network.photon_unit = PUBLISHED_PHOTON_UNIT
    muon, adam = Trainer(network, Plan(side=16), tmp_path).optimizers
    shapes = [tuple(weight.shape) for weight in muon.param_groups[0]["params"]]
    assert (2, 1, 1, 1) not in shapes
    assert (4, 1, 3, 3) in shapes  # one of a channel, depthwise
    assert (1, 2, 1, 1) in [tuple(weight.shape) for weight in adam.param_groups[0]["params"]]  # beta and gamma
    assert len(shapes) + len(adam.param_groups[0]["params"]) == len(list(network.parameters()))


def test_a_level_without_channels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ([], ["--diffusion"]):
        assert main(["train", "--out", str(tmp_path), *kind, "--widths", "2", "3", "0", "5", "6"]) == 1
        assert "--widths is 2 3 0 5 6; a level has at least 1 channel" in capsys.readouterr().err


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no picture"):
        pictures_in(tmp_path)
    (tmp_path / "fake.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"fake\.jpg: not a picture"):
        Scenes([tmp_path / "fake.jpg"], side=32)
    Image.new("RGB", (100, 60)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png is 100x60; a crop needs 64 pixels a side"):
        Scenes([tmp_path / "small.png"], side=32)
    Image.fromarray(np.full((80, 80), 9000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: a grey picture of more than 8 bits"):
        Scenes([tmp_path / "deep.png"], side=32)
    Image.new("1", (20000, 20000)).save(tmp_path / "vast.png")
    with pytest.raises(ValueError, match=r"vast\.png: more than 178 megapixels"):
        Scenes([tmp_path / "vast.png"], side=32)
    Image.effect_noise((500, 500), 50).save(tmp_path / "chunk.png")
    first, *others = (tmp_path / "chunk.png").read_bytes().rpartition(b"IDAT")
    (tmp_path / "chunk.png").write_bytes(b"".join([first, b"\0\1\2\3", others[-1]]))
    with pytest.raises(ValueError, match=r"chunk\.png: not a picture that can be read"):
        read_picture(tmp_path / "chunk.png")
    with pytest.raises(ValueError, match="--warm-up is 0"):
        Plan(warm_up=0)
    with pytest.raises(ValueError, match="--seed is -1; it must be an unsigned 32-bit integer"):
        Plan(seed=-1)
    for network in (narrow(), Diffusion(NARROW)):
        with pytest.raises(ValueError, match="--side is 40; crops for this network are multiples of 16 wide"):
            Trainer(network, Plan(side=40), tmp_path)
    assert main(["train", "--out", str(tmp_path), "--widen", "0"]) == 1
    assert "--widen is 0; it must be at least 1" in capsys.readouterr().err
    save_checkpoint(narrow(), tmp_path / "first.safetensors", CheckpointInfo())
    given = ["--init", str(tmp_path / "first.safetensors"), "--widths", *map(str, NARROW)]
    assert main(["train", "--out", str(tmp_path), *given]) == 1
    assert "--widths is for random weights" in capsys.readouterr().err
    with pytest.raises(ValueError, match="8 inputs mean photon planes"):
        with_origin(narrow(with_photon=False))
    with pytest.raises(ValueError, match="share of dead leaves"):
        Scenes(side=32, leaves=1.5)


def test_a_diffusion_network_is_no_checkpoint_to_serve(tmp_path: Path) -> None:
    flags = "--diffusion --iterations 2 --batch 2 --side 32 --report-every 2 --widths 2 3 4 5 6"
    assert main(["train", "--out", str(tmp_path), *flags.split()]) == 0
    assert load_diffusion(tmp_path / "diffusion.safetensors").unet.concat_origin
    with pytest.raises(CheckpointError, match="not a known network"):
        load_checkpoint(tmp_path / "diffusion.safetensors")
    (tmp_path / "none").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not a diffusion network"):
        load_diffusion(tmp_path / "none")
