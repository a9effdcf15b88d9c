"""What is in an output folder, from what and by which network: so that a batch goes on, and no file is lost."""

import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .output import parts_of
from .rawfile import RawFileError

NAME = ".exposure.sqlite3"
LOCK_SUFFIX = ".exposure-lock"
SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    target TEXT PRIMARY KEY,          -- path in the output folder
    content TEXT NOT NULL,            -- SHA-256 of the source
    settings TEXT NOT NULL,           -- what was asked for, as JSON
    source TEXT NOT NULL,             -- path of the source
    checkpoint TEXT,                  -- SHA-256 of the network that the server ran; '' where it did not tell
    size INTEGER,                     -- bytes of the result; NULL while it is being written
    written TEXT DEFAULT CURRENT_TIMESTAMP
)
"""


class TakenError(RawFileError):
    """Another run is at work on the same result."""


class Manifest:
    """The table of results of one output folder, made with the first result. Used by many threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME

    def made_by(self, content: str, settings: str, targets: Sequence[Path]) -> str | None:
        """The checkpoint that made all results of this source and these settings; None unless all are there, whole."""
        if not self._path.exists():
            return None
        checkpoints = set()
        with self._database() as database:
            for target in targets:
                row = database.execute(
                    "SELECT size, checkpoint FROM results WHERE target = ? AND content = ? AND settings = ?",
                    (self._name(target), content, settings),
                ).fetchone()
                if row is None or row[0] is None or not target.exists() or target.stat().st_size != row[0]:
                    return None
                checkpoints.add(row[1])
        return checkpoints.pop() if len(checkpoints) == 1 else None

    def begin(self, content: str, settings: str, source: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
        """Note what is going to be written, before it is. Raises RawFileError where that would replace other things."""
        with self._database() as database:
            for target in targets:
                row = database.execute(
                    "SELECT content, source FROM results WHERE target = ?", (self._name(target),)
                ).fetchone()
                if target.exists() and not overwrite and (row is None or row[0] != content):
                    origin = f"made from {row[1]}" if row else "not a result of this command"
                    raise RawFileError(f"{target} exists and is {origin}; --overwrite replaces it, --out avoids it")
            for target in targets:
                database.execute(
                    "INSERT OR REPLACE INTO results (target, content, settings, source) VALUES (?, ?, ?, ?)",
                    (self._name(target), content, settings, str(source)),
                )

    def finish(self, targets: Sequence[Path], checkpoint: str) -> None:
        """Note that the results are there, whole, and which network made them."""
        with self._database() as database:
            for target in targets:
                size = target.stat().st_size
                database.execute(
                    "UPDATE results SET size = ?, checkpoint = ? WHERE target = ?",
                    (size, checkpoint, self._name(target)),
                )

    def abandon(self, targets: Sequence[Path]) -> None:
        """Forget results that were never written."""
        if not self._path.exists():
            return
        with self._database() as database:
            for target in targets:
                if not target.exists():
                    database.execute("DELETE FROM results WHERE target = ?", (self._name(target),))

    def _name(self, target: Path) -> str:
        return target.relative_to(self._folder).as_posix()

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=60)) as database, database:
                database.execute(SCHEMA)
                _add_checkpoint(database)
                yield database
        except sqlite3.DatabaseError as error:
            raise OSError(
                f"the manifest {self._path} cannot be used ({error}); without it, all is done anew"
            ) from error


def _add_checkpoint(database: sqlite3.Connection) -> None:
    """Earlier versions noted no checkpoint: nobody knows what made their results."""
    if not any(column[1] == "checkpoint" for column in database.execute("PRAGMA table_info(results)")):
        with contextlib.suppress(sqlite3.OperationalError):  # another thread or process did it at the same time
            database.execute("ALTER TABLE results ADD COLUMN checkpoint TEXT")


@contextlib.contextmanager
def claimed(targets: Sequence[Path]) -> Iterator[None]:
    """Hold the only right to write the results of one source; what a killed holder left of them is removed.

    The right is a locked file, so that it ends with the process however that ends. Raises TakenError.
    """
    lock = targets[0].with_name(f".{targets[0].stem}{LOCK_SUFFIX}")
    file = _locked(lock)
    if file is None:
        raise TakenError(f"another run is writing {targets[0].name}")
    try:
        _remove_parts_of(lock)
        lock.write_text("\n".join(target.name for target in targets))
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove temporary files of killed runs from output folders."""
    for folder in folders:
        for lock in folder.glob(f".*{LOCK_SUFFIX}"):
            file = _locked(lock)
            if file is not None:
                _remove_parts_of(lock)
                lock.unlink(missing_ok=True)
                os.close(file)


def content_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locked(path: Path) -> int | None:
    """The file's descriptor, locked, or None where somebody else holds it."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(file).st_ino:
                return file
        except BlockingIOError:
            os.close(file)
            return None
        os.close(file)  # its holder removed it in between


def _remove_parts_of(lock: Path) -> None:
    """Remove the temporary files of the targets that a lock names."""
    for name in lock.read_text().splitlines():
        for part in parts_of(lock.with_name(name)):
            part.unlink(missing_ok=True)
