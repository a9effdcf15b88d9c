"""The flags of build_engine.py: which targets they are for, and the command line that builds an engine again."""

import argparse
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.kernels.machine import RTX_CARDS
from exposure.kernels.manifest import EngineError, build_command
from exposure.sensor import SMALLEST_SIDE
from exposure.tiles import SMALLEST_TILE

from .recipes import RTX_A5000, Settings

TARGETS = ("openvino", "tensorrt-rtx", "tensorrt", "onnx")
AS_SHIPPED = Settings()
FLAGS = {  # of each field of Settings, with the targets that it changes
    "frames": ("--frame", ("openvino", "tensorrt-rtx", "tensorrt")),
    "tile": ("--tile", ("openvino", "tensorrt-rtx", "tensorrt")),
    "fp32": ("--fp32", ("openvino", "tensorrt-rtx", "tensorrt")),
    "compute_capability": ("--compute-capability", ("tensorrt-rtx",)),
    "level": ("--optimization-level", ("tensorrt-rtx", "tensorrt")),
    "portable": ("--portable", ("tensorrt-rtx", "tensorrt")),
}


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that a command line asks for. Raises EngineError where one was given beside --check,
    or where no tiles suit a frame.
    """
    given: dict[str, Any] = {
        field.name: value for field in fields(Settings) if (value := getattr(options, field.name)) is not None
    }
    if options.check and given:
        raise EngineError(f"--check builds nothing; {FLAGS[next(iter(given))][0]} has no meaning beside it")
    settings = Settings(**given | ({"frames": tuple(given["frames"])} if "frames" in given else {}))
    try:
        settings.gated_frame()
    except ValueError as error:  # of its tiles
        raise EngineError(str(error)) from error
    return settings


def refuse_idle_settings(target: str, settings: Settings) -> None:
    """Raise EngineError for a setting that would change nothing of an engine of this target."""
    for name, (flag, targets) in FLAGS.items():
        if target not in targets and getattr(settings, name) != getattr(AS_SHIPPED, name):
            raise EngineError(f"{flag} is for {', '.join(targets)}; it changes nothing of an engine for {target}")
    if settings.portable and settings.compute_capability:
        raise EngineError("--portable builds for every card; --compute-capability has no meaning beside it")


def rebuild_command(checkpoint: Path, target: str, repository: Path, settings: Settings) -> str:
    """The command line that builds this engine again, from the project's folder."""
    words = [] if checkpoint.resolve() == CHECKPOINT.resolve() else ["--checkpoint", str(checkpoint.resolve())]
    if settings.frames != AS_SHIPPED.frames:
        words += [word for width, height in settings.frames for word in ("--frame", f"{width}x{height}")]
    words += [] if settings.tile == AS_SHIPPED.tile else ["--tile", f"{settings.tile:g}"]
    words += ["--fp32"] if settings.fp32 else []
    words += ["--compute-capability", str(settings.compute_capability)] if settings.compute_capability else []
    words += [] if settings.level is None else ["--optimization-level", str(settings.level)]
    words += ["--portable"] if settings.portable else []
    return build_command(repository, target, words)


def parser() -> argparse.ArgumentParser:
    """A setting that is not given is None."""
    parser = argparse.ArgumentParser(
        prog="build_engine", description="Build an engine from a checkpoint and install it in the model repository."
    )
    add = parser.add_argument
    known = "a published .pt or a .safetensors (default: the shipped one)"
    add("--checkpoint", type=Path, default=CHECKPOINT, help=known)
    add(
        "--target",
        choices=TARGETS,
        help="engine to build (default: of this machine's card, if its libraries are installed, else openvino)",
    )
    add("--repository", type=Path, default=MODEL_REPOSITORY, help="where to install it (created if need be)")
    frame = "mosaic to make ready for, may be repeated (default: 4240x2832)"
    add("--frame", type=_frame, action="append", dest="frames", metavar="WxH", help=frame)
    tile = "most megapixels of a request, as callers say with their --tile: fewer take less memory (default: 13)"
    add("--tile", type=_tile, metavar="MP", help=tile)
    fp32 = "an engine in FP32, also where BF16 or FP16 is accurate enough"
    add("--fp32", action="store_true", default=None, help=fp32)
    card = f"card of a tensorrt-rtx engine (default: this machine's, else {RTX_A5000})"
    add("--compute-capability", type=int, choices=RTX_CARDS, help=card)
    add("--optimization-level", type=int, choices=range(6), dest="level", help="of NVIDIA's builder (default: its own)")
    portable = "for other NVIDIA cards too (TensorRT: and later versions), slower"
    add("--portable", action="store_true", default=None, help=portable)
    add("--check", action="store_true", help="build nothing; say whether the installed engine may be trusted here")
    return parser


def _frame(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not sides or min(int(sides[1]), int(sides[2])) < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(
            f'"{text}" is no frame; write width x height of the mosaic, such as 4240x2832, from {SMALLEST_SIDE} up'
        )
    return int(sides[1]), int(sides[2])


def _tile(text: str) -> float:
    try:
        megapixels = float(text)
    except ValueError:
        megapixels = 0.0
    if not SMALLEST_TILE <= 1e6 * megapixels < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text} is too small; a tile holds at least {SMALLEST_TILE / 1e6:.2f} megapixels"
        )
    return megapixels
