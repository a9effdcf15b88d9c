"""How a finished engine gets to its place: sealed with the hashes of its files, and there as a whole or not at all."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from exposure.files import sha256
from exposure.kernels.manifest import NAME, EngineManifest

A_DAY_S = 86_400.0


def seal(folder: Path, manifest: EngineManifest) -> None:
    """Write the manifest of a finished engine, with the hashes of the files that lie in its folder."""
    for file in sorted(folder.iterdir()):
        manifest.files[file.name] = sha256(file)
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"  # the server prints `rebuild` as it stands
    (folder / NAME).write_text(text, "utf-8", "backslashreplace")  # JSON's own escape, where a file's name is no text


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `folder` when it is whole, or vanishes if anything fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):  # of builds that were killed
        if time.time() - left.stat().st_mtime > A_DAY_S:
            shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    old = part.with_name(part.name + ".old")
    try:
        yield part
        part.chmod(0o777 & ~_umask())
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        if old.exists() and not folder.exists():  # stopped between the two renames
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
