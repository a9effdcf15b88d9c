"""Where builders and engines keep what can be made again: compiled models, timings, kernels."""

import os
import sys
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """$EXPOSURE_CACHE/kind or ~/.cache/exposure/kind, made; None, and a remark, where it cannot be written to."""
    folder = Path(os.environ.get("EXPOSURE_CACHE", Path.home() / ".cache" / "exposure")) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        print(f"nothing is kept for the next start: {folder} ({error.strerror})", file=sys.stderr)
        return None
    return folder
