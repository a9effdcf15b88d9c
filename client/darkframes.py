"""`--dark`: frames taken with the cap on, subtracted from files of the same camera and ISO."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exposure.dark import check_dark, dark_excess, without_dark
from exposure.sensor import shape_text

from .dng import is_result
from .rawfile import RawFile, RawFileError

DARK_S = 1.0  # exposure time from which the charge that gathers in the dark counts
TIME_VARIES = 2.0  # times, between a file and its dark frames: that charge grows with it
BLACK_VARIES = 4.0  # DN between files of one camera: some measure it for each exposure


@dataclass(frozen=True)
class DarkFrames:
    """What frames of one camera and ISO have beyond black: excess, [H, W] in DN. contents: their hashes."""

    first: RawFile
    contents: tuple[str, ...]
    excess: NDArray[np.float32]

    def subtracted_from(self, file: RawFile) -> RawFile:
        """The file without that. Raises RawFileError where it is of another camera, ISO, time, size or levels."""
        _refuse_others(file, self.first)
        mosaic = without_dark(file.mosaic, self.excess, file.sensor.white)
        return replace(file, mosaic=mosaic, dark_frames=len(self.contents))


def read_dark_frames(
    paths: Sequence[Path], read: Callable[[Path], RawFile], content_of: Callable[[Path], str]
) -> DarkFrames:
    """Read them one by one; copies count once.

    Raises ValueError, one sentence with the path, for what is no dark frame like the first.
    """
    unlike: dict[str, Path] = {}
    for path in paths:
        with _told(path):
            unlike.setdefault(content_of(path), path)
    first, *others = unlike.values()
    start = _checked(first, read)
    rest = (_checked(path, read, start) for path in others)
    frames = ((file.mosaic, file.sensor) for file in itertools.chain([start], rest))
    return DarkFrames(start, tuple(sorted(unlike)), dark_excess(frames))


def _checked(path: Path, read: Callable[[Path], RawFile], first: RawFile | None = None) -> RawFile:
    with _told(path):
        file = read(path)
        if is_result(file.tags):
            raise RawFileError("it is a result of this command; give a file as the camera wrote it")
        _refuse_others(file, first or file)
        check_dark(file.mosaic, file.sensor)
    return file


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--dark {path}: {error}") from error


def _refuse_others(file: RawFile, first: RawFile) -> None:
    for what, its, theirs in (
        ("camera", file.model or "unknown", first.model or "unknown"),
        ("ISO", f"{file.iso:g}", f"{first.iso:g}"),
        ("size", shape_text(file.mosaic.shape), shape_text(first.mosaic.shape)),
        ("white level", f"{file.sensor.white:g} DN", f"{first.sensor.white:g} DN"),
    ):
        if its != theirs:
            raise RawFileError(f"its {what} is {its}, and that of the dark frames ({first.path.name}) {theirs}")
    shorter_s, longer_s = sorted((file.exposure_s, first.exposure_s))
    if 0 < shorter_s < longer_s / TIME_VARIES and longer_s > DARK_S:
        raise RawFileError(
            f"its exposure took {file.exposure_s:.3g} s, and that of the dark frames ({first.path.name}) "
            f"{first.exposure_s:.3g} s"
        )
    if file.sensor.cfa != first.sensor.cfa:
        raise RawFileError(f"its colour filters lie otherwise than those of the dark frames ({first.path.name})")
    off = max(abs(a - b) for a, b in zip(file.sensor.black, first.sensor.black, strict=True))
    if off > BLACK_VARIES:
        raise RawFileError(f"its black level is {off:g} DN from that of the dark frames ({first.path.name})")
