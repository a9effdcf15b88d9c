"""What a training run shows while it goes: losses, quality and pictures, to TensorBoard."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from exposure.denoise import denoise
from exposure.networks import Network

from .shots import SATURATION, Shot

GAMMA = 1 / 2.2  # for looking at linear signal


class Report:
    """Writes to `folder`; `examples` are shots that training never sees."""

    def __init__(self, folder: Path, examples: Sequence[Shot]) -> None:
        self.writer, self.examples = SummaryWriter(str(folder)), examples

    def losses(self, iteration: int, losses: Sequence[float], learning_rate: float) -> None:
        """The L1 loss of each pass."""
        for number, loss in enumerate(losses, start=1):
            self.writer.add_scalar(f"L1/pass {number}", loss, iteration)
        self.writer.add_scalar("learning rate", learning_rate, iteration)

    def quality(self, iteration: int, network: Network) -> None:
        """Mean blind PSNR of the examples in one and in three passes, and pictures: noisy, denoised, clean."""
        device = next(network.parameters()).device
        for passes in (1, 3):
            psnr = []
            for number, shot in enumerate(self.examples):
                gain = SATURATION / float(shot.ratio * shot.full_well)
                image = torch.from_numpy(shot.image)[None].to(device)
                result = denoise(
                    network, image, ratio=float(shot.ratio), gain=gain, saturation=SATURATION, passes=passes
                )[0].cpu()
                psnr.append(-10 * np.log10(((result.numpy() - shot.clean) ** 2).mean()))
                row = np.concatenate([shot.image, result.numpy(), shot.clean], axis=2)[:3]
                self.writer.add_image(f"example {number}, passes {passes}", row**GAMMA, iteration)
            self.writer.add_scalar(f"PSNR/passes {passes}", np.mean(psnr), iteration)
            print(f"iteration {iteration}: {np.mean(psnr):.2f} dB in {passes} passes", flush=True)
        self.writer.flush()
