"""Where the distribution keeps what it ships beside its code: the checkpoint and the model repository.

In a source checkout they lie at the top; in an installed wheel, inside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_HOME = _PACKAGE if (_PACKAGE / "model_repository").is_dir() else _PACKAGE.parent

MODEL_REPOSITORY = _HOME / "model_repository"
CHECKPOINT = _HOME / "checkpoints" / "unet.safetensors"
