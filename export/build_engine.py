"""checkpoint -> ONNX -> engine -> model repository:  python export/build_engine.py"""

import argparse
import functools
import hashlib
import inspect
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.client.tiles import SMALLEST_TILE
from exposure.export.ensembles import install_configs
from exposure.export.graph import input_names
from exposure.export.machine import library_version, outdated_driver, this_machine
from exposure.export.manifest import (
    EngineError,
    Manifest,
    read_manifest,
    replacing,
    seal,
    sha256,
    trusted_manifest,
)
from exposure.export.precision import GraphError
from exposure.export.recipes import USUAL_FRAME, Built, Settings, onnx_recipe, openvino_recipe, plan_recipe
from exposure.export.tensorrt_engine import REMEDIES, RTX_CARDS, load_tensorrt
from exposure.networks import CheckpointError, Network, load_checkpoint
from exposure.sensor import SMALLEST_SIDE

RECIPES: dict[str, Callable[[Network, Path, Settings, str], Built]] = {
    "openvino": openvino_recipe,
    "tensorrt-rtx": functools.partial(plan_recipe, "tensorrt-rtx"),
    "tensorrt": functools.partial(plan_recipe, "tensorrt"),
    "onnx": onnx_recipe,
}
AS_SHIPPED = Settings()


def main(arguments: list[str] | None = None) -> int:
    """Build and install one engine; 0 when the repository holds it, 1 with one sentence on standard error."""
    options = _parser().parse_args(arguments)
    target = options.target or target_for_this_machine()
    settings = Settings(
        frames=tuple(options.frame or [USUAL_FRAME]),
        tile=options.tile,
        fp32=options.fp32,
        compute_capability=options.compute_capability,
        level=options.optimization_level,
        portable=options.portable,
    )
    try:
        if options.check:
            folder = options.repository / "denoiser" / "1" / target
            trusted_manifest(folder, target, options.checkpoint)
            print(f"{folder} is whole, of this checkpoint, and for this machine")
            return 0
        print(f"{options.checkpoint} -> {target}")
        folder = build(options.checkpoint, target, options.repository, settings)
    except (CheckpointError, GraphError, EngineError, OSError, MemoryError) as error:
        print(f"build_engine: {error or 'memory does not suffice'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"installed in {folder}")
    return 0


def build(checkpoint: Path, target: str, repository: Path, settings: Settings = AS_SHIPPED) -> Path:
    """Install the engine of a checkpoint in a model repository, or find it there. Returns its folder.

    Raises CheckpointError, GraphError or EngineError; the repository then holds what it held before.
    """
    network = load_checkpoint(checkpoint)
    folder = repository / "denoiser" / "1" / target
    if target.startswith("tensorrt"):
        load_tensorrt(target)  # says what is missing before minutes are spent
    if settings.fp32 and target != "openvino":
        raise EngineError(f"--fp32 is for openvino; a {target} engine has its precision from the graph")
    if target == "tensorrt" and not this_machine().card:
        raise EngineError(f"tensorrt builds for the card in the machine, and there is none; {REMEDIES['tensorrt']}")
    built_from = _built_from(checkpoint, network, target, settings)
    _refuse_other_inputs(folder, input_names(network))
    if _installed_from(folder) == built_from:
        print("  nothing has changed since it was built: the installed engine is kept")
    else:
        rebuild = _command(checkpoint, target, repository, settings)
        _install(folder, network, target, settings, built_from, rebuild)
    if target == "tensorrt":
        install_configs(repository, network.concat_origin, settings.planes(network.multiple))
    elif target != "onnx":
        install_configs(repository, network.concat_origin)
    return folder


def _install(
    folder: Path, network: Network, target: str, settings: Settings, built_from: dict[str, str], rebuild: str
) -> None:
    started = time.perf_counter()
    with replacing(folder) as part:
        built = RECIPES[target](network, part, settings, built_from["checkpoint"])
        manifest = Manifest(
            target=target,
            network=type(network).__name__,
            inputs=input_names(network),
            photon_unit=network.photon_unit,
            multiple=network.multiple,
            precision=built.precision,
            islands=built.islands,
            frames=[f"{width}x{height}" for width, height in settings.frames],
            profile={name: list(sides) for name, sides in settings.profile(network.multiple).items()},
            planes=[list(sides) for sides in settings.planes(network.multiple)],
            licence=network.info.licence,
            runs_on=built.runs_on,
            accuracy=built.accuracy,
            built_from=built_from,
            build_seconds=round(time.perf_counter() - started, 1),
            rebuild=rebuild,
        )
        seal(part, manifest)


def _built_from(checkpoint: Path, network: Network, target: str, settings: Settings) -> dict[str, str]:
    """Everything that, if changed, makes a new engine."""
    built_from = {"checkpoint": sha256(checkpoint), "network": type(network).__name__, "sources": _sources()}
    built_from |= {package: _version(package) for package in ("torch", "onnx", "onnxscript")}
    built_from[target] = library_version(target)
    built_from |= {name: str(value) for name, value in asdict(settings).items()}
    built_from["sides"] = f"{settings.planes(network.multiple)} {settings.profile(network.multiple)}"  # as callers tile
    if target == "openvino":
        built_from["processor"] = _processor()
    elif target.startswith("tensorrt"):
        machine = this_machine()
        built_from |= {"card": f"{machine.card} {machine.compute_capability}", "driver": machine.driver}
        built_from["cupy"] = str(find_spec("cupy") is not None)  # without it, a plan is judged by imitation
    return built_from


def _refuse_other_inputs(folder: Path, inputs: list[str]) -> None:
    """One repository has one set of ensembles: all its engines must take the same tensors."""
    for other in folder.parent.glob("[!.]*/manifest.json"):  # hidden ones: builds that have not ended
        try:
            others = read_manifest(other.parent).inputs
        except EngineError:  # broken or outdated: the server itself refuses it
            continue
        if other.parent.name not in (folder.name, "onnx") and others != inputs:
            raise EngineError(
                f"{other.parent} holds an engine with other inputs; remove that folder, or use another --repository"
            )


def target_for_this_machine() -> str:
    """TensorRT where there is a card and the library, TensorRT for RTX likewise, else OpenVINO."""
    machine = this_machine()
    capability = machine.compute_capability
    if capability and find_spec("tensorrt"):
        return "tensorrt"
    if outdated_driver(machine):
        return "openvino"
    if capability and int(capability) in RTX_CARDS and find_spec("tensorrt_rtx_bindings") and find_spec("cupy"):
        return "tensorrt-rtx"
    return "openvino"


def _installed_from(folder: Path) -> dict[str, str] | None:
    try:
        return read_manifest(folder).built_from
    except EngineError:
        return None


def _sources() -> str:
    """One hash over the code that decides what an engine computes: a change there makes a new engine."""
    networks = Path(inspect.getfile(Network)).parent
    schedule = networks.parent / "schedule.py"  # the photon unit of published checkpoints
    files = sorted([*Path(__file__).parent.glob("*.py"), *networks.glob("*.py"), schedule])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _processor() -> str:
    from exposure.export.openvino_engine import bf16_is_fast

    return f"{platform.machine()}{' with BF16' if bf16_is_fast() else ''}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _command(checkpoint: Path, target: str, repository: Path, settings: Settings) -> str:
    """The command line that builds this engine again."""
    words = ["python export/build_engine.py --target", target]
    words += [] if checkpoint == CHECKPOINT else ["--checkpoint", str(checkpoint)]
    words += [] if repository == MODEL_REPOSITORY else ["--repository", str(repository)]
    words += [] if settings.frames == (USUAL_FRAME,) else [f"--frame {w}x{h}" for w, h in settings.frames]
    words += [] if settings.tile == AS_SHIPPED.tile else [f"--tile {settings.tile:g}"]
    words += ["--fp32"] if settings.fp32 else []
    words += [f"--compute-capability {settings.compute_capability}"] if settings.compute_capability else []
    words += [] if settings.level is None else [f"--optimization-level {settings.level}"]
    return " ".join([*words, *(["--portable"] if settings.portable else [])])


def _frame(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not sides or min(int(sides[1]), int(sides[2])) < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(
            f'"{text}" is no frame; write width x height of the mosaic, such as 4240x2832, from {SMALLEST_SIDE} up'
        )
    return int(sides[1]), int(sides[2])


def _tile(text: str) -> float:
    megapixels = float(text)
    if not SMALLEST_TILE <= 1e6 * megapixels < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} megapixels are no tile; it holds at least {SMALLEST_TILE / 1e6:.2f}")
    return megapixels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build_engine", description="Build an engine from a checkpoint and install it in the model repository."
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        default=CHECKPOINT,
        help="a published .pt or a .safetensors (default: the shipped one)",
    )
    add("--target", choices=RECIPES, help="default: of the card that is here and the libraries for it, else openvino")
    add("--repository", type=Path, default=MODEL_REPOSITORY, help="where to install it (created if need be)")
    add("--frame", type=_frame, action="append", help="mosaic to make ready for, may be repeated (default: 4240x2832)")
    add(
        "--tile",
        type=_tile,
        default=AS_SHIPPED.tile,
        metavar="MP",
        help="most megapixels of a request, as callers say with their --tile: fewer take less memory (default: 13)",
    )
    add("--fp32", action="store_true", help="of an openvino engine: FP32, also where BF16 is fast and accurate enough")
    add("--compute-capability", type=int, choices=RTX_CARDS, help="card of a tensorrt-rtx engine")
    add("--optimization-level", type=int, choices=range(6), help="of NVIDIA's builder (default: its own)")
    add("--portable", action="store_true", help="for other NVIDIA cards too (TensorRT: and later versions), slower")
    add("--check", action="store_true", help="build nothing; say whether the installed engine may be trusted here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
