"""Where NVIDIA's builders and engines keep what can be made again: timings and kernels."""

import os
import sys
from contextlib import suppress
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """$EXPOSURE_CACHE/kind or ~/.cache/exposure/kind, made; None, and a remark, where it cannot be written to."""
    try:
        folder = Path(os.environ.get("EXPOSURE_CACHE") or Path.home() / ".cache" / "exposure") / kind
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied", str(folder))
    except (OSError, RuntimeError) as error:  # the latter where nobody knows the home of this user
        print(f"nothing is kept for the next start ({error})", file=sys.stderr)
        return None
    return folder


def keep_newest(folder: Path, pattern: str, most: int) -> None:
    """Remove all but the newest files of a pattern; those that another process removes meanwhile are gone too."""
    times = {}
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime
    for path in sorted(times, key=times.__getitem__)[:-most]:
        path.unlink(missing_ok=True)
