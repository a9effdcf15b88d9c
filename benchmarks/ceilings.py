"""The two ceilings of the roofline, measured where everything else is: arithmetic and memory bandwidth.

And what one pass of the network asks of them.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from exposure.kernels.machine import has_bf16
from exposure.networks import Network

MATRIX, CARD_MATRIX = 2048, 8192  # sides; such matrices are moved once for 340 operations a byte or more
ARRAY_BYTES, CARD_ARRAY_BYTES = 2**28, 2**30  # beyond the cache of any processor or card that this runs on
CARD_LAUNCHES = 10  # timed together: one takes a millisecond, of which the host's part would be counted
FP32 = 4  # bytes


@dataclass(frozen=True)
class Ceilings:
    """flops: operations a second, a multiply-add is two; bandwidth: bytes a second, read and written. on_card: of a
    card, in FP16; else of the processor, in FP32. bf16_flops: in BF16, where the processor has it.
    """

    flops: float
    bandwidth: float
    on_card: bool = False
    bf16_flops: float = 0.0

    def seconds(self, cost: "Cost") -> float:
        """The least time that this machine needs: arithmetic or memory, whichever is longer."""
        return max(cost.flops / self.flops, cost.traffic / self.bandwidth)


@dataclass(frozen=True)
class Cost:
    """Of one pass. flops: a multiply-add is two. traffic: bytes, each operator's planes and weights moved once."""

    flops: float
    traffic: float


class Probe:
    """The best rates that were seen. `run` is one look, made in every round between the peers.

    device: "cpu", or "cuda", whose arithmetic is looked at in FP16, as engines compute there.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._on_card = device != "cpu"
        self._side, kind = (CARD_MATRIX, torch.float16) if self._on_card else (MATRIX, torch.float32)
        self._bytes = CARD_ARRAY_BYTES if self._on_card else ARRAY_BYTES
        self._a, self._b = torch.rand(2, self._side, self._side, device=device, dtype=kind).unbind()
        self._x, self._y, self._z = (torch.rand(self._bytes // FP32, device=device) for _ in range(3))
        self._narrow = [m.bfloat16() for m in (self._a, self._b)] if not self._on_card and has_bf16() else []
        self.flops: list[float] = []
        self.bandwidth: list[float] = []
        self.bf16_flops: list[float] = []
        self.run()  # libraries start, memory is touched for the first time
        for looks in (self.flops, self.bandwidth, self.bf16_flops):
            looks.clear()

    def run(self) -> None:
        """A product of matrices, and z = x + 2 y (McCalpin's triad), over all cores, or the whole card."""
        self.flops.append(self._rate_of_product(self._a, self._b))
        if self._narrow:
            self.bf16_flops.append(self._rate_of_product(*self._narrow))
        triad = self._seconds(lambda: torch.add(self._x, self._y, alpha=2.0, out=self._z))
        self.bandwidth.append(3 * self._bytes / triad)

    @property
    def best(self) -> Ceilings:
        """The ceilings: what nothing that was measured here went beyond."""
        return Ceilings(max(self.flops), max(self.bandwidth), self._on_card, max(self.bf16_flops, default=0.0))

    def record(self) -> dict[str, Any]:
        """For the JSON, in GFLOP/s and GB/s, with how far the worst look lay below the best."""
        return {
            "gflops": round(self.best.flops / 1e9, 1),
            "gbytes_per_s": round(self.best.bandwidth / 1e9, 2),
            "worst_over_best": {
                "gflops": round(min(self.flops) / max(self.flops), 3),
                "gbytes_per_s": round(min(self.bandwidth) / max(self.bandwidth), 3),
            },
            "looks": len(self.flops),
        } | ({"bf16_gflops": round(self.best.bf16_flops / 1e9, 1)} if self.bf16_flops else {})

    def _rate_of_product(self, a: Tensor, b: Tensor) -> float:
        return 2 * self._side**3 / self._seconds(lambda: torch.mm(a, b))

    def _seconds(self, work: Callable[[], Any]) -> float:
        if not self._on_card:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(CARD_LAUNCHES):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / CARD_LAUNCHES


def cost_of_pass(network: Network, height: int, width: int, number_bytes: int = FP32) -> Cost:
    """Of one [1, 4, height, width] image. Counted on tensors without data, so any size costs nothing.

    number_bytes: of one number of a plane. traffic takes every convolution's input, output and weights as moved once,
    activations fused into them: what an engine moves that keeps no planes in cache between layers.
    """
    traffic = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal traffic
        weights = sum(parameter.numel() for parameter in module.parameters())
        traffic += number_bytes * (sum(tensor.numel() for tensor in inputs) + output.numel() + weights)

    unreal = copy.deepcopy(network).to("meta")
    convolutions = [m for m in unreal.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    handles = [module.register_forward_hook(count) for module in convolutions]
    image = torch.empty(1, 4, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unreal(image, torch.empty(1, device="meta"), image)
    for handle in handles:
        handle.remove()
    return Cost(flops=counter.get_total_flops(), traffic=traffic)
