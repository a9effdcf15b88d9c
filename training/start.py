"""Where training starts: at random weights, or at those of a smaller network that was trained already."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exposure.networks import UNet
from exposure.networks.network import PLANES
from exposure.networks.unet import WIDTHS


def fresh(widths: Sequence[int] = WIDTHS, seed: int = 0, **variant: bool) -> UNet:
    """A U-Net whose random weights keep the size of a signal from convolution to convolution (He et al., ICCV 2015).

    PyTorch's own choice, which the transposed ones and the last keep, divides it by 2.4 in each of 18 layers; such a
    network spends its first thousands of iterations on getting louder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(widths=widths, **variant)
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer is not network.last and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity="leaky_relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return network


def widened(network: UNet, factor: int, seed: int = 0) -> UNet:
    """The same function with `factor` times the channels on every level (Net2Net, Chen et al., ICLR 2016).

    A narrow network learns its first decibels in a tenth of the time. Every channel becomes several equal ones; the
    weights that read it are split among its copies at random, so that training tells the copies apart.
    Raises ValueError for a factor below 1.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}; a network grows by a whole number, at least 1")
    generator = torch.Generator().manual_seed(seed)
    narrow = network.state_dict()
    wide = UNet(
        with_photon=network.with_photon,
        concat_origin=network.concat_origin,
        adaptive=network.adaptive,
        widths=[factor * len(narrow[f"conv{level}_1.bias"]) for level in range(1, 6)],
    )
    state = {}
    for name, value in narrow.items():
        layer, kind = name.split(".")
        copies_out = 1 if layer == "conv10_1" else factor
        if kind == "bias":
            state[name] = value.repeat_interleave(copies_out)
            continue
        inputs, outputs = (0, 1) if layer.startswith("upv") else (1, 0)  # transposed convolutions are stored so
        value = value.repeat_interleave(copies_out, outputs)
        state[name] = value if layer == "conv1_1" else _split(value, factor, inputs, generator)
    wide.load_state_dict(state)
    wide.info, wide.photon_unit = network.info, network.photon_unit
    return wide


def with_origin(network: UNet) -> UNet:
    """The same function, of a network that also sees the packed input of the first pass (`concat_origin`).

    After an injection that input is a small part of x: 1/200 of its photons at two thirds of x300. What the first
    estimate lost is then lost to the later ones, unless they see the file itself. Its weights start at zero. Raises
    ValueError for a network without photon planes.
    """
    if network.concat_origin:
        return network
    if not network.with_photon:
        raise ValueError(
            "a network without photon planes cannot be given the packed input: 8 inputs mean photon planes"
        )
    seeing = UNet(
        with_photon=network.with_photon,
        concat_origin=True,
        adaptive=network.adaptive,
        widths=[len(network.get_parameter(f"conv{level}_1.bias")) for level in range(1, 6)],
    )
    state = network.state_dict()
    first = state[UNet.first_layer]
    state[UNet.first_layer] = torch.cat([first, torch.zeros_like(first[:, :PLANES])], dim=1)
    seeing.load_state_dict(state)
    seeing.info, seeing.photon_unit = network.info, network.photon_unit
    return seeing


def _split(weight: Tensor, factor: int, axis: int, generator: torch.Generator) -> Tensor:
    """Share each input's weights among its copies, in random parts that add up to the whole."""
    parts = torch.rand((*weight.shape, factor), generator=generator) + 0.5
    shared = weight[..., None] * parts / parts.sum(-1, keepdim=True)
    return shared.movedim(-1, axis + 1).flatten(axis, axis + 1)
