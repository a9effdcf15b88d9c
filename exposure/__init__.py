"""exposure: a camera RAW file taken in the dark goes in; the same RAW, exposed R times longer, comes out."""

from typing import TYPE_CHECKING, Any

from .denoise import denoise
from .schedule import Step, unroll
from .sensor import Sensor, pack, unpack

if TYPE_CHECKING:
    from .networks import load_checkpoint

__version__ = "0.5.2"
__all__ = ["Sensor", "Step", "denoise", "load_checkpoint", "pack", "unpack", "unroll"]


def __getattr__(name: str) -> Any:
    if name == "load_checkpoint":  # the only part that needs torch at import
        from .networks import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
