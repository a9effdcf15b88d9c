"""The baseline that the paper compares with: conditional diffusion, which starts from pure noise instead of the file.

Its network sees the diffused image, how much noise is in it, and the noisy file (Ho et al., "Denoising Diffusion
Probabilistic Models", NeurIPS 2020). It predicts the clean image, not the noise: after as brief a training (4000
iterations) the noise gave 3 to 10 dB at x250, the image gives 29.2. It is sampled in any number of steps by the
deterministic rule of Song et al., "Denoising Diffusion Implicit Models", ICLR 2021. Signal is scaled to [-1, 1].
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exposure.networks import CheckpointError
from exposure.sensor import pad

from .start import fresh

LEVELS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02


class Diffusion(nn.Module):
    """The U-Net with 12 inputs and 4 outputs. Its checkpoints bear names that no engine is built from."""

    def __init__(self, widths: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        self.unet = fresh(widths, seed, concat_origin=True, adaptive=False)

    @property
    def last(self) -> nn.Conv2d:
        """The final convolution."""
        return self.unet.last

    @property
    def multiple(self) -> int:
        """What sides must be multiples of."""
        return self.unet.multiple

    def forward(self, x: Tensor, level: Tensor, noisy: Tensor) -> Tensor:
        """The clean image, [N, 4, h, w] in about [-1, 1].

        x: diffused image; level: [N, 1, 1, 1], standard deviation of the noise in it; noisy: the file, in [0, 1].
        """
        return self.last(self.unet.features(torch.cat([x, level.expand_as(x), 2 * noisy - 1], dim=1))).float()


def signal_kept() -> Tensor:
    """The share of the signal's variance that is left on each level (alpha bar), [LEVELS], falling."""
    return torch.cumprod(1 - torch.linspace(FIRST_BETA, LAST_BETA, LEVELS), dim=0)


def diffusion_losses(
    network: Diffusion,
    image: Tensor,
    clean: Tensor,
    *_: Tensor,
    generator: torch.Generator | None = None,
    **__: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """The L1 distance of the clean image on a random level, [N], for `loop.Trainer`; exposures mean nothing here."""
    level = torch.randint(LEVELS, (len(image),), generator=generator, device=image.device)
    kept = signal_kept().to(image.device)[level].reshape(-1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator, device=image.device)
    signal = 2 * clean - 1
    x = kept.sqrt() * signal + (1 - kept).sqrt() * noise
    return [(network(x, (1 - kept).sqrt(), image) - signal).abs().mean(dim=(1, 2, 3))], []


@torch.no_grad()
def sample(network: Diffusion, noisy: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Clean image [N, 4, h, w] in [0, 1] from the packed, brightened file, by DDIM with eta 0.

    steps: network evaluations, 1 to LEVELS. seed: of the noise it starts from.
    """
    if not 1 <= steps <= LEVELS:
        raise ValueError(f"steps is {steps}; DDIM takes 1 to {LEVELS}")
    generator = torch.Generator(noisy.device).manual_seed(seed)
    condition = pad(noisy, network.multiple)
    visited = torch.linspace(LEVELS - 1, 0, steps + 1).round().long()[:-1]
    levels = [*signal_kept()[visited].to(noisy.device), torch.ones((), device=noisy.device)]
    x = torch.randn(condition.shape, generator=generator, device=noisy.device)
    for now, after in pairwise(levels):
        clean = network(x, (1 - now).sqrt().expand(len(x), 1, 1, 1), condition).clamp(-1, 1)
        noise = (x - now.sqrt() * clean) / (1 - now).sqrt()
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    return ((x + 1) / 2)[..., : noisy.shape[-2], : noisy.shape[-1]]


def load_diffusion(path: str | os.PathLike[str]) -> Diffusion:
    """Read what `exposure train --diffusion` wrote. Raises CheckpointError, one sentence, for anything else."""
    path = Path(path)
    try:
        state = {name: value.float() for name, value in load_file(path).items()}
        network = Diffusion([len(state[f"unet.conv{level}_1.bias"]) for level in range(1, 6)])
        network.load_state_dict(state)
    except Exception as error:
        raise CheckpointError(f"{path}: not a diffusion network of `exposure train --diffusion`") from error
    return network.eval()
