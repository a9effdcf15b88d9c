"""Blocks of shared memory that outlive nobody: the kernel tells whether their owner lives."""

import contextlib
import fcntl
import itertools
import mmap
import os
import secrets
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "exposure_client_"
BIRTH_S = 10.0  # a region gets its lock and its name in far less
_regions = itertools.count()


class Region:
    """A block of /dev/shm that client and server both map. Its lock tells others that its owner lives."""

    def __init__(self, size: int) -> None:
        self.name = f"{PREFIX}{os.getpid()}_{next(_regions)}_{secrets.token_hex(4)}"
        self.size = size
        hidden = SHARED_MEMORY / f".{self.name}"  # locked before anybody looks for it
        self._file = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.posix_fallocate(self._file, 0, size)  # else writing to a full /dev/shm would kill the process
            self._map = mmap.mmap(self._file, size)
            hidden.rename(SHARED_MEMORY / self.name)
        except BaseException:
            hidden.unlink()
            os.close(self._file)
            raise

    def array(self, shape: tuple[int, ...], offset: int) -> NDArray[np.uint16]:
        """A view, uint16, from a byte offset."""
        return np.frombuffer(self._map, np.uint16, int(np.prod(shape)), offset).reshape(shape)

    def close(self) -> None:
        """Remove it; the server's own mapping stays until it forgets the name."""
        (SHARED_MEMORY / self.name).unlink(missing_ok=True)
        os.close(self._file)


def remove_abandoned_regions() -> None:
    """Remove the regions whose owner has died: the kernel has let go of their locks."""
    unborn = [path for path in SHARED_MEMORY.glob(f".{PREFIX}*") if _age_s(path) > BIRTH_S]
    for path in (*SHARED_MEMORY.glob(f"{PREFIX}*"), *unborn):
        with contextlib.suppress(OSError):  # another user's, or somebody else removes it too
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(file)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
