"""The accuracy gate: an engine is installed only if it computes, through the whole loop, what FP32 torch computes."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exposure.denoise import denoise
from exposure.networks import Network
from exposure.quality import agreement_db, psnr

from .precision import GraphError, Run, difference_dn
from .scene import Scene

Array = NDArray[np.float32]
MOST_LOSS_DB = 0.02


@dataclass(frozen=True)
class Allowance:
    """least_db: agreement with FP32 torch. most_dn: the 99.9th percentile of the difference, in DN of 14 bits."""

    least_db: float
    most_dn: float


ALLOWANCES = {"f32": Allowance(100, 0.5), "f16": Allowance(80, 4), "bf16": Allowance(70, 24)}


@dataclass(frozen=True)
class Figures:
    """What was measured on one scene after one number of passes; loss_db where the truth is known."""

    scene: str
    size: str
    passes: int
    agreement_db: float
    difference_dn: float
    loss_db: float | None

    def __str__(self) -> str:
        loss = "" if self.loss_db is None else f", loses {self.loss_db:.4f} dB"
        return (
            f"{self.scene} {self.size}, {self.passes} pass{'es' if self.passes > 1 else ''}: "
            f"{self.agreement_db:.1f} dB, {self.difference_dn:.2f} DN{loss}"
        )


def pass_gate(
    network: Network, run: Run, precision: str, scenes: Iterable[Scene], what: str, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Hold an engine against FP32 torch on every scene. Returns the figures as plain records for the manifest.

    run: the engine. what: its name in a refusal. Photon draws are replaced by their expectation: an electron more or
    less, tipped over by the last bit, is the noise's and not the engine's.
    Raises GraphError for NaN, Inf, or figures that the precision's allowance does not cover.
    """
    allowed, records = ALLOWANCES[precision], []
    reference = _torch_runner(network)
    for scene in scenes:
        expected, computed = (_cleans(network, engine, scene) for engine in (reference, run))
        for passes in sorted({1, scene.passes}):
            figures = _compare(scene, passes, expected[passes - 1], computed[passes - 1], what)
            say(f"    {figures}")
            _refuse(figures, allowed, what)
            records.append(asdict(figures))
    return records


def _cleans(network: Network, run: Run, scene: Scene) -> list[Array]:
    """The clean estimate of every pass, cropped to the scene; that of the first is the result of a single pass."""
    cleans: list[Array] = []

    def engine(image: Tensor, photon_gain: float, original: Tensor) -> Tensor:
        clean = np.array(run(image.numpy(), np.array([photon_gain], np.float32), original.numpy()))  # from its memory
        if clean.shape != original.shape:
            raise GraphError(f"the engine answers {clean.shape} to an image of {tuple(original.shape)}")
        cleans.append(clean[..., : scene.image.shape[2], : scene.image.shape[3]])
        return torch.from_numpy(clean)

    engine.multiple, engine.photon_unit = network.multiple, network.photon_unit  # type: ignore[attr-defined]
    physics: dict[str, Any] = {"ratio": scene.ratio, "gain": scene.gain, "saturation": scene.saturation}
    denoise(engine, torch.from_numpy(scene.image), **physics, passes=scene.passes, noise="mean")
    return cleans


def _torch_runner(network: Network) -> Run:
    by_pixel = _by_pixel(network)  # three times as fast on a CPU

    def run(image: Array, photon_gain: Array, original: Array) -> Array:
        planes = [torch.from_numpy(array).to(memory_format=torch.channels_last) for array in (image, original)]
        with torch.no_grad():
            return by_pixel(planes[0], torch.from_numpy(photon_gain), planes[1]).numpy()

    return run


def _by_pixel(network: Network) -> Network:
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _compare(scene: Scene, passes: int, expected: Array, computed: Array, what: str) -> Figures:
    if not np.isfinite(expected).all():
        raise GraphError(f"the network itself gives NaN or Inf on the {scene.name} scene")
    if not np.isfinite(computed).all():
        raise GraphError(f"{what} gives NaN or Inf on the {scene.name} scene after pass {passes}")
    loss = None if scene.clean is None else psnr(expected, scene.clean) - psnr(computed, scene.clean)
    return Figures(
        scene=scene.name,
        size=f"{scene.image.shape[2]}x{scene.image.shape[3]}",
        passes=passes,
        agreement_db=round(agreement_db(computed, expected), 2),
        difference_dn=round(difference_dn(computed - expected), 3),
        loss_db=None if loss is None else round(loss, 5),
    )


def _refuse(figures: Figures, allowed: Allowance, what: str) -> None:
    where = f"{figures.scene} scene, {figures.size}, after pass {figures.passes}"
    if figures.agreement_db < allowed.least_db:
        raise GraphError(
            f"{what} agrees with FP32 torch to {figures.agreement_db:.1f} dB only on the {where}; "
            f"at least {allowed.least_db:.0f} dB is needed"
        )
    if figures.difference_dn > allowed.most_dn:
        raise GraphError(
            f"{what} differs from FP32 torch by {figures.difference_dn:.1f} DN (99.9th percentile, 14 bit) on the "
            f"{where}; at most {allowed.most_dn:g} DN are allowed"
        )
    if figures.loss_db is not None and figures.loss_db > MOST_LOSS_DB:
        raise GraphError(
            f"{what} loses {figures.loss_db:.3f} dB against FP32 torch on the {where}; "
            f"at most {MOST_LOSS_DB} dB are allowed"
        )
