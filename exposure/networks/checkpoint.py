"""Checkpoints: the published `.pt` format, and `.safetensors` of the same names with provenance."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import whole
from ..schedule import PUBLISHED_PHOTON_UNIT
from .nafnet import NAFNet
from .network import Network
from .unet import UNet

ARCHITECTURES: tuple[type[Network], ...] = (UNet, NAFNet)


class CheckpointError(ValueError):
    """A file that is not a checkpoint of a network we know; the message is one sentence."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself. photon_unit: U in DN; the rest is free text."""

    photon_unit: float = PUBLISHED_PHOTON_UNIT
    training_noise: str = "unknown"
    licence: str = "unknown"
    origin: str = "unknown"


def load_checkpoint(path: str | os.PathLike[str]) -> Network:
    """Read a network from `.safetensors` or from a `torch.save` of {"netG": state_dict, ...}.

    Flags, channels and widths are read off the shapes. Returns the network in evaluation mode, FP32, ready to call
    with (image, photon_gain, original); its `info` is the file's CheckpointInfo.
    Raises CheckpointError, one sentence, for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    state, info = _read_safetensors(path) if path.suffix == ".safetensors" else _read_published(path)
    network = _network_from_state(path, state)
    network.info = info
    network.photon_unit = info.photon_unit
    return network.eval()


def save_checkpoint(
    network: Network,
    path: str | os.PathLike[str],
    info: CheckpointInfo,
    *,
    dtype: torch.dtype = torch.float16,
    for_bf16: bool = False,
) -> None:
    """Write `.safetensors` with the published names and the metadata of `info`; replaces `path` in one step.

    for_bf16: round what convolutions multiply by to BF16's 8 bits first, which FP16 holds, too. An engine in BF16 then
    has these very weights, and differs from FP32 by the rounding of its planes alone.
    The same weights and `info` give the same bytes.
    """
    path = Path(path)
    state = {name: value.detach() for name, value in network.state_dict().items()}
    if for_bf16:
        state |= {name: value.bfloat16() for name, value in state.items() if _is_kernel(name, value)}
    state = {name: value.to(dtype).contiguous() for name, value in state.items()}
    with whole(path) as part:
        save_file(state, part, metadata={name: str(value) for name, value in asdict(info).items()})
        part.write_bytes(_ordered(part.read_bytes()))
        part.chmod(0o644)  # the library writes for the owner alone


def _is_kernel(name: str, value: Tensor) -> bool:
    """Whether a convolution multiplies by it, as by none of NAFNet's scales."""
    return value.ndim == 4 and name.endswith(".weight")


def _ordered(file: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in another one each time."""
    begin = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:begin])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + file[begin:]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    known = {name: metadata[name] for name in ("training_noise", "licence", "origin") if name in metadata}
    return state, CheckpointInfo(photon_unit=_photon_unit(path, metadata), **known)


def _read_published(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler lets many kinds through on files that are none of its own
        raise CheckpointError(f"{path}: not a PyTorch checkpoint that torch.load reads as plain weights") from error
    state = saved.get("netG") if isinstance(saved, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f'{path}: holds no network; a checkpoint keeps its state dict under "netG"')
    # what `exposure train` writes; the published files do not tell it
    told = {name: saved[name] for name in ("licence", "origin") if isinstance(saved.get(name), str)}
    info = CheckpointInfo(**{"photon_unit": _photon_unit(path, saved), "origin": path.name, **told})
    return {str(name): value for name, value in state.items()}, info


def _photon_unit(path: Path, told: Mapping[str, Any]) -> float:
    """What `exposure train` writes into both formats; the published files do not tell it."""
    unit = told.get("photon_unit", PUBLISHED_PHOTON_UNIT)
    try:
        photon_unit = float(unit)
    except (TypeError, ValueError):
        photon_unit = 0.0
    if not 0 < photon_unit < float("inf"):
        raise CheckpointError(f'{path}: photon_unit is "{unit}"; it must be a positive number of DN')
    return photon_unit


def _network_from_state(path: Path, state: Mapping[str, Tensor]) -> Network:
    architecture = next((known for known in ARCHITECTURES if known.first_layer in state), None)
    if architecture is None:
        firsts = ", ".join(f"{known.first_layer} ({known.__name__})" for known in ARCHITECTURES)
        raise CheckpointError(f"{path}: not a known network; it has none of the first layers {firsts}")
    try:
        with torch.device("meta"):  # no memory before the shapes are known to be those of the file
            network = architecture.from_state(state)
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{path}: not a known network; it lacks or misshapes {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (RuntimeError, TypeError) as error:  # torch's own, for sizes beyond 64 bits
        raise CheckpointError(f"{path}: not a known network; torch cannot build one of these widths") from error
    expected = network.state_dict()
    missing, surplus = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has the unknown name {surplus[0]}"
        raise CheckpointError(f"{path}: {what} ({len(missing)} names missing, {len(surplus)} unknown)")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            wanted = list(expected[name].shape)
            raise CheckpointError(f"{path}: {name} has shape {list(value.shape)}; this network needs {wanted}")
    network = network.to_empty(device="cpu")
    network.load_state_dict({name: _in_fp32(path, name, value) for name, value in state.items()})
    return network


def _in_fp32(path: Path, name: str, value: Tensor) -> Tensor:
    """The values of a parameter. Raises CheckpointError where they are none, or not finite in FP32."""
    if not value.is_floating_point() or value.layout is not torch.strided or value.is_meta:
        raise CheckpointError(
            f"{path}: {name} is {value.dtype}, {value.layout}, {value.device}; it must be dense floating point"
        )
    try:
        wide = value.float()
    except RuntimeError as error:  # a type that torch can store but not compute with
        raise CheckpointError(f"{path}: {name} is {value.dtype}, which torch does not convert to FP32") from error
    if not torch.isfinite(wide).all():
        raise CheckpointError(f"{path}: {name} holds values that are not finite numbers in FP32")
    return wide
