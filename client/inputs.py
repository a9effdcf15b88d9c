"""Which files a batch is about: files, folders and patterns, and where the result of each goes."""

import glob
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from exposure.files import reason_of

# What folders are searched for; a file that is named itself may have any suffix.
SUFFIXES = (
    {".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng", ".erf", ".fff"}
    | {".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef"}
    | {".ptx", ".raf", ".raw", ".rw2", ".rwl", ".rwz", ".sr2", ".srf", ".srw", ".x3f"}
)
RESULT = "_exposed"  # ends the stem of every result
PREVIEW = "_preview"  # of before and after side by side
LINK = "it is a link to a folder elsewhere, which is not followed; name it, too"


@dataclass(frozen=True)
class Source:
    """A file to work on. folder: of its results, relative to the output folder. problem: why nothing can be done."""

    path: Path
    folder: Path = Path()
    problem: str = ""

    def targets(self, out: Path, formats: Sequence[str], preview: bool) -> list[Path]:
        """Where its results go: OUT/folder/stem_exposed.suffix."""
        place = out / self.folder
        found = [place / f"{self.path.stem}{RESULT}.{suffix}" for suffix in formats]
        return [*found, place / f"{self.path.stem}{PREVIEW}.png"] if preview else found


def find_sources(named: Sequence[Path], *, recursive: bool) -> list[Source]:
    """Every file named, every RAW file of the folders named, every match of the patterns named; each once, in order.

    Files below a folder keep their place: results go to the same sub-folder of the output folder. A folder or a pattern
    in which there is nothing costs itself; raises ValueError where it is all that is named.
    """
    found: dict[Path, Source] = {}
    for path in named:
        try:
            sources = list(_sources(path, recursive))
        except ValueError as error:
            if len(named) == 1:
                raise ValueError(f"{path}: {error}") from error
            sources = [Source(path, problem=str(error))]
        for source in sources:
            found.setdefault(resolved(source.path), source)
    return list(found.values())


def without_results(sources: Sequence[Source], out: Path, made: Set[Path]) -> list[Source]:
    """Without those that earlier runs made in this output folder, and those that bear the name of another's result.

    The name alone tells nothing: cameras and people call originals `*_exposed`, too.
    """
    stems = {resolved(out / source.folder / f"{source.path.stem}{RESULT}") for source in sources}
    results = {resolved(path) for path in made}
    results |= {resolved(out / source.folder / f"{source.path.stem}{PREVIEW}.png") for source in sources}
    return [
        source
        for source in sources
        if source.problem
        or (resolved(source.path) not in results and resolved(source.path.with_suffix("")) not in stems)
    ]


class Names:
    """Whose the names of results are where several sources want one: the first's, in their order, that can be done."""

    def __init__(self, wanted: Mapping[Source, Sequence[Path]]) -> None:
        self._wanted = wanted
        self._owners: dict[Path, Path] = {}
        self._ended = {source: threading.Event() for source in wanted}
        self._awaited: dict[Source, list[threading.Event]] = {}
        last: dict[Path, threading.Event] = {}  # it ends after all others before it
        for source, targets in wanted.items():
            self._awaited[source] = [last[target] for target in targets if target in last]
            last |= dict.fromkeys(targets, self._ended[source])

    @contextmanager
    def turn(self, source: Source) -> Iterator[None]:
        """Wait for the end of those before it that want one of its names. Turns must be begun in order."""
        try:
            for ended in self._awaited[source]:
                ended.wait()
            yield
        finally:
            self._ended[source].set()

    def refuse_taken(self, source: Source) -> None:
        """Raise ValueError where another source has one of its names."""
        for target in self._wanted[source]:
            if target in self._owners:
                owner = self._owners[target]
                raise ValueError(f"its result {target} is also that of {owner}; do it alone, with another --out")

    def keep(self, source: Source) -> None:
        """The source has, from now on, the names that it wants."""
        self._owners |= dict.fromkeys(self._wanted[source], source.path)


def prepare_folder(folder: Path, *, make: bool = True) -> None:
    """Make an output folder; without `make`, only see whether that could be done.

    Raises ValueError, one sentence, where it cannot be made or written to.
    """
    if not is_text(folder.absolute()):
        raise ValueError(f"--out {folder} is not in UTF-8, as the table of results wants it; choose another")
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written to ({reason_of(error)})") from error


def resolved(path: Path) -> Path:
    """Without symbolic links. Path.resolve raises RuntimeError where they go in circles."""
    return Path(os.path.realpath(path))


def is_text(path: Path) -> bool:
    """Whether a path is in UTF-8, as names of files need not be."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _sources(path: Path, recursive: bool) -> Iterator[Source]:
    if _answer_of(path.is_dir, otherwise=False):
        sources = _in_folder(path, recursive)
        if not sources:
            deeper = "; --recursive looks into its sub-folders" if not recursive and _has_folders(path) else ""
            raise ValueError(f"it holds no RAW files{deeper}")
        yield from sources
    elif glob.has_magic(str(path)) and not _answer_of(path.exists, otherwise=True):
        found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # ** too
        matches = [match for match in found if not _answer_of(match.is_dir, otherwise=False)]
        if not matches:
            raise ValueError("no file matches it")
        yield from (Source(match) for match in matches)
    else:
        yield Source(path)


def _answer_of(question: Callable[[], bool], *, otherwise: bool) -> bool:
    """The answer of the file system; `otherwise` where it may not be asked: then opening the file tells why."""
    try:
        return question()
    except OSError:
        return otherwise


def _has_folders(folder: Path) -> bool:
    """Whether there are folders below it that a search would look into."""
    return any(_answer_of(path.is_dir, otherwise=False) for path in folder.iterdir() if not path.name.startswith("."))


def _in_folder(folder: Path, recursive: bool) -> list[Source]:
    """RAW files by suffix, without hidden ones and those in hidden folders, where deleted ones lie; and, with the
    reason, the folders that are not looked into."""
    found: list[Source] = []
    inside = resolved(folder)

    def closed(error: OSError) -> None:
        problem = f"it cannot be looked into ({reason_of(error)})"
        found.append(Source(Path(error.filename or folder), problem=problem))

    for place, folders, names in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        below = [Path(place, name) for name in folders]
        links = [path for path in below if _answer_of(path.is_symlink, otherwise=False)]  # which may go in circles
        found += [Source(path, problem=LINK) for path in links if not resolved(path).is_relative_to(inside)]
        files = (Path(place, name) for name in names if not name.startswith("."))
        # broken links and pipes, too: opening them tells why nothing can be done
        found += [Source(file, file.parent.relative_to(folder)) for file in files if file.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda source: source.path)
