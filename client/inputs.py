"""Which files a batch is about: files, folders and patterns, and where the result of each goes."""

import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

# What folders are searched for; a file that is named itself may have any suffix.
SUFFIXES = (
    {".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng", ".erf", ".fff"}
    | {".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef"}
    | {".ptx", ".raf", ".raw", ".rw2", ".rwl", ".rwz", ".sr2", ".srf", ".srw", ".x3f"}
)
RESULT = "_exposed"  # ends the stem of every result
PREVIEW = "_preview"  # of before and after side by side


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


def find_sources(named: Sequence[Path], out: Path, *, recursive: bool) -> list[Source]:
    """Every file named, every RAW file of the folders named, every match of the patterns named; each once, in order.

    Files below a folder keep their place: results go to the same sub-folder of `out`. A folder or a pattern in which
    there is nothing costs itself; raises ValueError where it is all that is named.
    """
    found: dict[Path, Source] = {}
    for path in named:
        try:
            sources = list(_sources(path, out, recursive))
        except ValueError as error:
            if len(named) == 1:
                raise ValueError(f"{path}: {error}") from error
            sources = [Source(path, problem=str(error))]
        for source in sources:
            found.setdefault(resolved(source.path), source)
    return list(found.values())


def without_results(sources: Sequence[Source], out: Path, made: Set[Path]) -> list[Source]:
    """Without those that earlier runs made in this output folder, and those that bear the name of another's result."""
    results = {resolved(path) for path in made}
    stems = {resolved(out / source.folder / f"{source.path.stem}{RESULT}") for source in sources}
    return [
        source
        for source in sources
        if source.problem
        or (resolved(source.path) not in results and resolved(source.path.with_suffix("")) not in stems)
    ]


def prepare_folder(folder: Path, *, make: bool = True) -> None:
    """Make an output folder; without `make`, only see whether that could be done.

    Raises ValueError, one sentence, where it cannot be made or written to.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written to ({(error.strerror or str(error)).lower()})") from error


def resolved(path: Path) -> Path:
    """Without symbolic links. Path.resolve raises RuntimeError where they go in circles."""
    return Path(os.path.realpath(path))


def _sources(path: Path, out: Path, recursive: bool) -> Iterator[Source]:
    if _told(path.is_dir, otherwise=False):
        sources = _in_folder(path, out, recursive)
        if not sources:
            deeper = "; --recursive looks into its sub-folders" if not recursive and _has_folders(path) else ""
            raise ValueError(f"it holds no RAW files{deeper}")
        yield from sources
    elif glob.has_magic(str(path)) and not _told(path.exists, otherwise=True):
        found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # ** too
        results = resolved(out)
        matches = [match for match in found if not _told(match.is_dir, otherwise=False)]
        matches = [match for match in matches if not _is_result(match, results)]
        if not matches:
            raise ValueError("no file matches it")
        yield from (Source(match) for match in matches)
    else:
        yield Source(path)


def _told(question: Callable[[], bool], *, otherwise: bool) -> bool:
    """The answer of the file system; `otherwise` where it may not be asked: then opening the file tells why."""
    try:
        return question()
    except OSError:
        return otherwise


def _has_folders(folder: Path) -> bool:
    """Whether there are folders below it that a search would look into."""
    return any(_told(path.is_dir, otherwise=False) for path in folder.iterdir() if not path.name.startswith("."))


def _in_folder(folder: Path, out: Path, recursive: bool) -> list[Source]:
    """RAW files by suffix, without hidden ones and those in hidden folders, where deleted ones lie, and without results
    of an earlier run in the output folder; and the folders that cannot be looked into."""
    found: list[Source] = []
    results = resolved(out)

    def closed(error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        found.append(Source(Path(error.filename or folder), problem=f"it cannot be looked into ({reason})"))

    for place, folders, names in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        files = (Path(place, name) for name in names if not name.startswith("."))
        found += [
            Source(file, file.parent.relative_to(folder))
            for file in files
            if file.suffix.lower() in SUFFIXES and not _is_result(file, results) and _told(file.is_file, otherwise=True)
        ]
    return sorted(found, key=lambda source: source.path)


def _is_result(file: Path, out: Path) -> bool:
    """Whether it was written by an earlier run into this output folder."""
    return file.stem.endswith(RESULT) and out in resolved(file).parents
