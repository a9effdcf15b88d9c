"""The network by torch on a card, for peers.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exposure.networks import Network


class OnCard:
    """A module on a card, as a function of arrays, and over planes that stay on the card."""

    def __init__(
        self, module: Any, *, memory: torch.memory_format = torch.contiguous_format, autocast: Any = None
    ) -> None:
        # TF32, the default of convolutions, would not be FP32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._module, self._memory, self._autocast = module.to(device="cuda", memory_format=memory), memory, autocast

    def __call__(
        self, image: NDArray[np.float32], gain: NDArray[np.float32], original: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        planes, first = self._uploaded(image), self._uploaded(original)
        return np.asarray(self._forward(planes, torch.from_numpy(gain).cuda(), first).float().cpu())

    def over(self, image: NDArray[np.float32], gain: NDArray[np.float32]) -> Callable[[], None]:
        """A pass over these planes, for timing: it is done when it returns, and nothing is copied."""
        planes, on_card = self._uploaded(image), torch.from_numpy(gain).cuda()

        def one_pass() -> None:
            self._forward(planes, on_card, planes)
            torch.cuda.synchronize()

        return one_pass

    def peak_bytes(self) -> int:
        """The most memory of the card that tensors have held so far."""
        return torch.cuda.max_memory_allocated()

    def _uploaded(self, image: NDArray[np.float32]) -> Any:
        return torch.from_numpy(image).cuda().contiguous(memory_format=self._memory)

    def _forward(self, *tensors: Any) -> Any:
        with torch.inference_mode(), torch.autocast("cuda", self._autocast, enabled=self._autocast is not None):
            return self._module(*tensors)


def cuda_eager(network: Network, _: Path) -> OnCard:
    return OnCard(network)


def cuda_half(network: Network, _: Path) -> OnCard:
    return OnCard(network, memory=torch.channels_last, autocast=torch.float16)


def cuda_compiled(network: Network, _: Path) -> OnCard:
    module = torch.compile(network, dynamic=False, mode="max-autotune")
    return OnCard(module, memory=torch.channels_last, autocast=torch.float16)


def no_card() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no NVIDIA card here"
