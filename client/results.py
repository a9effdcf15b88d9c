"""What is in an output folder, from what and by which network: so that a batch goes on, and no file is lost."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .inputs import resolved
from .output import parts_of
from .rawfile import RawFileError

NAME = ".exposure.sqlite3"
LOCK_SUFFIX = ".exposure-lock"
REMEDY = "--overwrite replaces it, --out avoids it"
RESULTS = """
CREATE TABLE IF NOT EXISTS results (
    target TEXT PRIMARY KEY,          -- path in the output folder
    content TEXT NOT NULL,            -- SHA-256 of the source
    settings TEXT NOT NULL,           -- what was asked for, as JSON
    source TEXT NOT NULL,             -- path of the source
    checkpoint TEXT,                  -- SHA-256 of the network that the server ran; '' where it did not tell
    size INTEGER,                     -- bytes of the result; NULL: an earlier version did not finish it
    written TEXT DEFAULT CURRENT_TIMESTAMP,
    modified INTEGER                  -- its time of modification in ns
)
"""
BEGUN = """
CREATE TABLE IF NOT EXISTS begun (
    target TEXT PRIMARY KEY,
    content TEXT NOT NULL,
    settings TEXT NOT NULL,
    source TEXT NOT NULL,
    size INTEGER,                     -- of the file that was there before, NULL where none was
    modified INTEGER
)
"""
PARTS = """
CREATE TABLE IF NOT EXISTS parts (    -- files that were about to be given the name of a target
    target TEXT NOT NULL,
    content TEXT NOT NULL,
    size INTEGER NOT NULL,
    modified INTEGER NOT NULL
)
"""
HOPELESS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
CLOCK_NS = 2_000_000_000  # some file systems round times to 2 s
Identity = tuple[int | None, int | None]  # size and time of modification, in ns


class OutputError(OSError):
    """Nothing more can be written: the batch ends."""


class TakenError(RawFileError):
    """Another run is at work on the same result."""


class Results:
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
                    "SELECT size, checkpoint FROM results WHERE target = ? AND content = ? AND settings = ?"
                    " AND target NOT IN (SELECT target FROM begun)",
                    (self._name(target), content, settings),
                ).fetchone()
                if row is None or row[0] is None or not target.exists() or target.stat().st_size != row[0]:
                    return None
                checkpoints.add(row[1])
        return checkpoints.pop() if len(checkpoints) == 1 else None

    def listed(self) -> set[Path]:
        """What earlier runs made here, with what a killed one gave its name and noted no more."""
        if not self._path.exists():
            return set()
        with self._database() as database:
            rows = database.execute("SELECT target FROM results").fetchall()
            parts = database.execute("SELECT target, size, modified FROM parts").fetchall()
        rows += [(name,) for name, *part in parts if _is_same((part[0], part[1]), _identity(self._folder / name))]
        return {self._folder / name for (name,) in rows}

    def refuse_others(self, content: str, source: Path, targets: Sequence[Path]) -> None:
        """Raise RawFileError where a target exists and is no result of this source, or one that was changed since."""
        there = [target for target in targets if target.exists()]
        if not there:
            return
        if not self._path.exists():
            raise RawFileError(f"{there[0]} exists and is not a result of this command; {REMEDY}")
        with self._database() as database:
            for target in there:
                if reason := self._foreign(database, content, source, target):
                    raise RawFileError(f"{target} exists and {reason}; {REMEDY}")

    def begin(self, content: str, settings: str, source: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
        """Note what is going to be written, before it is. Raises RawFileError where that would replace other things."""
        if not overwrite:
            self.refuse_others(content, source, targets)
        with self._database() as database:
            for target in targets:
                database.execute("DELETE FROM begun WHERE target = ? AND content != ?", (self._name(target), content))
                database.execute(  # what was there before the first of several attempts stays noted
                    "INSERT INTO begun VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (target)"
                    " DO UPDATE SET settings = excluded.settings, source = excluded.source",
                    (self._name(target), content, settings, str(source.absolute()), *_identity(target)),
                )

    def renaming(self, content: str, target: Path, part: Path) -> None:
        """Note the file that is about to be given a target's name, which changes neither its size nor its time."""
        with self._database() as database:
            row = (self._name(target), content, *_identity(part))
            database.execute("INSERT INTO parts VALUES (?, ?, ?, ?)", row)

    def finish(self, targets: Sequence[Path], checkpoint: str) -> None:
        """Note that the results are there, whole, and which network made them."""
        with self._database() as database:
            for target in targets:
                database.execute(
                    "INSERT OR REPLACE INTO results (target, content, settings, source, checkpoint, size, modified)"
                    " SELECT target, content, settings, source, ?, ?, ? FROM begun WHERE target = ?",
                    (checkpoint, *_identity(target), self._name(target)),
                )
                for table in ("begun", "parts"):
                    database.execute(f"DELETE FROM {table} WHERE target = ?", (self._name(target),))

    def abandon(self, targets: Sequence[Path]) -> None:
        """Forget what was begun and not written: what was there before is what it was."""
        with self._database() as database:
            for target in targets:
                database.execute(
                    "DELETE FROM begun WHERE target = ? AND size IS ? AND modified IS ?",
                    (self._name(target), *_identity(target)),
                )

    def _foreign(self, database: sqlite3.Connection, content: str, source: Path, target: Path) -> str:
        """Why a file may not be replaced; "" where it may."""
        name, identity = self._name(target), _identity(target)
        parts = database.execute("SELECT size, modified FROM parts WHERE target = ? AND content = ?", (name, content))
        if any(_is_same(part, identity) for part in parts):
            return ""  # written by a run that was ended before it could note so
        row = database.execute(
            "SELECT content, source, size, modified FROM results WHERE target = ?", (name,)
        ).fetchone()
        if row is None:
            return "is not a result of this command"
        if row[0] != content:
            itself = resolved(Path(row[1])) == resolved(source)
            return f"is made from {source} as it was before its content changed" if itself else f"is made from {row[1]}"
        return "" if _is_same(row[2:], identity) else "was changed since it was made"

    def _name(self, target: Path) -> str:
        return target.relative_to(self._folder).as_posix()

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=60)) as database, database:
                database.execute(RESULTS)
                database.execute(BEGUN)
                database.execute(PARTS)
                _add_columns(database)
                yield database
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the bits above are details
            if code in HOPELESS:
                raise OutputError(f"the table of results {self._path} cannot be written ({error})") from error
            remedy = "; remove it and give --overwrite, which does all anew, or another --out" if code in BROKEN else ""
            raise OSError(f"the table of results {self._path} cannot be used ({error}){remedy}") from error


