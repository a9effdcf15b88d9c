"""The training loop of the paper: denoise, expose to a random longer exposure, denoise again; every pass is judged."""

import copy
import ctypes
import hashlib
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import DataLoader
from tqdm import tqdm

from exposure.denoise import expose, photon_counts
from exposure.files import whole
from exposure.kernels.library import threads
from exposure.networks import CheckpointInfo, Network
from exposure.schedule import step_between

from .muon import Muon
from .report import Report
from .shots import Shots

Objective = Callable[..., tuple[list[Tensor], list[Tensor]]]
"""`rollout`, or what takes its place: the losses of each pass, and auxiliary ones, [N], one a shot of a batch."""


MOST_WORKERS = 8  # by default
CONVOLUTIONS = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
LEAST_ERROR = 1e-3  # of signal; far below it, as in black shots, there is no more to gain
MAY_CHANGE = {"iterations", "save_every", "report_every", "workers"}  # of a plan, when its run is continued


def default_workers() -> int:
    """A GPU waits for one process that makes crops; on a CPU, they would take cores from the network."""
    return min(MOST_WORKERS, threads()) if torch.cuda.is_available() else 0


@dataclass(frozen=True)
class Plan:
    """How to train. side: of a crop's planes; passes: network evaluations on each crop; seed: of everything random."""

    iterations: int = 20_000
    batch: int = 8
    side: int = 64
    passes: int = 3
    learning_rate: float = 4e-3
    warm_up: int = 200
    averaging: float = 0.999
    seed: int = 0
    save_every: int = 200
    report_every: int = 1000
    workers: int = field(default_factory=default_workers)

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "side", "passes", "warm_up", "save_every", "report_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}; it must be an unsigned 32-bit integer")

    def rate_at(self, iteration: int) -> float:
        """Learning rate: full for half of the run, then halved, for the last quarter decaying to zero."""
        progress = iteration / self.iterations
        rise = min(1.0, (iteration + 1) / self.warm_up)
        return self.learning_rate * rise * (1.0 if progress < 0.5 else 0.5) * min(1.0, 4 * (1 - progress))


