"""`exposure denoise`: the flags, and what is told while the files are done."""

import argparse
import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from exposure.schedule import SERVED_PASSES

from .access import ServerError, ServerGoneError
from .batch import DONE, FAILED, HELD, PLANNED, UNTOLD, Batch, Outcome
from .inputs import Source, find_sources, prepare_folder, without_results
from .manifest import Manifest, OutputError
from .output import FORMATS
from .reach import add_server_flags, addresses, checked, client_for
from .recipe import Recipe, formats_of
from .triton import IN_FLIGHT, Client


def denoise_files(options: argparse.Namespace) -> int:
    """Denoise every file that can be; report and skip the others. Flags that make no sense end it before any is read.

    Returns 0, or 1 where files were refused or the run cannot go on, 75 where it ended and may go on later.
    """
    checked(options)
    recipe = _recipe(options)
    sources = _sources(options)
    prepare_folder(options.out, make=not options.dry_run)
    ending: ServerGoneError | OutputError | None = None
    with _report(len(sources), options.json) as report, contextlib.ExitStack() as stack:
        batch = Batch(
            sources,
            recipe,
            options.out,
            client=_once(lambda: stack.enter_context(client_for(options))),
            watcher=report,
            in_flight=IN_FLIGHT * len(addresses(options.server)),
            overwrite=options.overwrite,
            dry_run=options.dry_run,
        )
        try:
            batch.run()
        except (ServerGoneError, OutputError) as error:
            ending = error
        finally:
            report.summary()
        if ending is not None:
            report.ended(str(ending))
            return os.EX_TEMPFAIL if _may_pass(ending) else 1
    return 1 if report.failures else 0


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(
        ratio=options.ratio,
        ev=options.ev,
        like=options.like,
        auto=options.auto,
        gain=options.gain,
        iso=options.iso,
        passes=options.passes,
        seed=options.seed,
        strength=options.strength,
        keep_exposure=options.keep_exposure,
        formats=formats_of(options.format),
        preview=options.preview,
    )


def _may_pass(ending: ServerGoneError | OutputError) -> bool:
    """Whether the same command may do better later: not where servers refuse, or differ, which ends a batch, too."""
    cause = ending.__cause__
    return not isinstance(cause, ServerError) or isinstance(cause, ServerGoneError)


def _sources(options: argparse.Namespace) -> list[Source]:
    """What the command line names, without results: whoever repeats a command with *.dng means the originals."""
    found = find_sources(options.files, options.out, recursive=options.recursive)
    sources = without_results(found, options.out, Manifest(options.out).results())
    kept = set(sources)
    left = [source.path for source in found if source not in kept]
    if left:
        which = f"{left[0]} is a result" if len(left) == 1 else f"{left[0]} and {len(left) - 1} more are results"
        sentence = f"{which} of this command in {options.out}, left out; another --out exposes results once more"
        if not sources:
            raise ValueError(sentence)
        print(f"exposure: {sentence}", file=sys.stderr)
    return sources


class Report:
    """What people see: progress, a sentence for each file, a summary. With `as_json`, lines for scripts instead."""

    def __init__(self, files: int, as_json: bool, stream: TextIO) -> None:
        self.failures: list[Outcome] = []
        self._files, self._as_json, self._stream = files, as_json, stream
        self._counts: Counter[str] = Counter()
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
        self._counts[outcome.status] += 1
        missing = sum(self._counts.values()) - self._shown  # a file that failed, or was there, made no progress
        if missing > 0 and outcome.status != DONE:
            self.progress(min(missing, 1.0))
        if outcome.status == FAILED:
            self.failures.append(outcome)
        if self._as_json:
            print(outcome.as_json(), flush=True)
        elif outcome.status == FAILED:
            self._say(f"exposure: {outcome.source}: {outcome.reason}")
        elif outcome.status == HELD:
            tqdm.write(f"{outcome.source}: already done")
        else:
            took = f", {outcome.seconds:.1f} s" if outcome.status == DONE else ""
            tqdm.write(f"{outcome.source}: {outcome.megapixels:.1f} MP, {outcome.choice}{took}")
            for path in outcome.results:
                plan = "would replace " if path in outcome.replaces else "would write "
                tqdm.write(f"  {'' if outcome.status == DONE else plan}{path}")
            if outcome.warning:
                self._say(f"exposure: {outcome.source}: {outcome.warning}")

    def summary(self) -> None:
        """Counts, time and the files that failed, for more than one file."""
        self._bar.close()
        seconds = time.monotonic() - self._started
        if self._as_json or self._files < 2:
            return
        told = ", ".join(f"{self._counts[status]} {status}" for status in (DONE, PLANNED, HELD) if self._counts[status])
        if told:
            rate = f", {self._counts[DONE] / seconds * 3600:.0f} files an hour" if self._counts[DONE] else ""
            print(f"{told} in {seconds:.0f} s{rate}")
        if self.failures:
            self._say(f"exposure: {len(self.failures)} of {self._files} files failed")

    def ended(self, reason: str) -> None:
        """Tell, last of all, why files were not looked at."""
        with contextlib.suppress(*UNTOLD):
            self._say(f"exposure: {reason}")
            if self._as_json:
                print(json.dumps({"status": "ended", "reason": reason}), flush=True)

    def _say(self, sentence: str) -> None:
        tqdm.write(sentence, file=self._stream)


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
            stream.close()


def _once(make: Callable[[], Client]) -> Callable[[], Client]:
    """The client, made when the first good file wants it; without one, no file can be done."""
    lock = threading.Lock()

    @functools.cache
    def made() -> Client | ServerError:
        try:
            return make()
        except ServerError as error:  # kept, too: the other files need not try again
            return error

    def client() -> Client:
        with lock:
            found = made()
        if isinstance(found, ServerError):
            raise ServerGoneError(str(found)) from found
        return found

    return client


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
    target.add_argument("--like", type=given_path, metavar="FILE", help="as long as this RAW file was exposed")
    target.add_argument("--auto", action="store_true", help="as bright as the histogram allows, at most 300 times")
    known = this.add_mutually_exclusive_group()
    known.add_argument("--gain", type=float, help="system gain in DN per electron (default: from the file)")
    known.add_argument("--iso", type=float, help="ISO of the file, for calibrated cameras (default: from the file)")
    this.add_argument("--passes", type=int, choices=SERVED_PASSES, default=3, help="network evaluations (default: 3)")
    this.add_argument("--seed", type=int, default=0, help="of the injected photon noise (default: 0)")
    this.add_argument(
        "--strength",
        type=float,
        default=1,
        help="share of the denoised result, the rest is the brightened file (default: 1)",
    )
    this.add_argument(
        "--keep-exposure", action="store_true", help="write the file at its own exposure, denoised, with more bits"
    )
    this.add_argument("--out", type=given_path, default=Path(), metavar="DIR", help="where results go (default: here)")
    this.add_argument("--format", default="dng", help=f"one or more of {','.join(FORMATS)} (default: dng)")
    this.add_argument("--preview", action="store_true", help="also write before and after side by side")
    this.add_argument("--overwrite", action="store_true", help="do again what is done, replace what is there")
    this.add_argument(
        "--dry-run", action="store_true", help="read and judge the files, tell the choices, write nothing"
    )
    this.add_argument("--json", action="store_true", help="tell the outcome of each file as a line of JSON")
    add_server_flags(this)
    this.set_defaults(run=denoise_files)