def _identity(target: Path) -> Identity:
    """Size and time of modification, in ns, of a file; None where there is none."""
    if not target.exists():
        return None, None
    found = target.stat()
    return found.st_size, found.st_mtime_ns


def _is_same(noted: Identity, found: Identity) -> bool:
    """Whether a file still is the one that was noted, as far as the note goes."""
    (size, modified), (size_now, modified_now) = noted, found
    if size is not None and size != size_now:
        return False
    return modified is None or modified_now is None or abs(modified - modified_now) <= CLOCK_NS


def _add_columns(database: sqlite3.Connection) -> None:
    """Earlier versions noted no checkpoint, and no time: nobody knows what made their results."""
    known = {column[1] for column in database.execute("PRAGMA table_info(results)")}
    for column, kind in {"checkpoint": "TEXT", "modified": "INTEGER"}.items():
        if column not in known:
            with contextlib.suppress(sqlite3.OperationalError):  # another thread or process did it at the same time
                database.execute(f"ALTER TABLE results ADD COLUMN {column} {kind}")


@contextlib.contextmanager
def claimed(targets: Sequence[Path]) -> Iterator[None]:
    """Hold the only right to write the results of one source; what a killed holder left of them is removed.

    Their folder is made here, so that files which are refused before leave none. The right is a locked file, so that it
    ends with the process however that ends. Raises TakenError.
    """
    lock = targets[0].with_name(f".{targets[0].stem}{LOCK_SUFFIX}")
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(lock)
    if file is None:
        raise TakenError(f"another run is writing {targets[0].name}")
    try:
        _remove_parts_of(lock)
        lock.write_bytes(b"\n".join(os.fsencode(target.name) for target in targets))
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


def _locked(path: Path) -> int | None:
    """The file's descriptor, locked, or None where somebody else holds it."""
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)  # who shares the folder may go on with it, by its umask
        except PermissionError:
            if path.exists():  # another user's
                return None
            raise
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
    for name in filter(None, os.fsdecode(lock.read_bytes()).split("\n")):
        for part in parts_of(lock.with_name(name)):
            part.unlink(missing_ok=True)
