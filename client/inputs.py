"""Which files a batch is about: files, folders and patterns, and where the result of each goes."""

import glob
from collections.abc import Iterator, Sequence
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
    """A file to work on. folder: of its results, relative to the output folder."""

    path: Path
    folder: Path = Path()

    def targets(self, out: Path, formats: Sequence[str], preview: bool) -> list[Path]:
        """Where its results go: OUT/folder/stem_exposed.suffix."""
        place = out / self.folder
        found = [place / f"{self.path.stem}{RESULT}.{suffix}" for suffix in formats]
        return [*found, place / f"{self.path.stem}{PREVIEW}.png"] if preview else found


def find_sources(named: Sequence[Path], out: Path, *, recursive: bool) -> list[Source]:
    """Every file named, every RAW file of the folders named, every match of the patterns named; each once, in order.

    Files below a folder keep their place: results go to the same sub-folder of `out`. Raises ValueError for a folder or
    a pattern in which there is nothing.
    """
    found: dict[Path, Source] = {}
    for path in named:
        for source in _sources(path, out, recursive):
            found.setdefault(source.path.resolve(), source)
    return list(found.values())


def _sources(path: Path, out: Path, recursive: bool) -> Iterator[Source]:
    if path.is_dir():
        sources = [Source(file, file.parent.relative_to(path)) for file in _raw_files(path, out, recursive)]
        if not sources:
            deeper = "" if recursive else "; --recursive looks into its sub-folders"
            raise ValueError(f"{path} holds no RAW files{deeper}")
        yield from sources
    elif not path.exists() and glob.has_magic(str(path)):
        found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # ** too
        results = out.resolve()
        matches = [match for match in found if not match.is_dir() and not _is_result(match, results)]
        if not matches:
            raise ValueError(f"no file matches {path}")
        yield from (Source(match) for match in matches)
    else:
        yield Source(path)


def _raw_files(folder: Path, out: Path, recursive: bool) -> list[Path]:
    """RAW files by suffix, without hidden ones and those in hidden folders, where deleted ones lie, and without results
    of an earlier run in the output folder."""
    files = folder.rglob("*") if recursive else folder.glob("*")
    out = out.resolve()
    return sorted(
        file
        for file in files
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not _is_result(file, out)
        and file.is_file()
    )


def _is_result(file: Path, out: Path) -> bool:
    """Whether it was written by an earlier run into this output folder."""
    return file.stem.endswith(RESULT) and out in file.resolve().parents
