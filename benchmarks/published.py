"""The procedure as the method was published: NumPy packing, an eager FP32 network, torch.poisson between the passes.

Written from the description of the method (exposure/schedule.py), whole frame at once, as its authors
evaluate; it shares with us the network's arithmetic and the four floats of a step, and no fast form of anything.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from exposure import Sensor, unroll
from exposure.networks import Network


def denoise(
    network: Network,
    mosaic: NDArray[np.uint16],
    sensor: Sensor,
    *,
    ratio: float,
    gain: float,
    passes: int,
    draw: bool = True,
) -> NDArray[np.uint16]:
    """The mosaic, [H, W] in DN, as exposed `ratio` times longer. draw: False takes each count's expectation."""
    steps = unroll(ratio, gain, sensor.saturation, passes, photon_unit=network.photon_unit)
    packed = planes(mosaic, sensor) * np.float32(ratio)
    original = padded(torch.from_numpy(packed.clip(0, 1))[None], network.multiple)
    x = original
    with torch.no_grad():
        for step in steps[:-1]:
            clean = network(x, step.photon_gain, original).clamp(0, 1)
            rate = step.photons * clean
            photons = torch.poisson(rate) if draw else rate
            x = step.keep * original + step.per_photon * photons
        clean = network(x, steps[-1].photon_gain, original)
    return mosaic_of(clean[0, :, : packed.shape[1], : packed.shape[2]].numpy(), sensor)


def planes(mosaic: NDArray[np.uint16], sensor: Sensor) -> NDArray[np.float32]:
    """[4, H/2, W/2] signal of a mosaic with even sides."""
    dn = mosaic.astype(np.float32)
    cut = [(dn[r::2, c::2] - sensor.black_at(r, c)) / (sensor.white - sensor.black_at(r, c)) for r, c in sensor.planes]
    return np.stack(cut).astype(np.float32)


def padded(image: Tensor, multiple: int) -> Tensor:
    """Reflected at the bottom and right to multiples of what the network halves."""
    bottom, right = (-side % multiple for side in image.shape[-2:])
    return F.pad(image, (0, right, 0, bottom), mode="reflect")


def mosaic_of(image: NDArray[np.float32], sensor: Sensor) -> NDArray[np.uint16]:
    """The inverse of `planes`, rounded to DN."""
    mosaic = np.empty((2 * image.shape[1], 2 * image.shape[2]), np.uint16)
    for plane, (row, column) in zip(image.clip(0, 1), sensor.planes, strict=True):
        black = sensor.black_at(row, column)
        mosaic[row::2, column::2] = np.round(plane * (sensor.white - black) + black)
    return mosaic
