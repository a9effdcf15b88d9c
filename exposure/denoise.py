"""The method: denoise, expose a little longer, denoise again (ExposureDiffusion, Wang et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .kernels.library import has_cuda_library
from .kernels.ops import poisson
from .schedule import PUBLISHED_PHOTON_UNIT, Step, unroll
from .sensor import pad, shape_text

if TYPE_CHECKING:  # imported on call, so that the command line starts without torch
    from torch import Tensor

    from .networks import Network

Draw = Callable[[Any], Any]


def denoise(
    network: Network | Callable[..., Tensor],
    image: Tensor,
    *,
    ratio: float,
    gain: float,
    saturation: float,
    passes: int = 3,
    seed: int = 0,
    noise: str = "poisson",
) -> Tensor:
    """Denoise a packed RAW image that was exposed `ratio` times too short.

    network: clean = network(image, photon_gain, original), as `load_checkpoint` returns it; a plain function serves
        too, taken to need no padding and the published photon unit.
    image: [N, 4, h, w] from `pack`, brightened by ratio, in [0, 1]; any h and w.
    ratio: R, at least 1. gain: K in DN per electron. saturation: S, white - black in DN.
    passes: network evaluations. seed: of the photon noise, unsigned 64-bit.
    noise: of the photons. "poisson": as served, antithetic (Hammersley and Morton 1956): every second injection uses
        the mirrored random numbers of the one before it, so that noise which the network passed on is partly
        cancelled. Each is a Poisson draw of its own rate; two together are not, since noise of the first is in the
        second's rate. "independent": new numbers each time, as published. "mean": the expectation, for exact
        comparisons.
    Returns the clean image, [N, 4, h, w] in [0, 1]. Raises ValueError for anything other than described.
    """
    import torch

    if image.ndim != 4 or image.shape[1] != 4 or 0 in image.shape or not image.is_floating_point():
        raise ValueError(f"image is {image.dtype} {shape_text(tuple(image.shape))}; it must be floating Nx4xhxw")
    photon_unit = getattr(network, "photon_unit", PUBLISHED_PHOTON_UNIT)
    steps = unroll(ratio, gain, saturation, passes, photon_unit=photon_unit)
    drawn = _draws(noise, seed, passes)
    with torch.no_grad():
        original = pad(image.clip(0, 1), getattr(network, "multiple", 1))
        x = original
        for step, draw in zip(steps[:-1], drawn, strict=True):
            clean = network(x, step.photon_gain, original)
            x = expose(clean, original, step, draw)
        clean = network(x, steps[-1].photon_gain, original)
    return clean[..., : image.shape[-2], : image.shape[-1]]


def expose(clean: Any, original: Any, step: Step, draw: Draw) -> Any:
    """Add to the photons of the file those that the clean estimate promises for a longer exposure.

    clean, original: [..., 4, h, w] signal, NumPy or torch. Returns the next x, of the same kind and shape:
    x = keep * original + per_photon * draw(photons * clamp(clean, 0, 1)).
    """
    return step.keep * original + step.per_photon * draw(step.photons * clean.clip(0, 1))


def _draws(noise: str, seed: int, passes: int) -> list[Draw]:
    """One photon draw for each injection, torch tensor in and out."""
    if noise == "mean":
        return [lambda rate: rate] * (passes - 1)
    strides = {"poisson": 1, "independent": 2}  # from one index to the next: an odd one mirrors the even before it
    if noise not in strides:
        raise ValueError(f'noise is "{noise}"; it is "poisson", "independent" or "mean"')
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be an unsigned 64-bit integer")
    return [partial(photon_counts, seed=seed, index=strides[noise] * number) for number in range(passes - 1)]


def photon_counts(rate: Tensor, *, seed: int, index: int) -> Tensor:
    """Poisson counts of [..., 4, h, w] rates in electrons, by the server's own arithmetic: same seed, same electrons.

    index: of the injection; 1 mirrors the random numbers of 0. Where the kernels for the GPU were not built, the CPU's
    draw the same bits.
    """
    within_reach = rate.float() if has_cuda_library() else rate.float().cpu()
    return poisson(within_reach, seed=seed, index=index).to(rate)
