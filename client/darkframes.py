"""`--dark`: frames taken with the cap on, subtracted from files of the same camera and ISO."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exposure.dark import check_dark, dark_excess, without_dark
from exposure.sensor import shape_text

from .rawfile import RawFile, RawFileError


@dataclass(frozen=True)
class DarkFrames:
    """What frames of one camera and ISO have beyond black. first: one of them; excess: [H, W] in DN."""

    first: RawFile
    count: int
    excess: NDArray[np.float32]

    def subtracted_from(self, file: RawFile) -> RawFile:
        """The file without that. Raises RawFileError where it is of another camera, ISO, size or levels."""
        _refuse_others(file, self.first)
        return replace(file, mosaic=without_dark(file.mosaic, self.excess), dark_frames=self.count)


def read_dark_frames(paths: Sequence[Path], read: Callable[[Path], RawFile]) -> DarkFrames:
    """Read them one by one. Raises ValueError, one sentence with the path, for what is no dark frame like the first."""
    first = _checked(paths[0], read)
    rest = (_checked(path, read, first) for path in paths[1:])
    mosaics = (file.mosaic for file in itertools.chain([first], rest))
    return DarkFrames(first, len(paths), dark_excess(mosaics, first.sensor))


def _checked(path: Path, read: Callable[[Path], RawFile], first: RawFile | None = None) -> RawFile:
    try:
        file = read(path)
        _refuse_others(file, first or file)
        check_dark(file.mosaic, file.sensor)
    except ValueError as error:
        raise ValueError(f"--dark {path}: {error}") from error
    return file


def _refuse_others(file: RawFile, first: RawFile) -> None:
    for what, its, theirs in (
        ("camera", file.model or "unknown", first.model or "unknown"),
        ("ISO", f"{file.iso:g}", f"{first.iso:g}"),
        ("size", shape_text(file.mosaic.shape), shape_text(first.mosaic.shape)),
        ("sensor", file.sensor, first.sensor),
    ):
        if its != theirs:
            raise RawFileError(f"its {what} is {its}, and that of the dark frames ({first.path.name}) {theirs}")
