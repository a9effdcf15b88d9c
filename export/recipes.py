"""What is done for each target, stage by stage: graph, engine, accuracy gate."""

import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from exposure.files import sha256
from exposure.kernels.machine import LIBRARIES, RTX_CARDS, Machine, library_version, this_machine
from exposure.kernels.manifest import EngineError
from exposure.networks import Network
from exposure.sensor import SMALLEST_SIDE, plane_side
from exposure.tiles import TILE_PIXELS, longest_side, plan_tiles

from .gate import pass_gate
from .graph import FP32_AGREEMENT_DB, HALF_AGREEMENT_DB, agreement, onnx_from_network, onnx_runner
from .precision import GraphError, Run, choose_islands, half_runner
from .scene import REAL_CROP, low_light_crops, real_scenes, simulated_scenes
from .tensorrt_engine import PLAN, PlanOptions, plan_from_onnx

RTX_A5000 = 86
GRAPH = "model.onnx"
USUAL_FRAME = (4240, 2832)
A = TypeVar("A")


@dataclass(frozen=True)
class Settings:
    """frames: mosaic sizes, (width, height), to make ready for; the first is tuned for.

    tile: the most megapixels of a request, as callers send with their own --tile: larger frames come in tiles.
    fp32: also where BF16 or FP16 is fast and passes the gate.
    compute_capability: card of a tensorrt-rtx plan. level, portable: see PlanOptions.
    """

    frames: tuple[tuple[int, int], ...] = (USUAL_FRAME,)
    tile: float = TILE_PIXELS / 1e6
    fp32: bool = False
    compute_capability: int | None = None
    level: int | None = None
    portable: bool = False

    def profile(self, multiple: int) -> dict[str, tuple[int, int]]:
        """Plane sides, (height, width), that an engine takes: the smallest, the usual and the largest.

        The largest is a square that holds whatever is sent of any camera's frame, and what the gate runs.
        """
        smallest, longest = (plane_side(side, multiple) for side in (SMALLEST_SIDE, longest_side(self._tile_pixels)))
        largest = max(longest, REAL_CROP // 2)
        return {"smallest": (smallest, smallest), "usual": self.planes(multiple)[0], "largest": (largest, largest)}

    @property
    def _tile_pixels(self) -> int:
        return round(1e6 * self.tile)

    def planes(self, multiple: int) -> list[tuple[int, int]]:
        """Plane sides, (height, width), of what callers send of each frame."""
        return [(plane_side(height, multiple), plane_side(width, multiple)) for height, width in self._requests()]

    def gated_frame(self) -> tuple[int, int]:
        """Height and width of the largest mosaic that is sent at once."""
        return max(self._requests(), key=math.prod)

    def _requests(self) -> list[tuple[int, int]]:
        """Height and width of what the client sends of each frame: the whole, or its first tile."""
        tiles = [plan_tiles((height, width), self._tile_pixels)[0] for width, height in self.frames]
        return [(tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start) for tile in tiles]


@dataclass(frozen=True)
class Built:
    """What a recipe leaves to be written into the manifest."""

    precision: str
    runs_on: dict[str, str]
    accuracy: dict[str, Any]
    islands: list[str] = field(default_factory=list)
    convolutions: str = ""


def onnx_recipe(network: Network, folder: Path, settings: Settings, checkpoint: str) -> Built:
    """The FP32 graph alone."""
    del settings  # its sides are free
    return Built("f32", _runs_on("onnx"), _traced(network, folder / GRAPH, checkpoint))


def openvino_recipe(network: Network, folder: Path, settings: Settings, checkpoint: str) -> Built:
    """OpenVINO's own format; computed by whatever is fastest here of what the gate lets pass."""
    from .arithmetic import Arithmetic, cpu_attempts
    from .openvino_engine import openvino_from_onnx

    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / GRAPH
        traced = _traced(network, graph, checkpoint)

        def judged(chosen: Arithmetic) -> dict[str, Any]:
            with stage("convert to OpenVINO"):
                openvino_from_onnx(graph, folder, wide=chosen.wide)
            scenes = _gate(network, chosen.opened(folder), chosen.precision, settings, f"the engine {chosen}")
            return traced | {"ran_on": "this processor", "wide": str(chosen.wide or "everything"), "scenes": scenes}

        with stage("time what could compute it"):
            attempts, timed = cpu_attempts(network, graph, settings.planes(network.multiple)[0], fp32=settings.fp32)
        chosen, accuracy = _first_to_pass(attempts, judged)
    convolutions = "winograd" if chosen.winograd else ""
    return Built(chosen.precision, _runs_on("openvino"), accuracy | timed, convolutions=convolutions)


def plan_recipe(target: str, network: Network, folder: Path, settings: Settings, checkpoint: str) -> Built:
    """A plan from a strongly typed graph, the first of `plan_attempts` that the gate lets pass, run on the card where
    there is one that it runs on.
    """
    cards: tuple[int, ...] = ()
    if target == "tensorrt-rtx":
        cards = RTX_CARDS if settings.portable else (settings.compute_capability or _rtx_card(this_machine()),)

    def judged(chosen: Precision) -> dict[str, Any]:
        print(f"    {chosen}")
        return _plan(target, network, folder, settings, checkpoint, cards, chosen)

    chosen, accuracy = _first_to_pass(plan_attempts(network, settings), judged)
    machine = this_machine()
    runs_on = _runs_on(target) | {
        "compute_capability": " ".join(map(str, cards)) or machine.compute_capability,
        "card": "" if cards else machine.card,
        "portable": "yes" if settings.portable else "no",
        "cuda": machine.cuda,
        "driver": machine.driver,
    }
    return Built(chosen.precision, runs_on, accuracy, list(chosen.islands))


def _first_to_pass(attempts: Sequence[A], judged: Callable[[A], dict[str, Any]]) -> tuple[A, dict[str, Any]]:
    """The first attempt that the gate lets pass, and what was measured, with the sentences about those before it.

    Raises GraphError, that of the last one, where none passes.
    """
    refused: list[str] = []
    *early, last = attempts
    for attempt in early:
        try:
            return attempt, judged(attempt) | {"refused": refused}
        except GraphError as error:
            print(f"    {error}")
            refused.append(str(error))
    return last, judged(last) | {"refused": refused}


@dataclass(frozen=True)
class Precision:
    """What a plan computes in: precision, "f16" or "f32", of the body; islands: its modules that stay FP32."""

    precision: str
    islands: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"in {self.precision.upper()}" + (f", FP32 in {', '.join(self.islands)}" if self.islands else "")

    def imitated(self, network: Network, graph: Path) -> tuple[Run, str]:
        """The same arithmetic without a card, and how."""
        if self.precision == "f16":
            return half_runner(network, self.islands), "imitated in torch"
        return onnx_runner(graph), "its graph in ONNX Runtime"


def plan_attempts(network: Network, settings: Settings) -> list[Precision]:
    """Most FP16 first: all but the islands that measurement asks for; with the network's start among them; none."""
    attempts = [Precision("f32")]
    if not settings.fp32:
        darkest = list(low_light_crops(network.photon_unit, network.multiple))[-1:]
        pixels = max(map(math.prod, settings.planes(network.multiple)))
        with stage("find the layers that must stay in FP32"):
            islands = choose_islands(network, darkest, pixels)
        rest = [name for name in islands if name not in network.body_start]
        attempts = [Precision("f16", kept) for kept in ((*islands,), (*network.body_start, *rest))] + attempts
    return list(dict.fromkeys(attempts))


def _plan(
    target: str,
    network: Network,
    folder: Path,
    settings: Settings,
    checkpoint: str,
    cards: tuple[int, ...],
    chosen: Precision,
) -> dict[str, Any]:
    """Build the plan and hold it against the gate. Returns what was measured."""
    half = chosen.precision == "f16"
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / GRAPH
        traced = _traced(network, graph, checkpoint, half=half, islands=chosen.islands)
        options = PlanOptions(
            **settings.profile(network.multiple),
            compute_capabilities=cards,
            level=settings.level,
            portable=settings.portable,
        )
        what = f"{target} for SM {', '.join(map(str, cards))}" if cards else target
        with stage(f"build {what}"):
            plan_from_onnx(graph, folder / PLAN, target, options, this_machine().card)
        runner, ran_on = _plan_runner(target, folder / PLAN, cards, functools.partial(chosen.imitated, network, graph))
    scenes = _gate(network, runner, chosen.precision, settings, f"the {chosen.precision.upper()} engine ({ran_on})")
    return traced | {"ran_on": ran_on, "scenes": scenes}


def _plan_runner(
    target: str, plan: Path, cards: tuple[int, ...], imitated: Callable[[], tuple[Run, str]]
) -> tuple[Run, str]:
    """The plan itself on a card that it was built for, else its arithmetic without one."""
    from .tensorrt_runtime import PlanEngine, cupy_is_installed

    machine = this_machine()
    if machine.card and cupy_is_installed() and (not cards or int(machine.compute_capability) in cards):
        return PlanEngine(plan, target), machine.card
    why = "no CuPy" if machine.card and not cupy_is_installed() else "no such card here"
    runner, how = imitated()
    print(f"    {why}: the graph's arithmetic is judged ({how}), and the plan itself has not run")
    return runner, f"{how}: {why}"


def _traced(network: Network, graph: Path, checkpoint: str, **how: Any) -> dict[str, Any]:
    """Write the graph and hold it against torch. Returns its SHA-256 and the agreement in dB, for the manifest."""
    with stage("trace the network to ONNX"):
        onnx_from_network(network, graph, checkpoint=checkpoint, **how)
    least = HALF_AGREEMENT_DB if how.get("half") else FP32_AGREEMENT_DB
    with stage("hold the graph against torch"):
        reached = agreement(network, onnx_runner(graph), least, "the ONNX graph")
    print(f"    it agrees with FP32 torch to {reached:.1f} dB")
    return {"graph": sha256(graph), "graph_db": round(reached, 1)}


def _gate(network: Network, run: Run, precision: str, settings: Settings, what: str) -> list[dict[str, Any]]:
    scenes = chain(real_scenes(), simulated_scenes(settings.gated_frame()))
    print(f"  hold {what} against FP32 torch, pass by pass ...")
    return pass_gate(network, run, precision, scenes, what)


def _runs_on(target: str) -> dict[str, str]:
    library = LIBRARIES.get(target, ("",))[0]
    return {"library": library, "library_version": library_version(target)}


def _rtx_card(machine: Machine) -> int:
    """The machine's own card, or an RTX A5000 where there is none. Raises EngineError for one that is not supported."""
    here = int(machine.compute_capability or RTX_A5000)
    if here not in RTX_CARDS:
        raise EngineError(
            f"TensorRT for RTX does not build for {machine.card} of compute capability {here}; use --target tensorrt "
            "(deploy/README.md), or name other cards with --compute-capability or --portable"
        )
    return here


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"  {what} ...", end="", flush=True)
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        print()
        raise
    print(f" {time.perf_counter() - started:.1f} s")
