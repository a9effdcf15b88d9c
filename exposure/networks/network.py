"""What every network has in common: its inputs, its adaptive residual layer, its padding."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..schedule import PUBLISHED_PHOTON_UNIT

if TYPE_CHECKING:
    from .checkpoint import CheckpointInfo

PLANES = 4


class Network(nn.Module):
    """A packed-Bayer denoiser: clean = network(image, photon_gain, original).

    image: [N, 4, h, w] in [0, 1], sides multiples of `multiple`.
    photon_gain: scales the image to photon planes; a number or a tensor of one element per image.
    original: [N, 4, h, w], the packed input of the first pass (`concat_origin` networks).
    Returns [N, 4, h, w] in [0, 1].

    A subclass gives `features` (the body, which may run in low precision) and `last` (the final convolution, which
    stays in FP32 together with the blend).
    """

    multiple: int
    """Sides must be multiples of this: the product of all down-samplings."""
    photon_unit: float = PUBLISHED_PHOTON_UNIT
    """U in DN, a property of the checkpoint."""
    info: "CheckpointInfo"

    def __init__(self, *, with_photon: bool, concat_origin: bool, adaptive: bool) -> None:
        super().__init__()
        self.with_photon = with_photon
        self.concat_origin = concat_origin
        self.adaptive = adaptive

    @property
    def in_channels(self) -> int:
        """4, 8 or 12."""
        return PLANES * (1 + self.with_photon + self.concat_origin)

    @property
    def out_channels(self) -> int:
        """9 with the adaptive residual layer (mask, direct estimate, residual), else 4."""
        return 2 * PLANES + 1 if self.adaptive else PLANES

    def forward(
        self, image: Tensor, photon_gain: Tensor | float | None = None, original: Tensor | None = None
    ) -> Tensor:
        return self.blend(self.last(self.features(self.inputs(image, photon_gain, original))), image)

    def inputs(self, image: Tensor, photon_gain: Tensor | float | None, original: Tensor | None) -> Tensor:
        """Concatenate what the network was trained to see, [N, 4 | 8 | 12, h, w]."""
        planes = [image]
        if self.with_photon:
            if photon_gain is None:
                raise ValueError("photon_gain is missing; this network was trained with photon planes")
            per_image = photon_gain.reshape(-1, 1, 1, 1) if isinstance(photon_gain, Tensor) else photon_gain
            planes.append(image * per_image)
        if self.concat_origin:
            if original is None:
                raise ValueError("original is missing; this network was trained with concat_origin")
            planes.append(original)
        return torch.cat(planes, dim=1)

    @property
    def last(self) -> nn.Conv2d:
        """The final convolution."""
        raise NotImplementedError

    def features(self, inputs: Tensor) -> Tensor:
        """The body of the network, up to its last convolution."""
        raise NotImplementedError

    def blend(self, output: Tensor, image: Tensor) -> Tensor:
        """The adaptive residual layer (section 3.3): m * clamp(a) + (1 - m) * clamp(x + b); without it clamp(a)."""
        if not self.adaptive:
            return output.clamp(0, 1)
        mask, direct, corrected = self.branches(output, image)
        return mask * direct.clamp(0, 1) + (1 - mask) * corrected.clamp(0, 1)

    def branches(self, output: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the adaptive residual layer blends: the mask m in [0, 1], the direct estimate a, the corrected x + b."""
        mask, direct, residual = output.split([1, PLANES, PLANES], dim=1)
        return torch.sigmoid(mask), direct, image + residual
