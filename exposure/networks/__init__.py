"""The networks, behind one signature, and the checkpoints that they are read from."""

from .checkpoint import CheckpointError, CheckpointInfo, load_checkpoint, save_checkpoint
from .nafnet import NAFNet
from .network import Network
from .unet import UNet

__all__ = ["CheckpointError", "CheckpointInfo", "NAFNet", "Network", "UNet", "load_checkpoint", "save_checkpoint"]