class Trainer:
    """A run in a folder: `latest.pt` holds all that is needed to go on where it stopped, in the published format."""

    def __init__(
        self,
        network: Any,
        plan: Plan,
        folder: Path,
        objective: Objective | None = None,
        *,
        seen: str = "",
        start: str = "",
        before: CheckpointInfo = CheckpointInfo(),  # noqa: B008  # it cannot be changed
        licence: str = "",
    ) -> None:
        """seen: what tells apart the pictures that crops are made of. start: the same of the checkpoint it begins with.

        before: what that tells of itself. licence: of what is made of it, where that is another.
        """
        if plan.side % network.multiple:
            raise ValueError(f"--side is {plan.side}; crops for this network are multiples of {network.multiple} wide")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.plan, self.folder, self.iteration, self.seconds = plan, folder, 0, 0.0
        self.objective, self.seen = objective or rollout, hashlib.sha256(seen.encode()).hexdigest()
        self.start, self.before, self.licence = start, before, licence
        self.network = network.to(self.device).train()
        self.network.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval()
        convolutions = [module for module in self.network.modules() if isinstance(module, CONVOLUTIONS)]
        body = [module.weight for module in convolutions if module is not self.network.last]
        known = set(map(id, body))
        others = [weight for weight in self.network.parameters() if id(weight) not in known]
        self.optimizers = [Muon(body, plan.learning_rate), Adam(others, plan.learning_rate, foreach=True)]
        self.low_precision = has_fast_bfloat16(self.device)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "latest.pt").is_file():
            self._resume(self._latest())

    def run(self, shots: Shots, report: Report) -> None:
        """Train to the end of the plan; stopped at any moment, the next run goes on from the last save.

        Reports while it goes; the last report is the caller's, who may want to write the result first.
        """
        keep_freed_memory()
        batches = self._batches(shots)
        progress = tqdm(batches, initial=self.iteration, total=self.plan.iterations, unit="it", mininterval=5)
        began = time.perf_counter()
        for batch in progress:
            losses = self.step(*(part.to(self.device, non_blocking=True) for part in batch))
            self.iteration += 1
            self.seconds += time.perf_counter() - began  # with the making of crops
            began = time.perf_counter()
            if self.iteration % 50 == 0:
                progress.set_postfix(loss=f"{losses[-1]:.4f}")
                report.losses(self.iteration, [float(loss) for loss in losses], self.plan.rate_at(self.iteration))
            if self.iteration % self.plan.save_every == 0 or self.iteration == self.plan.iterations:
                self.save()
            if self.iteration % self.plan.report_every == 0 and self.iteration < self.plan.iterations:
                report.quality(self.iteration, self.average)

    def step(self, image: Tensor, clean: Tensor, ratio: Tensor, electrons: Tensor) -> list[Tensor]:
        """One update. Returns the L1 loss of each pass.

        Its logarithm is made to fall, shot by shot: a tenth less error counts the same in any light, as in PSNR.
        """
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self.plan.rate_at(self.iteration)
        mixed = np.random.SeedSequence([self.plan.seed, self.iteration]).generate_state(1)
        generator = torch.Generator(self.device).manual_seed(int(mixed[0]))  # a CPU heeds 32 bits alone
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            losses, auxiliary = self.objective(
                self.network, image, clean, ratio, electrons, passes=self.plan.passes, generator=generator
            )
        self.network.zero_grad()
        torch.stack([*losses, *auxiliary]).add(LEAST_ERROR).log().mean(dim=1).sum().backward()
        # it is 30 to 150 long with the default network: in effect batches count alike, and none tears the weights away
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(self.plan.averaging, (1 + self.iteration) / (10 + self.iteration))
        average: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.network.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(average, current, 1 - decay)
        return [loss.detach().mean() for loss in losses]

    def save(self) -> None:
        """Write `latest.pt` in one step. "netG" is the average of the weights, which is what one wants to use."""
        state = {
            "netG": self.average.state_dict(),
            "opt_g": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": 0,  # crops are drawn, not enumerated
            "iterations": self.iteration,
            "weights": self.network.state_dict(),
            "seconds": self.seconds,
            "plan": asdict(self.plan),
            "seen": self.seen,
            "start": self.start,
            "before": asdict(self.before),
            "licence": self.info.licence,
            "origin": self.info.origin,
            **({"photon_unit": self.average.photon_unit} if isinstance(self.average, Network) else {}),
        }
        with whole(self.folder / "latest.pt") as part:
            torch.save(state, part)

    @property
    def info(self) -> CheckpointInfo:
        """What the network tells of itself: the licence of what it began with, and how it came about."""
        then = f"{self.before.origin}; then " if self.start else ""
        done = f"{self.iteration} iterations of {self.plan.batch} crops, {self.seconds / 3600:.1f} h"
        return replace(self.before, licence=self.licence or self.before.licence, origin=then + done)

    def _latest(self) -> dict[str, Any]:
        path = self.folder / "latest.pt"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            state = {}
        if not isinstance(state, dict) or "plan" not in state:
            raise ValueError(
                f"{path} was not left by a run of exposure train; choose another --out, or give it to --init"
            )
        return state

    def _resume(self, state: dict[str, Any]) -> None:
        asked, found = asdict(self.plan), state["plan"]
        differ = [name for name in asked if name not in MAY_CHANGE and found.get(name, asked[name]) != asked[name]]
        if differ:
            then, now = (
                ", ".join(f"--{name.replace('_', '-')} {of[name]}" for name in differ) for of in (found, asked)
            )
            raise ValueError(f"{self.folder} holds a run with {then}, not {now}; choose another --out")
        if state.get("seen", self.seen) != self.seen:
            raise ValueError(
                f"{self.folder} holds a run on other pictures, --held-out or --leaves; choose another --out"
            )
        if self.start and state.get("start", self.start) != self.start:
            raise ValueError(f"{self.folder} holds a run that began with another --init; choose another --out")
        try:
            self.average.load_state_dict(state["netG"])
            self.network.load_state_dict(state["weights"])
        except RuntimeError as error:
            flags = "--widths, --widen, --concat-origin, --init or --diffusion"
            raise ValueError(f"{self.folder} holds a run of another network ({flags}); choose another --out") from error
        for optimizer, saved in zip(self.optimizers, state["opt_g"], strict=True):
            optimizer.load_state_dict(saved)
        if "before" in state:
            self.start, self.before = state["start"], CheckpointInfo(**state["before"])
            self.licence = self.licence or state["licence"]
        if "photon_unit" in state:
            self.network.photon_unit = self.average.photon_unit = state["photon_unit"]
        self.iteration, self.seconds = state["iterations"], state["seconds"]

    def _batches(self, shots: Shots) -> Iterator[list[Tensor]]:
        ahead = range(self.iteration * self.plan.batch, self.plan.iterations * self.plan.batch)
        loader: DataLoader[Any] = DataLoader(
            shots,  # type: ignore[arg-type]  # indexed without end
            batch_size=self.plan.batch,
            sampler=ahead,
            num_workers=self.plan.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.plan.workers > 0,
        )
        try:
            yield from loader
        except ValueError as error:  # of a picture; a worker puts its traceback before the sentence
            raise ValueError(str(error).strip().rpartition("\n")[2].removeprefix("ValueError: ")) from error


