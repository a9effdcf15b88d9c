"""RAW files are read in a child process: what crashes or hangs LibRaw costs one file, not the batch."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from . import rawfile
from .rawfile import RawFile, RawFileError

READ_TIMEOUT_S = 120.0


class Reader:
    """One child process, started with the first file and again after a crash; used by one thread at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def read(self, path: Path) -> RawFile:
        """`rawfile.read`. Raises RawFileError also where it crashes or does not end."""
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(path)
            if not self._pipe.poll(READ_TIMEOUT_S):
                self.close()
                raise RawFileError(f"LibRaw is still busy with it after {READ_TIMEOUT_S:g} s")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.close()
            raise RawFileError("LibRaw crashed on it") from error
        if isinstance(answer, Exception):
            raise answer
        file: RawFile = answer
        return file

    def close(self) -> None:
        """End the child."""
        if self._pipe is not None and self._child is not None:
            self._pipe.close()
            self._child.kill()
            self._child.wait()
        self._pipe = None

    def _start(self) -> None:
        """A program of its own: multiprocessing would run the caller's main module once more in each child."""
        self._pipe, far_end = Pipe()
        with far_end:
            handle = far_end.fileno()
            # -P: no module is taken from the folder that one happens to be in
            self._child = subprocess.Popen([sys.executable, "-P", "-m", __name__, str(handle)], pass_fds=[handle])


class Readers:
    """Several, for several threads."""

    def __init__(self, count: int) -> None:
        self._all = [Reader() for _ in range(count)]
        self._idle: SimpleQueue[Reader] = SimpleQueue()
        for reader in self._all:
            self._idle.put(reader)

    def read(self, path: Path) -> RawFile:
        """`Reader.read`, in the next that is free."""
        reader = self._idle.get()
        try:
            return reader.read(path)
        finally:
            self._idle.put(reader)

    def close(self) -> None:
        """End all children."""
        for reader in self._all:
            reader.close()


@contextlib.contextmanager
def readers(count: int) -> Iterator[Readers]:
    """`count` readers, ended with the block."""
    several = Readers(count)
    try:
        yield several
    finally:
        several.close()


def _serve(pipe: Connection) -> None:
    """What the child does, until its parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            path = pipe.recv()
            answer: RawFile | Exception
            try:
                answer = rawfile.read(path)
            except RawFileError as error:
                answer = error
            except Exception as error:  # an odd file must not end the child
                answer = RawFileError(f"it cannot be read ({error!r})")
            pipe.send(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
