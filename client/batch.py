"""Many files: reading, denoising and writing overlap, memory is bounded, each is done once, a bad one costs itself."""

import errno
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from exposure.files import reason_of, sha256

from . import output
from .access import ServerError, ServerGoneError
from .darkframes import DarkFrames, read_dark_frames
from .inputs import PREVIEW, Names, Source, is_text, resolved
from .rawfile import RawFile, RawFileError, Stamp, stamp_of
from .reader import Readers
from .recipe import LEVELS, Choice, Recipe
from .results import OutputError, Results, TakenError, claimed, remove_leftovers
from .sidecar import Sidecars, with_sidecars, write_copies
from .triton import Answer, Client

READERS = 2
WRITERS = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later file will fare better
MOST_BYTES_PER_PIXEL = 8  # of a result: a TIFF has three of 16 bits
TERMINAL_GONE = (OSError, ValueError)  # a terminal that is gone, or cannot show a name: the files are done nevertheless

DONE, HELD, FAILED, PLANNED, TAKEN = "done", "already done", "failed", "planned", "left to another run"


@dataclass(frozen=True)
class Outcome:
    """What became of one file: one of DONE, HELD, FAILED, PLANNED and TAKEN, and the sentence or the results.

    warning: a sentence about what was left out. replaces: results of a plan that are there already.
    """

    source: Path
    status: str
    results: tuple[Path, ...] = ()
    reason: str = ""
    choice: Choice | None = None
    megapixels: float = 0.0
    seconds: float = 0.0
    warning: str = ""
    replaces: tuple[Path, ...] = ()

    def as_json(self) -> str:
        """One line for scripts."""
        told: dict[str, object] = {
            "file": str(self.source),
            "status": self.status,
            "results": [str(path) for path in self.results],
        }
        if self.choice is not None:
            told |= {
                **self.choice.as_json(),
                "megapixels": round(self.megapixels, 3),
                "seconds": round(self.seconds, 3),
            }
        remarks = {"reason": self.reason, "warning": self.warning, "replaces": bool(self.replaces)}
        return json.dumps(told | {name: remark for name, remark in remarks.items() if remark})


class Watcher(Protocol):
    """Who is told how a batch goes; called from many threads, one at a time."""

    def progress(self, share: float) -> None:
        """A share of one file was done."""

    def outcome(self, outcome: Outcome) -> None:
        """One file has come to its end."""


