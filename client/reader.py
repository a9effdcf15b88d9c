"""RAW files are read in a child process: what crashes or hangs LibRaw then costs one file, not the batch.

Only a file that was read whole here is developed, for pictures, in the process that asked.
"""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from . import rawfile
from .rawfile import RawFile, RawFileError

READ_TIMEOUT_S = 120.0


class Reader:
    """One child process, started with the first file and again after a crash.

    One thread at a time reads; any may close it, and nothing is started after that.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()
        self._closed = False

    def read(self, path: Path) -> RawFile:
        """`rawfile.read`. Raises RawFileError also where it crashes or does not end."""
        pipe = self._pipe or self._start()
        try:
            pipe.send(path)
            if not pipe.poll(READ_TIMEOUT_S):
                self._stop()
                raise RawFileError(f"LibRaw is still busy with it after {READ_TIMEOUT_S:g} s")
            answer = pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._stop()
            raise RawFileError("LibRaw crashed on it") from error
        if isinstance(answer, Exception):
            raise answer
        file: RawFile = answer
        return file

    def close(self) -> None:
        """End the child, for good. Its end of the pipe closes, which wakes who waits at ours and must not lose it."""
        with self._lock:
            self._closed = True
            self._kill()

    def _start(self) -> Connection:
        """A program of its own: multiprocessing would run the caller's main module once more in each child."""
        pipe, far_end = Pipe()
        with far_end, self._lock:
            if self._closed:
                pipe.close()
                raise RawFileError("it was not read: reading has ended")
            handle = far_end.fileno()
            # -P: no module is taken from the folder that one happens to be in. Signals to the group, as of Ctrl-C and
            # of a closed terminal, are the parent's affair: the child is in none, and ends when the pipe does.
            command = [sys.executable, "-P", "-m", __name__, str(handle)]
            self._child = subprocess.Popen(command, pass_fds=[handle], start_new_session=True)
        self._pipe = pipe
        return pipe

    def _stop(self) -> None:
        """End the child; the next file starts another."""
        if self._pipe is not None:
            self._pipe.close()
        self._pipe = None
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._child = None


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
