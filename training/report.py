"""What a training run shows while it goes: losses, quality and pictures, to TensorBoard."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from exposure.denoise import denoise
from exposure.networks import Network
from exposure.quality import psnr

from .diffusion import Diffusion, sample
from .shots import SATURATION, Shot

GAMMA = 1 / 2.2  # for looking at linear signal
Result = Callable[[Any, Shot, int], Tensor]


class Report:
    """Writes to `folder`; `examples` are shots to judge by, `result` what a network makes of one.

    purge_from: the first iteration of this run; what one that was killed told of it and later ones is not shown.
    """

    def __init__(
        self, folder: Path, examples: Sequence[Shot], result: Result | None = None, *, purge_from: int | None = None
    ) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=purge_from)
        self.examples, self.result = examples, result or denoised

    def losses(self, iteration: int, losses: Sequence[float], learning_rate: float) -> None:
        """The L1 loss of each pass."""
        for number, loss in enumerate(losses, start=1):
            self.writer.add_scalar(f"L1/pass {number}", loss, iteration)
        self.writer.add_scalar("learning rate", learning_rate, iteration)

    def quality(self, iteration: int, network: Any) -> None:
        """Mean blind PSNR of the examples in one and in three passes, and pictures: noisy, denoised, clean."""
        for passes in (1, 3):
            scores = []
            for number, shot in enumerate(self.examples):
                result = self.result(network, shot, passes)[0].cpu()
                scores.append(psnr(result.numpy(), shot.clean))
                row = np.concatenate([shot.image, result.numpy(), shot.clean], axis=2)[:3]
                self.writer.add_image(f"example {number}, passes {passes}", row**GAMMA, iteration)
            self.writer.add_scalar(f"PSNR/passes {passes}", np.mean(scores), iteration)
            print(f"iteration {iteration}: {np.mean(scores):.2f} dB in {passes} passes", flush=True)
        self.writer.flush()


def denoised(network: Network, shot: Shot, passes: int) -> Tensor:
    """[1, 4, h, w], by the loop of the paper."""
    gain = SATURATION / float(shot.ratio * shot.electrons)
    image = torch.from_numpy(shot.image)[None].to(next(network.parameters()).device)
    return denoise(network, image, ratio=float(shot.ratio), gain=gain, saturation=SATURATION, passes=passes)


def sampled(network: Diffusion, shot: Shot, passes: int) -> Tensor:
    """[1, 4, h, w], by DDIM."""
    return sample(network, torch.from_numpy(shot.image)[None].to(next(network.parameters()).device), passes)
