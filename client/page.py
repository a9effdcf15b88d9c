"""`exposure ui`: a page on which one RAW file at a time is exposed longer. The home of Gradio.

What is done to a file is what `exposure denoise` does; here are only the widgets and the pictures.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from starlette.middleware import Middleware

from exposure.schedule import SERVED_PASSES
from exposure.sensor import Sensor, pack

from .before_after import before_after
from .inputs import Source
from .output import FORMATS, Exposed, brightened, write
from .page_guard import Guard
from .rawfile import RawFile
from .reader import Readers, readers
from .recipe import Choice, Recipe
from .stopwatch import Stopwatch
from .triton import Answer, Client, ServerError

AUTOMATIC, RATIO, EV = "automatic", "ratio", "EV"
STOPS = np.arange(-12, 0.25, 0.25)  # edges of the histogram, below white
LARGEST_UPLOAD = 1 << 30  # bytes: three times the largest Bayer files, those of 150 MP with 16 bits
UPLOADS_KEPT_S = 86_400  # what a page left open keeps of files that it no longer shows


def show(client: Client, folder: Path, host: str, port: int) -> None:
    """Serve the page until the process is told to end. folder: of temporary files, GRADIO_TEMP_DIR."""
    with readers(2) as children:
        blocks = _layout(Desk(client, children, folder))
        address = _launched(blocks, folder, host.strip("[]"), port)
        try:
            print(f"the page is at {address}; stop with Ctrl-C", flush=True)
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)


def _launched(blocks: gr.Blocks, folder: Path, host: str, port: int) -> str:
    """Begin to serve the page; its address."""
    shown = f"[{host}]" if ":" in host else host  # IPv6
    try:
        with _without_proxies():
            _, address, _ = blocks.launch(
                server_name=shown,
                server_port=port,
                allowed_paths=[str(folder)],
                max_file_size=LARGEST_UPLOAD,
                app_kwargs={"middleware": [Middleware(Guard, host=host, folder=folder, largest=LARGEST_UPLOAD)]},
                theme=gr.themes.Base(font="sans-serif", font_mono="monospace"),  # others are fetched from Google
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
            )
    except Exception as error:  # of many kinds, by what is odd about the address
        reason = "" if isinstance(error, OSError) else f" ({error})"
        raise OSError(f"cannot listen on {shown}:{port}{reason}; try another --port or --host") from error
    return str(address)


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Gradio asks its page whether it is there, which no proxy can tell."""
    names = ("NO_PROXY", "no_proxy")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, "*"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept while a tab shows a file. folder: of its results; answer: to what was `asked`."""

    folder: Path
    asked: tuple[object, ...]
    answer: Answer


@dataclass
class Shown:
    """What the page shows of one file; nothing of it where the file was refused."""

    told: str
    pair: dict[str, str] | None = None
    histogram: pd.DataFrame | None = None
    timings: str = ""
    results: list[str] | None = None
    kept: Kept | None = None

    def values(self) -> tuple[Any, ...]:
        """One for each output of `_layout`."""
        return self.told, self.pair, self.histogram, self.timings, self.results, self.kept


@dataclass
class Desk:
    """What the buttons do. folder: of temporary files."""

    client: Client
    readers: Readers
    folder: Path

    def look(self, upload: str | None, earlier: Kept | None) -> tuple[Any, ...]:
        """A file was dropped: what it says of itself, or why it is refused."""
        remove(earlier)
        if upload is None:
            return Shown("").values()
        try:
            file = self.readers.read(Path(upload))
            return Shown(f"{_described(file)}\nautomatic: {Recipe(auto=True).choose(file)}").values()
        except (ValueError, OSError) as error:
            return Shown(_refusal(upload, error)).values()

    def expose(
        self,
        upload: str | None,
        target: str,
        ratio: float | None,
        ev: float | None,
        gain: float | None,
        passes: int,
        strength: float,
        correct: bool,
        formats: Sequence[str],
        earlier: Kept | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio is asked for one
    ) -> tuple[Any, ...]:
        """The button was pressed: the result, or why there is none.

        Where only strength or formats have changed, the server's earlier answer serves.
        """
        if upload is None:
            return Shown("drop a RAW file first", kept=earlier).values()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            recipe = Recipe(
                **_target(target, ratio, ev),
                gain=gain or None,
                passes=passes,
                strength=strength,
                keep_defects=not correct,
                formats=tuple(formats),
            )
            shown = self._exposed(Path(upload), recipe, folder, earlier, progress)
        except (ServerError, ValueError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            return Shown(_refusal(upload, error), kept=earlier).values()
        remove(earlier)
        return shown.values()

    def _exposed(self, path: Path, recipe: Recipe, folder: Path, earlier: Kept | None, progress: gr.Progress) -> Shown:
        watch = Stopwatch()
        progress(0, desc="reading")
        with watch.timed("read the RAW file"):
            file = self.readers.read(path)
        with watch.timed("choose ratio and gain, find defective pixels"):
            choice = recipe.choose(file)
        asked = (path, choice.ratio, choice.gain, recipe.passes, recipe.seed, recipe.keep_defects)
        if earlier is not None and (*earlier.asked, earlier.answer.checkpoint) == (*asked, self.client.checkpoint()):
            answer = earlier.answer
        else:
            answer = self._answer(file, recipe, choice, watch, progress)
        progress(1, desc="writing")
        exposed = recipe.finish(file, answer, choice)
        results = Source(path).targets(folder, recipe.formats, recipe.preview)
        for result in results:
            with watch.timed(f"write the {result.suffix[1:].upper()}"):
                write(result, file, exposed)
        with watch.timed("develop both pictures"):
            pair = _pair(file, exposed, choice, folder)
        told = f"{_described(file)}\n{choice}"
        paths = [str(result) for result in results]
        kept = Kept(folder, asked, answer)
        return Shown(told, pair, histogram(file, exposed, choice.ratio), _table(watch), paths, kept)

    def _answer(self, file: RawFile, recipe: Recipe, choice: Choice, watch: Stopwatch, progress: gr.Progress) -> Answer:
        shares = [0.0]

        def tile_done(share: float) -> None:
            shares.append(share)
            progress(sum(shares), desc="the server computes")

        progress(0, desc="the server computes")
        with watch.request(f"request, {recipe.passes} pass{'es' * (recipe.passes > 1)}", self.client):
            return self.client.answer(**recipe.request(file, choice), tile_done=tile_done)


def histogram(file: RawFile, exposed: Exposed, ratio: float) -> pd.DataFrame:
    """Share of pixels by brightness, of the file as it is, brightened, and exposed; black and below is left out."""
    series = {
        "file": (file.mosaic, file.sensor, 1.0),
        "brightened": (file.mosaic, file.sensor, ratio),
        "exposed": (exposed.mosaic, exposed.sensor, 1.0),
    }
    return pd.concat(
        pd.DataFrame({"stops below white": STOPS[:-1], "% of pixels": _shares(*one), "picture": name})
        for name, one in series.items()
    )


def _shares(mosaic: NDArray[np.uint16], sensor: Sensor, ratio: float) -> NDArray[np.float64]:
    signal = pack(mosaic, sensor, ratio)
    counts, _ = np.histogram(np.log2(signal[signal > 0]), STOPS)
    return 100 * counts / signal.size


def _pair(file: RawFile, exposed: Exposed, choice: Choice, folder: Path) -> dict[str, str]:
    """Addresses of the brightened file and the result as the browser gets them."""
    before = brightened(file, choice.ratio)
    pictures = {"before": Exposed(file.sensor, before, exposed.noise_profile, 0), "after": exposed}
    for name, picture in pictures.items():
        write(folder / f"{name}.jpg", file, picture)
    return {name: f"/gradio_api/file={quote(str(folder / name))}.jpg" for name in pictures}


def _table(watch: Stopwatch) -> str:
    rows = (f"| {what.replace('  ', '&emsp;')} | {1000 * spent:.1f} |" for what, spent in watch.seconds.items())
    return "\n".join(["| stage | ms |", "|---|--:|", *rows])


def _described(file: RawFile) -> str:
    height, width = file.mosaic.shape
    known = (f"ISO {file.iso:g}" * (file.iso > 0), f"{file.exposure_s:.3g} s" * (file.exposure_s > 0))
    return ", ".join(
        part for part in (file.path.name, f"{width}x{height}", f"{file.make} {file.model}".strip(), *known) if part
    )


def _refusal(upload: str, error: Exception) -> str:
    return f"{Path(upload).name}: {str(error).replace(' --', ' ').removeprefix('--')}"  # the page has no flags


def _target(target: str, ratio: float | None, ev: float | None) -> dict[str, Any]:
    wanted: dict[str, dict[str, Any]] = {AUTOMATIC: {"auto": True}, RATIO: {"ratio": ratio}, EV: {"ev": ev}}
    if None in wanted[target].values():
        raise ValueError(f"{target} is empty; give a number")
    return wanted[target]


def remove(kept: Kept | None) -> None:
    """Remove the results that a page no longer shows."""
    if kept is not None:
        shutil.rmtree(kept.folder, ignore_errors=True)


def _layout(desk: Desk) -> gr.Blocks:
    with gr.Blocks(
        title="exposure", fill_width=True, analytics_enabled=False, delete_cache=(600, UPLOADS_KEPT_S)
    ) as blocks:
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                upload = gr.File(label="RAW file", elem_id="upload")
                target = gr.Radio([AUTOMATIC, RATIO, EV], value=AUTOMATIC, label="Target exposure", elem_id="target")
                ratio = gr.Number(100, label="times the exposure of the file", visible=False, elem_id="ratio")
                ev = gr.Number(5, label="stops above the exposure of the file", visible=False, elem_id="ev")
                gain = gr.Number(0, label="Gain in DN per electron", info="0: from the file", elem_id="gain")
                passes = gr.Radio(list(SERVED_PASSES), value=3, label="Passes", elem_id="passes")
                strength = gr.Slider(
                    0, 1, 1, step=0.05, label="Strength", info="the rest is the brightened file", elem_id="strength"
                )
                correct = gr.Checkbox(True, label="Correct hot and dead pixels", elem_id="correct")
                formats = gr.CheckboxGroup(list(FORMATS), value=["dng", "tiff"], label="Download as")
                button = gr.Button("Expose", variant="primary", elem_id="expose")
            with gr.Column(scale=3):
                told = gr.Textbox(label="The file", lines=2, interactive=False, elem_id="told")
                pair = before_after(elem_id="pair")
                results = gr.File(
                    label="Results", file_count="multiple", interactive=False, height=180, elem_id="results"
                )
                with gr.Row():
                    plot = gr.LinePlot(
                        x="stops below white",
                        y="% of pixels",
                        color="picture",
                        label="Histogram of the RAW data",
                        elem_id="histogram",
                    )
                    timings = gr.Markdown(elem_id="timings")
        kept = gr.State(None, delete_callback=remove)
        shown = [told, pair, plot, timings, results, kept]
        settings = [target, ratio, ev, gain, passes, strength, correct, formats]
        gr.on([upload.upload, upload.clear], desk.look, [upload, kept], shown, api_visibility="private")
        button.click(desk.expose, [upload, *settings, kept], shown, api_visibility="private")
        target.change(
            lambda chosen: (gr.update(visible=chosen == RATIO), gr.update(visible=chosen == EV)),
            target,
            [ratio, ev],
            api_visibility="private",
        )
    return blocks
