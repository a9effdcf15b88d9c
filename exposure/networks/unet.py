"""The U-Net of "Learning to See in the Dark" (Chen et al., CVPR 2018), as ExposureDiffusion uses it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .network import Network

WIDTHS = (32, 64, 128, 256, 512)


class UNet(Network):
    """Five levels of two 3x3 convolutions with skip connections; parameters bear the published names."""

    first_layer = "conv1_1.weight"
    multiple = 16  # four 2x2 poolings

    def __init__(
        self,
        *,
        with_photon: bool = True,
        concat_origin: bool = False,
        adaptive: bool = True,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__(with_photon=with_photon, concat_origin=concat_origin, adaptive=adaptive)
        w1, w2, w3, w4, w5 = widths

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        def up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)

        self.conv1_1, self.conv1_2 = conv(self.in_channels, w1), conv(w1, w1)
        self.conv2_1, self.conv2_2 = conv(w1, w2), conv(w2, w2)
        self.conv3_1, self.conv3_2 = conv(w2, w3), conv(w3, w3)
        self.conv4_1, self.conv4_2 = conv(w3, w4), conv(w4, w4)
        self.conv5_1, self.conv5_2 = conv(w4, w5), conv(w5, w5)
        self.upv6, self.conv6_1, self.conv6_2 = up(w5, w4), conv(2 * w4, w4), conv(w4, w4)
        self.upv7, self.conv7_1, self.conv7_2 = up(w4, w3), conv(2 * w3, w3), conv(w3, w3)
        self.upv8, self.conv8_1, self.conv8_2 = up(w3, w2), conv(2 * w2, w2), conv(w2, w2)
        self.upv9, self.conv9_1, self.conv9_2 = up(w2, w1), conv(2 * w1, w1), conv(w1, w1)
        self.conv10_1 = nn.Conv2d(w1, self.out_channels, 1)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "UNet":
        """Build the variant that a state dict belongs to; flags and widths are read off its shapes.

        Raises KeyError for a missing name and ValueError for channels that no variant has.
        """
        return cls(
            **cls.flags("conv1_1", state["conv1_1.weight"].shape[1], "conv10_1", state["conv10_1.weight"].shape[0]),
            widths=[state[f"conv{level}_1.weight"].shape[0] for level in range(1, 6)],
        )

    body_start = ("conv1_1", "conv1_2")
    body_end = "conv9_2"

    @property
    def last(self) -> nn.Conv2d:
        """The final 1x1 convolution."""
        return self.conv10_1

    def features(self, inputs: Tensor) -> Tensor:
        """[N, 4 | 8 | 12, h, w] to [N, widths[0], h, w]."""
        c1 = self._level(1, inputs)
        c2 = self._level(2, F.max_pool2d(c1, 2))
        c3 = self._level(3, F.max_pool2d(c2, 2))
        c4 = self._level(4, F.max_pool2d(c3, 2))
        c5 = self._level(5, F.max_pool2d(c4, 2))
        c6 = self._level(6, torch.cat([self.upv6(c5), c4], dim=1))
        c7 = self._level(7, torch.cat([self.upv7(c6), c3], dim=1))
        c8 = self._level(8, torch.cat([self.upv8(c7), c2], dim=1))
        return self._level(9, torch.cat([self.upv9(c8), c1], dim=1))

    def _level(self, level: int, x: Tensor) -> Tensor:
        first, second = self.get_submodule(f"conv{level}_1"), self.get_submodule(f"conv{level}_2")
        return F.leaky_relu(second(F.leaky_relu(first(x), 0.2)), 0.2)
