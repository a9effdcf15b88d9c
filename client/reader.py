"""RAW files are read in a child process: what crashes or hangs LibRaw then costs one file, not the batch.

Only a file that was read whole here is developed, for pictures, in the process that asked.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

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
        """`rawfile.read`, there. Raises RawFileError also where it crashes or does not end."""
        file: RawFile = self._done(rawfile.read, path)
        return file

    def read_beside(self, other: "Reader", path: Path) -> RawFile:
        """The same, while another one takes the second look."""
        with ThreadPoolExecutor(1) as beside:  # waits for both, also where one refuses: the next file's turn comes then
            checksum = beside.submit(other._done, rawfile.checksum_of, path)
            file: RawFile = self._done(rawfile.read_once, path)
        return rawfile.unless_by_chance(file, checksum.result())

    def _done(self, work: Callable[[Path], Any], path: Path) -> Any:
        pipe = self._pipe or self._start()
        try:
            pipe.send((work, path))
            if not pipe.poll(READ_TIMEOUT_S):
                raise RawFileError(f"LibRaw is still busy with it after {READ_TIMEOUT_S:g} s")
            answer = _received(pipe)
        except (EOFError, OSError) as error:
            self._stop()
            raise RawFileError("LibRaw crashed on it") from error
        except BaseException:  # what is left of an answer must not be taken for the next
            self._stop()
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

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
        """`Reader.read`, in the next that is free; where one more is, it helps."""
        reader, other = self._idle.get(), None
        try:
            with contextlib.suppress(Empty):
                other = self._idle.get_nowait()
            return reader.read_beside(other, path) if other else reader.read(path)
        finally:
            for used in filter(None, (reader, other)):
                self._idle.put(used)

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
            work, path = pipe.recv()
            answer: RawFile | int | Exception
            try:
                answer = work(path)
            except RawFileError as error:
                answer = error
            except Exception as error:  # an odd file must not end the child
                answer = RawFileError(f"it cannot be read ({error!r})")
            _send(pipe, answer)


def _send(pipe: Connection, answer: object) -> None:
    """As the pipe's own `send`; but arrays follow behind, as they lie in memory, without copies."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    pipe.send((head, [array.nbytes for array in arrays]))
    for rest in arrays:
        while rest.nbytes:
            rest = rest[os.write(pipe.fileno(), rest) :]


def _received(pipe: Connection) -> Any:
    """What `_send` sends. Raises EOFError or OSError where it ends too soon."""
    head, sizes = pipe.recv()
    arrays = [np.empty(size, np.uint8) for size in sizes]
    for array in arrays:
        rest = array.data
        while rest.nbytes:
            count = os.readv(pipe.fileno(), [rest])
            if not count:
                raise EOFError
            rest = rest[count:]
    return pickle.loads(head, buffers=arrays)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
