"""`exposure denoise`: the flags, and what is told while the files are done."""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from exposure.schedule import SERVED_PASSES

from .access import ServerError, ServerGoneError, ServerSlowError
from .batch import DONE, FAILED, HELD, PLANNED, TAKEN, TERMINAL_GONE, Batch, Outcome
from .inputs import Source, find_sources, prepare_folder, resolved, without_results
from .output import FORMATS
from .reach import add_server_flags, addresses, checked, client_for
from .recipe import Recipe, formats_of
from .results import OutputError, Results
from .triton import Client

MOST_NAMED = 10  # files that failed, in the last line


def denoise_files(options: argparse.Namespace) -> int:
    """Denoise every file that can be; report and skip the others. Flags that make no sense end it before any is read.

    Returns 0, or 1 where files were refused or the run cannot go on, 75 where the same command may do more later.
    """
    _open_standard_error()
    checked(options)
    recipe = _recipe(options)
    with contextlib.ExitStack() as stack:  # a server of the call's own ends after everything is told
        try:
            return _run(options, recipe, SharedClient(lambda: stack.enter_context(client_for(options))))
        except (ServerGoneError, OutputError) as error:
            _tell_ending(str(error), options.json)
            return os.EX_TEMPFAIL if _may_pass(error) else 1
        except KeyboardInterrupt:
            _tell_ending("it was interrupted; the same command goes on", options.json)
            raise
        finally:
            _drop_untold()


def _run(options: argparse.Namespace, recipe: Recipe, client: "SharedClient") -> int:
    """Find the files and do them."""
    dark = _dark_frames(options)
    sources, kept = _sources(options, dark)
    prepare_folder(options.out, make=not options.dry_run)
    with _report(len(sources), options.json) as report:
        batch = Batch(
            sources,
            recipe,
            options.out,
            client=client,
            watcher=report,
            in_flight=options.requests * len(addresses(options.server)),
            overwrite=options.overwrite,
            dry_run=options.dry_run,
            kept=kept,
            dark=dark,
        )
        try:
            batch.run()
        finally:
            report.summary()
    if report.counts[FAILED]:
        return 1
    return os.EX_TEMPFAIL if report.counts[TAKEN] else 0


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(**{flag.name: getattr(options, flag.name) for flag in fields(Recipe)})


def _may_pass(ending: ServerGoneError | OutputError) -> bool:
    """Whether the same command may do better later: not where servers refuse, or differ, which ends a batch, too."""
    cause = ending.__cause__
    return not isinstance(cause, ServerError) or isinstance(cause, ServerGoneError | ServerSlowError)


def _dark_frames(options: argparse.Namespace) -> list[Path]:
    """What --dark names, without results of this command, which may lie there, too."""
    if not options.dark:
        return []
    try:
        found = find_sources(options.dark, recursive=options.recursive)
    except ValueError as error:
        raise ValueError(f"--dark {error}") from error
    for source in found:
        if source.problem:
            raise ValueError(f"--dark {source.path}: {source.problem}")
    made = {resolved(path) for path in Results(options.out).listed()}
    dark = [source.path for source in found if resolved(source.path) not in made]
    if not dark:
        raise ValueError(f"--dark {options.dark[0]}: all that is there was made by this command")
    return dark


def _sources(options: argparse.Namespace, dark: Sequence[Path]) -> tuple[list[Source], set[Path]]:
    """What the command line names, without dark frames and results: whoever repeats a command with *.dng means the
    originals.

    Those that are left out for their names alone, and may be originals, too, come second.
    """
    covered = {resolved(path) for path in dark}
    named = find_sources(options.files, recursive=options.recursive)
    found = [source for source in named if resolved(source.path) not in covered]
    if not found:
        raise ValueError("all files that are named are dark frames, too")
    if len(found) < len(named):
        sentence = f"{len(named) - len(found)} of the files named are dark frames, left out"
        with contextlib.suppress(*TERMINAL_GONE):
            print(f"exposure: {sentence}", file=sys.stderr)
    made = Results(options.out).listed()
    sources = without_results(found, options.out, made)
    kept = set(sources)
    left = [source.path for source in found if source not in kept]
    if left:
        which = f"{left[0]} is" if len(left) == 1 else f"{left[0]} and {len(left) - 1} more are"
        known = {resolved(path) for path in left} <= {resolved(path) for path in made}
        what = "made by" if known else "named like results of"
        sentence = f"{which} {what} this command in {options.out}, left out; another --out exposes results once more"
        if not sources:
            raise ValueError(sentence)
        with contextlib.suppress(*TERMINAL_GONE):
            print(f"exposure: {sentence}", file=sys.stderr)
    return sources, {resolved(path) for path in left} - {resolved(path) for path in made}