def rollout(
    network: Network,
    image: Tensor,
    clean: Tensor,
    ratio: Tensor,
    electrons: Tensor,
    *,
    passes: int,
    generator: torch.Generator | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the loop of `exposure.denoise` over random intermediate exposures, with gradients through every injection.

    Photons are drawn as they are served: every second injection mirrors the one before it.
    image, clean: [N, 4, h, w]; ratio, electrons: [N]. Returns for each pass the L1 loss of its estimate, and the
    auxiliary loss of the adaptive residual layer: both of its branches, weighted by the mask; each [N], of every shot.
    """
    ratio, electrons = ratio.reshape(-1, 1, 1, 1), electrons.reshape(-1, 1, 1, 1)
    between = torch.rand((len(image), passes - 1), generator=generator, device=image.device).sort(dim=1).values
    seeds = torch.randint(2**62, (len(image),), generator=generator, device=image.device).tolist()
    exposures = [torch.ones_like(ratio)]
    exposures += [1 + (ratio - 1) * fraction.reshape(-1, 1, 1, 1) for fraction in between.T]
    x, losses, auxiliary = image, [], []
    for now, after in zip(exposures, [*exposures[1:], ratio], strict=True):
        step = step_between(now, after, electrons, network.photon_unit)
        output = network.last(network.features(network.inputs(x, step.photon_gain, image))).float()
        estimate = network.blend(output, x)
        losses.append((estimate - clean).abs().mean(dim=(1, 2, 3)))
        if network.adaptive:
            mask, direct, corrected = network.branches(output, x)
            apart = mask * (direct - clean).abs() + (1 - mask) * (corrected - clean).abs()
            auxiliary.append(apart.mean(dim=(1, 2, 3)))
        if len(losses) < passes:
            x = expose(estimate, image, step, partial(straight_through, seeds=seeds, index=len(losses) - 1))
    return losses, auxiliary


def straight_through(rate: Tensor, seeds: Sequence[int], index: int) -> Tensor:
    """A Poisson draw whose gradient is that of its rate. [N, 4, h, w]; seeds: of each shot; index: of the injection."""
    counts = [photon_counts(one, seed=seed, index=index) for one, seed in zip(rate.detach(), seeds, strict=True)]
    return rate + (torch.stack(counts) - rate.detach())


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether BF16 is arithmetic of this device, and not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of giving them back: page faults cost half of a step on a CPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_max, 0)