@dataclass
class Batch:
    """A list of files, what is done to them and where results go.

    in_flight: files that are with the servers at once; about as many again are being read and written.
    client: called for the first file that needs it. kept: other files, which no result may replace.
    dark: frames whose excess over black is subtracted from each file.
    """

    sources: Sequence[Source]
    recipe: Recipe
    out: Path
    client: Callable[[], Client]
    watcher: Watcher
    in_flight: int = 2
    overwrite: bool = False
    dry_run: bool = False
    kept: Set[Path] = frozenset()
    dark: Sequence[Path] = ()

    def __post_init__(self) -> None:
        self._results = Results(self.out)
        self._targets = {
            source: source.targets(self.out, self.recipe.formats, self.recipe.preview) for source in self.sources
        }
        self._names = Names(self._targets)
        self._inputs = {resolved(path) for path in (*self.kept, *self.dark, *(source.path for source in self.sources))}
        self._stop = threading.Event()
        self._reason: ServerGoneError | OutputError | None = None  # for which it was set
        self._telling = threading.Lock()
        self._asking = threading.BoundedSemaphore(self.in_flight)
        self._writing = threading.BoundedSemaphore(WRITERS)
        self._readers = Readers(READERS)
        self._client: Client | None = None
        self._long: RawFile | None = None  # of --like
        self._dark: DarkFrames | None = None
        self._settings = ""

    def run(self) -> None:
        """Do all files. Raises ServerGoneError or OutputError when no further file can be done."""
        with closing(self._readers):
            self._settle()
            if not self.dry_run:
                remove_leftovers({self.out / source.folder for source in self.sources})
            workers = min(self.in_flight + READERS + WRITERS, len(self.sources))
            with ThreadPoolExecutor(workers, "exposure-file") as threads:
                try:
                    for _ in threads.map(self._one, self.sources):
                        pass
                except BaseException:
                    self._give_up()
                    raise

    def _end_for(self, reason: ServerGoneError | OutputError) -> None:
        """The first reason for which no further file can be done: the others need not each find it."""
        with self._telling:
            if not self._stop.is_set():
                self._reason = reason
                self._stop.set()

    def _give_up(self) -> None:
        """Let the threads end soon: what they wait for is taken from them."""
        self._stop.set()
        if self._client is not None:
            self._client.close()
        self._readers.close()

    def _settle(self) -> None:
        """Read --like and --dark; put the settings as text, by which results are told apart: files count by content."""
        settings = asdict(self.recipe)
        del settings["formats"], settings["preview"]  # each result is noted by itself
        settings["levels"] = LEVELS  # results of earlier versions had those of their source, however few
        if self.recipe.like is not None:
            try:
                settings["like"] = _content_of(self.recipe.like)
                self._long = self._readers.read(self.recipe.like)
            except RawFileError as error:
                raise ValueError(f"--like {self.recipe.like}: {error}") from error
        if self.dark:
            self._dark = read_dark_frames(self.dark, self._readers.read, _content_of)
            settings["dark"] = self._dark.contents
        self._settings = json.dumps(settings, sort_keys=True)

    def _one(self, source: Source) -> None:
        with self._names.turn(source):
            if self._stop.is_set():
                return
            try:
                outcome = self._process(source, self._targets[source])
            except Exception as error:  # whatever is odd about one file, the others get their turn
                if isinstance(error, ServerGoneError | OutputError):
                    self._end_for(error)
                if error is self._reason:
                    self._give_up()
                    raise
                if self._stop.is_set():  # by another thread, which tells why
                    return
                outcome = _refused(source, error)
            if outcome.status != FAILED:
                self._names.keep(source)
        with self._telling, suppress(*TERMINAL_GONE):
            self.watcher.outcome(outcome)

    def _process(self, source: Source, targets: list[Path]) -> Outcome:
        if source.problem:
            raise RawFileError(source.problem)
        self._refuse_inputs(targets)
        stamp, content = _known(source.path)
        self._names.refuse_taken(source)
        made_by = None if self.overwrite else self._results.made_by(content, self._settings, targets)
        if self.dry_run:
            return self._planned(source, targets, stamp, content, made_by)
        if made_by is not None and made_by == self._checkpoint():
            return Outcome(source.path, HELD, tuple(targets))
        started = time.monotonic()
        file, choice, sidecars = self._chosen(source, targets, stamp, content)
        network = self._checkpoint()
        with self._room(file), claimed([*targets, *sidecars.copies]):
            if not self.overwrite and self._results.made_by(content, self._settings, targets) == network:
                return Outcome(source.path, HELD, tuple(targets))  # by another run, meanwhile
            self._results.begin(content, self._settings, source.path, targets, overwrite=self.overwrite)
            try:
                answer = self._answer(file, choice)
                exposed = self.recipe.finish(file, answer, choice)
                with self._writing:
                    self._write(content, file, exposed, choice, targets)
                    write_copies(sidecars)
            except BaseException:
                self._results.abandon(targets)
                raise
            self._results.finish(targets, answer.checkpoint)
        seconds = time.monotonic() - started
        return Outcome(
            source.path,
            DONE,
            tuple(targets),
            choice=choice,
            megapixels=file.mosaic.size / 1e6,
            seconds=seconds,
            warning=sidecars.warning,
        )

    def _planned(self, source: Source, targets: list[Path], stamp: Stamp, content: str, made_by: str | None) -> Outcome:
        """What would be done. Only the servers know whether their network still is the one that made a result."""
        if made_by is not None:
            return Outcome(source.path, HELD, tuple(targets))
        file, choice, sidecars = self._chosen(source, targets, stamp, content)
        return Outcome(
            source.path,
            PLANNED,
            tuple(targets),
            choice=choice,
            megapixels=file.mosaic.size / 1e6,
            warning=sidecars.warning,
            replaces=tuple(target for target in targets if target.exists()),
        )

    def _chosen(
        self, source: Source, targets: Sequence[Path], stamp: Stamp, content: str
    ) -> tuple[RawFile, Choice, Sidecars]:
        """The file, what is asked for it, and what lies beside it, which a DNG takes along."""
        file = self._readers.read(source.path)
        if stamp_of(source.path) != stamp:  # as of a copy that was not complete: it would be noted by other content
            raise RawFileError("it changed while it was read; once it is whole, the same command does it")
        if self._dark is not None:
            file = self._dark.subtracted_from(file)
        choice = self.recipe.choose(file, self._long)
        results = [target for target in targets if target.suffix == ".dng"]
        sidecars = Sidecars(file)
        if results:
            sidecars = with_sidecars(file, results[0], new_levels=self.recipe.has_new_levels(file, choice))
        if not self.overwrite:
            self._results.refuse_others(content, source.path, targets)
        return sidecars.file, choice, sidecars

    def _checkpoint(self) -> str:
        """What the servers run; asked for each file, since servers may be started anew meanwhile.

        Servers that differ, or do not answer, end the batch.
        """
        self._client = self.client()  # which may have taken a while: a server was started
        if self._stop.is_set():
            raise ServerGoneError("the batch was ended")
        try:
            return self._client.checkpoint()
        except ServerError as error:
            raise ServerGoneError(str(error)) from error

    def _answer(self, file: RawFile, choice: Choice) -> Answer:
        with self._asking:
            if self._stop.is_set():
                raise ServerGoneError("the batch was ended")
            try:
                return self.client().answer(**self.recipe.request(file, choice), tile_done=self._progress)
            except ServerGoneError as error:
                self._end_for(error)  # before the next file is let in
                raise

    def _write(
        self, content: str, file: RawFile, exposed: output.Exposed, choice: Choice, targets: Sequence[Path]
    ) -> None:
        """Write the results; each is noted before it gets its name, so that it is known after a kill."""
        for target in targets:
            note = partial(self._results.renaming, content, target)
            if target.stem.endswith(PREVIEW):
                ratio = 1.0 if self.recipe.keep_exposure else choice.ratio  # both at one exposure
                output.write_preview(target, file, exposed, ratio, note)
            else:
                output.write(target, file, exposed, note)

    def _progress(self, share: float) -> None:
        with self._telling, suppress(*TERMINAL_GONE):
            self.watcher.progress(share)

    def _refuse_inputs(self, targets: Sequence[Path]) -> None:
        for target in targets:
            if resolved(target) in self._inputs:
                raise RawFileError(f"its result {target} is an input too; choose another --out")

    @contextmanager
    def _room(self, file: RawFile) -> Iterator[None]:
        """A full or read-only disk ends the batch in one sentence."""
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            full = error.errno in FULL
            if error.errno is None:  # some libraries tell no more than that writing failed
                full = shutil.disk_usage(self.out).free < MOST_BYTES_PER_PIXEL * file.mosaic.size
            if not full:
                raise
            reason = (error.strerror or os.strerror(errno.ENOSPC)).lower()
            raise OutputError(f"{self.out} takes no more files ({reason})") from error


def _refused(source: Source, error: Exception) -> Outcome:
    known = isinstance(error, ServerError | ValueError | OSError)
    reason = str(error) if known else f"it cannot be processed ({error!r})"
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename or source.path}: {reason_of(error)}"
    return Outcome(source.path, TAKEN if isinstance(error, TakenError) else FAILED, reason=reason)


def _content_of(path: Path) -> str:
    return _known(path)[1]


def _known(path: Path) -> tuple[Stamp, str]:
    """Stamp and SHA-256 of a file that can be read to its end, as a pipe cannot. Raises RawFileError."""
    if not is_text(path.absolute()):
        raise RawFileError("its path is not in UTF-8, as LibRaw and the table of results want it; rename it")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RawFileError("it is not a regular file")
        return stamp_of(path), sha256(path)  # in this order
    except OSError as error:
        raise RawFileError(f"it cannot be opened ({reason_of(error)})") from error
