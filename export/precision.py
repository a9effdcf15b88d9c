"""The network as engines see it; what FP16 costs it, and which layers must stay out of FP16, found by measurement.

A processor computes FP16 slowly and a card may not be at hand, so the arithmetic of a card is imitated: every operation
in FP32 on FP16 operands, its result rounded to FP16, as tensor cores do that accumulate in FP32.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from exposure.networks import Network
from exposure.quality import agreement_db

from .scene import Crop

Run = Callable[..., NDArray[np.float32]]
"""A graph or an engine: clean = run(image, photon_gain[, original]), arrays in and out."""

LARGEST_HALF = 65504.0
WHITE_DN = 16383  # differences are told in DN of a 14-bit file
HEADROOM = 4.0  # scenes may be this much harder on a layer than those that were measured
WANTED_DB, WANTED_DN = 83.0, 1.5  # the gate's 80 dB and 4 DN, and some for what was not measured
WORTH_DB = 1.0  # an island that gains less is not worth its casts


class GraphError(RuntimeError):
    """The exported graph or engine does not compute what the network computes."""


class Traced(nn.Module):
    """The network as engines see it. Parameter names, in capitals, are the tensor names of graph and server.

    half: run the body in FP16 between two casts; inputs, photon planes, last convolution, blend and output stay FP32
    (strongly typed: TensorRT 11 and TensorRT for RTX take precision from the graph alone). islands: modules of the body
    that stay FP32, each between two casts of its own; the network's `body_start`, where all of it is named, in one.
    """

    def __init__(self, network: Network, *, half: bool = False, islands: Sequence[str] = ()) -> None:
        super().__init__()
        self.half_body, self.half_inputs = half, half and not _starts_wide(network, islands)
        self.network = copy.deepcopy(network).eval()
        if half:
            self.network.half()
            self.network.last.float()
            for names in _regions(network, islands):
                region = [self.network.get_submodule(name) for name in names]
                _keep_wide(region, to_the_end=names[-1] == network.body_end)

    def forward(self, image: Tensor, photon_gain: Tensor, origin_image: Tensor | None = None) -> Tensor:
        net = self.network
        inputs = net.inputs(image, photon_gain, origin_image)
        features = net.features(inputs.half() if self.half_inputs else inputs)
        return net.blend(net.last(features.float() if self.half_body else features), image)


def _starts_wide(network: Network, islands: Sequence[str]) -> bool:
    return bool(network.body_start) and set(network.body_start) <= set(islands)


def _regions(network: Network, islands: Sequence[str]) -> list[Sequence[str]]:
    """Islands that follow upon one another without a rounding in between."""
    start = network.body_start if _starts_wide(network, islands) else ()
    return [*([start] if start else []), *([name] for name in islands if name not in start)]


def _keep_wide(region: Sequence[nn.Module], *, to_the_end: bool) -> None:
    """Cast what enters a region to FP32 and what leaves it back, unless nothing but the FP32 tail follows."""
    for module in region:
        module.float()
    region[0].register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))
    if not to_the_end:
        region[-1].register_forward_hook(lambda _, _inputs, output: output.half())


class HalfArithmetic(TorchDispatchMode):
    """Round the result of every operation to FP16, except inside islands."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.wide or func.is_view or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        return result.half().float()

    def keep_wide(self, region: Sequence[nn.Module], *, to_the_end: bool) -> None:
        """Compute a region in FP32; what leaves it is rounded, unless nothing but the FP32 tail follows."""

        def enter(*_: Any) -> None:
            self.wide += 1

        def leave(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            self.wide -= 1
            return output.half().float()

        region[0].register_forward_pre_hook(enter)
        if not to_the_end:
            region[-1].register_forward_hook(leave)


def half_runner(network: Network, islands: Sequence[str]) -> Run:
    """The network as the FP16 graph computes it on a card: FP16 body, FP32 islands, edges and tail."""
    net, arithmetic = copy.deepcopy(network).eval(), HalfArithmetic()
    wide = [net.last, *(net.get_submodule(name) for name in islands)]
    kept = {id(parameter) for module in wide for parameter in module.parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            if id(parameter) not in kept:
                parameter.copy_(parameter.half())
    for names in _regions(net, islands):
        arithmetic.keep_wide([net.get_submodule(name) for name in names], to_the_end=names[-1] == net.body_end)
    half_inputs = not _starts_wide(net, islands)

    def run(*arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        image, photon_gain, *original = (torch.from_numpy(array) for array in arrays)
        arithmetic.wide = 0
        with torch.no_grad():
            inputs = net.inputs(image, photon_gain, original[0] if original else None)
            with arithmetic:
                features = net.features(inputs.half().float() if half_inputs else inputs)
            return net.blend(net.last(features), image).numpy()

    return run


def choose_islands(network: Network, crops: Iterable[Crop], frame_pixels: int) -> list[str]:
    """Names of the modules that must stay in FP32, by measurement on crops of low light.

    frame_pixels: of a plane of the largest frame. First those whose numbers could leave FP16's range; then, while
    agreement with FP32 is short of what is wanted, the end of the body and one kind of layer after the other, if it
    gains.
    """
    images = [(torch.from_numpy(crop.image), torch.tensor([crop.photon_gain], dtype=torch.float32)) for crop in crops]
    layers = {name: type(module) for name, module in network.named_modules() if _is_layer(network, module)}
    extents = _extents(network, list(layers), images, frame_pixels)
    islands = [name for name, extent in extents.items() if extent * HEADROOM > LARGEST_HALF]
    reached, apart = _agreement(network, islands, images)
    # a convolution alone gains nothing: matrix units sum in FP32 as it is
    kinds = [kind for kind in dict.fromkeys(layers.values()) if not issubclass(kind, nn.modules.conv._ConvNd)]
    steps = [[network.body_end]] if network.body_end else []
    steps += [[name for name, its in layers.items() if its is kind] for kind in kinds]
    for step in steps:
        if reached >= WANTED_DB and apart <= WANTED_DN:
            break
        candidates = _outermost([*islands, *step])
        gained, left = _agreement(network, candidates, images)
        if candidates != islands and not gained < reached + WORTH_DB:
            islands, reached, apart = candidates, gained, left
    return islands


def difference_dn(difference: NDArray[np.float32]) -> float:
    """99.9th percentile of the magnitude of a difference of signals, in DN of 14 bits."""
    return float(np.percentile(np.abs(difference), 99.9)) * WHITE_DN


def _outermost(names: list[str]) -> list[str]:
    """Without those that lie inside another of them."""
    return [n for n in dict.fromkeys(names) if not any(n.startswith(f"{other}.") for other in names)]


def _is_layer(network: Network, module: nn.Module) -> bool:
    """What could become an island: a layer with arithmetic of its own. The last convolution stays FP32 anyhow."""
    return module is not network.last and not list(module.children()) and not isinstance(module, nn.PixelShuffle)


def _extents(
    network: Network, names: list[str], images: list[tuple[Tensor, Tensor]], frame_pixels: int
) -> dict[str, float]:
    """The largest number that each layer meets, in FP32: what leaves it, and what it sums (`largest_sum`)."""
    extents = dict.fromkeys(names, 0.0)

    def note(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        met = max(output.abs().max().item(), getattr(module, "largest_sum", lambda *_: 0.0)(inputs[0], frame_pixels))
        extents[name] = max(extents[name], met if np.isfinite(met) else float("inf"))

    watched = copy.deepcopy(network)  # its hooks go with it
    for name in names:
        watched.get_submodule(name).register_forward_hook(partial(note, name))
    with torch.no_grad():
        for image, photon_gain in images:
            watched(image, photon_gain, image)
    return extents


def _agreement(network: Network, islands: Sequence[str], images: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """How far the FP16 arithmetic is from FP32, the worst of the images: PSNR in dB, -inf where it is not finite, and
    the 99.9th percentile of the difference in DN of 14 bits.
    """
    run, worst, apart = half_runner(network, islands), float("inf"), 0.0
    for image, photon_gain in images:
        with torch.no_grad():
            expected = network(image, photon_gain, image).numpy()
        computed = run(image.numpy(), photon_gain.numpy(), image.numpy())
        worst = min(worst, agreement_db(computed, expected) if np.isfinite(computed).all() else -np.inf)
        apart = max(apart, difference_dn(computed - expected))
    return worst, apart
