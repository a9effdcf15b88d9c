"""Files on disk: under its name a file is whole or not there, and its content has one name too, its SHA-256."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path, *, part: Path | None = None, note: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A temporary name beside `path` to write to: on the disk and renamed when the block succeeds, else removed.

    part: that name; if None a hidden one that ends in .part, for one writer at a time. note: is given the finished file
    before its renaming.
    """
    part = part or path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        if note:
            note(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The whole text in UTF-8 or none of it."""
    with whole(path) as part:
        part.write_text(text, "utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_of(error: OSError) -> str:
    """What the system says went wrong, as the middle of a sentence."""
    return (error.strerror or str(error)).lower()