class Report:
    """What people see: progress, a sentence for each file, a summary. With `as_json`, lines for scripts instead."""

    def __init__(self, files: int, as_json: bool, stream: TextIO) -> None:
        self.counts: Counter[str] = Counter()  # of files, by status
        self._failed: list[str] = []
        self._files, self._as_json, self._stream = files, as_json, stream
        self._started = time.monotonic()
        form = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
        self._bar: Any = tqdm(
            total=files, unit="file", file=stream, disable=not stream.isatty(), bar_format=form, smoothing=0.1
        )
        self._shown = 0.0

    def progress(self, share: float) -> None:
        """Move the bar on by a part of a file."""
        self._bar.update(share)
        self._shown += share

    def outcome(self, outcome: Outcome) -> None:
        """Tell what became of a file."""
        self.counts[outcome.status] += 1
        if outcome.status == FAILED:
            self._failed.append(str(outcome.source))
        missing = self.counts.total() - self._shown  # a file that failed, or was there, made no progress
        if missing > 0 and outcome.status != DONE:
            self.progress(min(missing, 1.0))
        if self._as_json:
            self._tell(outcome.as_json())
        elif outcome.status in (FAILED, TAKEN):
            self._complain(f"{outcome.source}: {outcome.reason}")
        elif outcome.status == HELD:
            self._tell(f"{outcome.source}: already done")
        else:
            alone = outcome.status == DONE and self._files == 1  # else it has mostly waited for the others
            took = f", {outcome.seconds:.1f} s" if alone else ""
            self._tell(f"{outcome.source}: {outcome.megapixels:.1f} MP, {outcome.choice}{took}")
            for path in outcome.results:
                plan = "would replace " if path in outcome.replaces else "would write "
                self._tell(f"  {'' if outcome.status == DONE else plan}{path}")
            if outcome.warning:
                self._complain(f"{outcome.source}: {outcome.warning}")

    def summary(self) -> None:
        """Counts, time and the files that failed, for more than one file."""
        with contextlib.suppress(*TERMINAL_GONE):
            self._bar.close()
        seconds = time.monotonic() - self._started
        if self._as_json or self._files < 2:
            return
        counted = [status for status in (DONE, PLANNED, HELD, TAKEN) if self.counts[status]]
        if counted:
            rate = f", {self.counts[DONE] / seconds * 3600:.0f} files an hour" if self.counts[DONE] else ""
            self._tell(f"{', '.join(f'{self.counts[status]} {status}' for status in counted)} in {seconds:.0f} s{rate}")
        if self._failed:
            more = len(self._failed) - MOST_NAMED
            names = ", ".join(self._failed[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
            self._complain(f"{len(self._failed)} of {self._files} files failed, for reasons told above: {names}")

    def _tell(self, line: str) -> None:
        """Results go to the standard output; where both are one terminal, the bar makes room."""
        with contextlib.suppress(*TERMINAL_GONE), tqdm.external_write_mode(self._stream):
            print(line, flush=True)

    def _complain(self, sentence: str) -> None:
        with contextlib.suppress(*TERMINAL_GONE):
            tqdm.write(f"exposure: {sentence}", file=self._stream)


@contextlib.contextmanager
def _report(files: int, as_json: bool) -> Iterator[Report]:
    """A report on a standard error of its own: LibRaw's remarks are held back by closing the common one at times."""
    sys.stderr.flush()
    stream = sys.stderr
    with contextlib.suppress(OSError):  # it may be no file at all
        stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace")
    try:
        yield Report(files, as_json, stream)
    finally:
        if stream is not sys.stderr:
            with contextlib.suppress(*TERMINAL_GONE):
                stream.close()


def _tell_ending(reason: str, as_json: bool) -> None:
    """Tell, last of all, why files were not looked at."""
    with contextlib.suppress(*TERMINAL_GONE):
        print(f"exposure: {reason}", file=sys.stderr, flush=True)
    if as_json:
        with contextlib.suppress(*TERMINAL_GONE):
            print(json.dumps({"status": "ended", "reason": reason}), flush=True)


def _open_standard_error() -> None:
    """Where the caller closed it (2>&-), open it on nothing: some other file would get its number, and what is told."""
    if sys.stderr is None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.set_inheritable(2, True)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace")


def _drop_untold() -> None:
    """Drop what nobody reads any more (as after `| head`): Python would try to tell it at its end, and fail then."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except TERMINAL_GONE:
            with contextlib.suppress(*TERMINAL_GONE):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class SharedClient:
    """The client of all files, made when the first good one wants it; where that failed, no other file tries again."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: Client | None = None
        self._refusal: Exception | None = None

    def __call__(self) -> Client:
        """Raises ServerGoneError: without a client, no file can be done."""
        with self._lock:
            if self._made is None and self._refusal is None:
                try:
                    self._made = self._make()
                except (ServerError, ValueError, OSError) as error:
                    self._refusal = error
            if self._made is None:
                raise ServerGoneError(str(self._refusal)) from self._refusal
            return self._made


def given_path(given: str) -> Path:
    """A path of the command line; an empty one, such as of a variable that is not set, is not the current folder."""
    if not given:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(given)


def add_parser(commands: Any) -> None:
    """The `denoise` subcommand."""
    this = commands.add_parser("denoise", help="expose RAW files longer", description="Expose RAW files longer.")
    this.add_argument(
        "files",
        type=given_path,
        nargs="+",
        metavar="FILE",
        help="Bayer RAW files that LibRaw reads, folders, or patterns",
    )
    this.add_argument("-r", "--recursive", action="store_true", help="look into the folders below folders, too")
    target = this.add_mutually_exclusive_group(required=True)
    target.add_argument("--ratio", type=float, help="target exposure / exposure of the file, at least 1")
    target.add_argument("--ev", type=float, help="the same in stops: 3 is a ratio of 8")
    target.add_argument(
        "--like",
        type=given_path,
        metavar="FILE",
        help="as much exposure as this RAW file of the same scene: time x ISO / f-number^2",
    )
    target.add_argument(
        "--auto",
        action="store_true",
        help="for each file the ratio that brings its middle to mid-grey, less where highlights would clip; 1 to 300",
    )
    known = this.add_mutually_exclusive_group()
    known.add_argument(
        "--gain", type=float, help="system gain in DN per electron, of all files (default: from each file)"
    )
    known.add_argument("--iso", type=float, help="ISO of the file, for calibrated cameras (default: from the file)")
    this.add_argument(
        "--passes", type=int, choices=SERVED_PASSES, default=Recipe.passes, help="network evaluations (default: 3)"
    )
    this.add_argument("--seed", type=int, default=Recipe.seed, help="of the injected photon noise (default: 0)")
    this.add_argument(
        "--strength",
        type=float,
        default=Recipe.strength,
        help="share of the denoised result, the rest is the brightened file (default: 1)",
    )
    this.add_argument(
        "--keep-exposure", action="store_true", help="write the file at its own exposure, denoised, with more bits"
    )
    this.add_argument(
        "--keep-defects",
        action="store_true",
        help="leave hot and dead pixels as they are; the ratio brightens them, too",
    )
    this.add_argument(
        "--dark",
        type=given_path,
        action="append",
        default=[],
        metavar="FILE",
        help="frames taken with the cap on, of the same camera and ISO, to be subtracted: files, folders, patterns",
    )
    this.add_argument(
        "--out",
        type=given_path,
        default=Path(),
        metavar="DIR",
        help="of the results, NAME_exposed.FORMAT (default: here)",
    )
    this.add_argument(
        "--format",
        dest="formats",
        type=formats_of,
        default=Recipe.formats,
        help=f"one or more of {','.join(FORMATS)} (default: dng)",
    )
    this.add_argument(
        "--preview", action="store_true", help="also write NAME_preview.png, before and after side by side"
    )
    this.add_argument("--overwrite", action="store_true", help="do again what is done, replace what is there")
    this.add_argument(
        "--dry-run", action="store_true", help="read and judge the files, tell the choices, write nothing"
    )
    this.add_argument("--json", action="store_true", help="tell the outcome of each file as a line of JSON")
    add_server_flags(this)
    this.set_defaults(run=denoise_files)
