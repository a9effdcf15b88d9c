"""NAFNet ("Simple Baselines for Image Restoration", Chen et al., ECCV 2022), as ExposureDiffusion uses it.

Its channel attention averages over the whole image: what it computes for a tile is not a cut-out of what it computes
for the frame.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import count

import torch
from torch import Tensor, nn

from .network import Network


class NAFNet(Network):
    """Levels of NAF blocks that a strided 2x2 convolution halves and a pixel shuffle doubles again, skips added.

    Parameters bear the published names. Without levels it is a row of blocks at full resolution.
    """

    first_layer = "intro.weight"

    def __init__(
        self,
        *,
        with_photon: bool = True,
        concat_origin: bool = False,
        adaptive: bool = True,
        width: int = 16,
        encoder_blocks: Sequence[int] = (2, 2, 4, 4),
        middle_blocks: int = 12,
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__(with_photon=with_photon, concat_origin=concat_origin, adaptive=adaptive)
        levels = len(encoder_blocks)
        self.multiple = 2**levels
        widths = [width * 2**level for level in range(levels + 1)]

        def blocks(channels: int, number: int) -> nn.Sequential:
            return nn.Sequential(*(Block(channels) for _ in range(number)))

        self.intro = nn.Conv2d(self.in_channels, width, 3, padding=1)
        self.encoders = nn.ModuleList(blocks(w, n) for w, n in zip(widths, encoder_blocks, strict=False))
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.middle_blks = blocks(widths[-1], middle_blocks)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * w, 4 * w, 1, bias=False), nn.PixelShuffle(2)) for w in reversed(widths[:-1])
        )
        self.decoders = nn.ModuleList(blocks(w, n) for w, n in zip(reversed(widths[:-1]), decoder_blocks, strict=True))
        self.ending = nn.Conv2d(width, self.out_channels, 3, padding=1)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "NAFNet":
        """Build the variant that a state dict belongs to; flags, width and block counts are read off it.

        Raises KeyError for a missing name and ValueError for channels that no variant has.
        """
        levels = next(i for i in count() if f"downs.{i}.weight" not in state)
        return cls(
            **cls.flags("intro", state["intro.weight"].shape[1], "ending", state["ending.weight"].shape[0]),
            width=state["intro.weight"].shape[0],
            encoder_blocks=[_blocks(state, f"encoders.{level}") for level in range(levels)],
            middle_blocks=_blocks(state, "middle_blks"),
            decoder_blocks=[_blocks(state, f"decoders.{level}") for level in range(levels)],
        )

    @property
    def body_end(self) -> str:
        """The last block; none where the last level has no blocks."""
        name = f"decoders.{len(self.decoders) - 1}" if len(self.decoders) else "middle_blks"
        blocks = list(self.get_submodule(name).children())
        return f"{name}.{len(blocks) - 1}" if blocks else ""

    @property
    def last(self) -> nn.Conv2d:
        """The final 3x3 convolution."""
        return self.ending

    def features(self, inputs: Tensor) -> Tensor:
        """[N, 4 | 8 | 12, h, w] to [N, width, h, w]."""
        x = self.intro(inputs)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        return x

    def blend(self, output: Tensor, image: Tensor) -> Tensor:
        """Without the adaptive residual layer, NAFNet predicts what is to be added to its input."""
        return super().blend(output, image) if self.adaptive else (output + image).clamp(0, 1)


class Block(nn.Module):
    """A NAF block (figure 3c of the paper): two gated residual branches, no activation function.

    y = x + beta * conv3(attention(gate(conv2(conv1(norm1(x)))))),  out = y + gamma * conv5(gate(conv4(norm2(y))))
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.sca = nn.Sequential(GlobalMean(), nn.Conv2d(channels, channels, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = _gate(self.conv2(self.conv1(self.norm1(x))))
        y = x + self.conv3(z * self.sca(z)) * self.beta
        return y + self.conv5(_gate(self.conv4(self.norm2(y)))) * self.gamma


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        return centred / (variance + 1e-6).sqrt() * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def largest_sum(self, x: Tensor, _: int) -> float:
        """The largest number on the way: a kernel may well sum in the type of its operands, and divide then."""
        return ((x - x.mean(1, keepdim=True)) ** 2).sum(1).max().item()


class GlobalMean(nn.Module):
    """Each channel's mean over the whole image, [N, c, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)

    def largest_sum(self, x: Tensor, pixels: int) -> float:
        """The largest sum on the way to a mean. pixels: of the frame's planes, which are more than this level's."""
        return x.abs().mean((2, 3)).max().item() * pixels


def _gate(x: Tensor) -> Tensor:
    """SimpleGate: one half of the channels times the other."""
    a, b = x.chunk(2, dim=1)
    return a * b


def _blocks(state: Mapping[str, Tensor], sequence: str) -> int:
    """How many blocks a sequence has: one more than the highest number in the names."""
    numbers = [re.match(rf"{re.escape(sequence)}\.(\d{{1,3}})\.", name) for name in state]
    return max((int(number[1]) + 1 for number in numbers if number), default=0)
