"""What every network has in common: its inputs, its adaptive residual layer, its padding."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

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

    A subclass is one architecture, with the parameter names of its published checkpoints. It gives `first_layer`,
    `from_state`, `features` (the body, which may run in low precision) with the name of its end, and `last` (the final
    convolution, which stays in FP32 together with the blend); it is then listed in checkpoint.py.
    """

    first_layer: ClassVar[str]
    """The parameter by which a state dict of this architecture is known."""

    multiple: int
    """Sides must be multiples of this: the product of all down-samplings."""
    body_start: ClassVar[tuple[str, ...]] = ()
    """Names of the modules in a row, from the inputs, whose roundings in FP16 are seen most after those of the end."""
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

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Network":
        """Build the variant that a state dict belongs to; flags and sizes are read off its names and shapes.

        Raises KeyError for a missing name and ValueError for channels that no variant has.
        """
        raise NotImplementedError

    @staticmethod
    def flags(first: str, inputs: int, last: str, outputs: int) -> dict[str, bool]:
        """What the channels of the first and the last convolution say of a variant. Raises ValueError."""
        if inputs not in (PLANES, 2 * PLANES, 3 * PLANES):
            raise ValueError(f"{first} has {inputs} inputs; they must be 4, 8 (photon planes) or 12 (and the original)")
        if outputs not in (PLANES, 2 * PLANES + 1):
            raise ValueError(f"{last} has {outputs} outputs; they must be 4, or 9 (adaptive residual)")
        return {
            "with_photon": inputs >= 2 * PLANES,
            "concat_origin": inputs == 3 * PLANES,
            "adaptive": outputs > PLANES,
        }

    @property
    def body_end(self) -> str:
        """Name of the module whose output, but for an activation, is `features`: where FP16's rounding is seen most."""
        raise NotImplementedError

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
