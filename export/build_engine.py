"""checkpoint -> ONNX -> engine -> model repository:  python export/build_engine.py"""

import functools
import hashlib
import inspect
import io
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

try:
    from exposure.export.ensembles import install_configs
    from exposure.export.graph import input_names
    from exposure.export.install import replacing, seal
    from exposure.export.options import AS_SHIPPED, parser, rebuild_command, refuse_idle_settings, settings_of
    from exposure.export.precision import GraphError
    from exposure.export.recipes import Built, Settings, onnx_recipe, openvino_recipe, plan_recipe
    from exposure.export.tensorrt_engine import REMEDIES, load_tensorrt
    from exposure.files import sha256
    from exposure.kernels import library
    from exposure.kernels.machine import library_version, rtx_hindrance, this_machine
    from exposure.kernels.manifest import EngineError, EngineManifest, read_manifest, trusted_manifest
    from exposure.kernels.unet import lanes
    from exposure.networks import CheckpointError, Network, load_checkpoint
    from exposure.training import leaves, shots
    from exposure.training import scenes as scenes_of_photographs
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"build_engine: {error.name} is not installed, and engines are built with it: pip install -e '.[export]'")
except KeyboardInterrupt:  # torch takes seconds
    sys.exit(130)

RECIPES: dict[str, Callable[[Network, Path, Settings, str], Built]] = {
    "openvino": openvino_recipe,
    "tensorrt-rtx": functools.partial(plan_recipe, "tensorrt-rtx"),
    "tensorrt": functools.partial(plan_recipe, "tensorrt"),
    "onnx": onnx_recipe,
}
# as torch, ONNX Runtime, C++ and OpenVINO say it
NO_MEMORY = ("can't allocate", "ailed to allocate", "bad_alloc", "bad allocation", "could not create a primitive")


def main(arguments: list[str] | None = None) -> int:
    """Build and install one engine; 0 when the repository holds it, 1 with one sentence on standard error, 130 when
    stopped.
    """
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # all end in order, with nothing left behind
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(ending, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    options = parser().parse_args(arguments)
    target = options.target or target_for_this_machine()
    try:
        settings = settings_of(options)
        if options.check:
            folder = options.repository / "denoiser" / "1" / target
            trusted_manifest(folder, target, options.checkpoint)
            print(f"{folder} is whole, of this checkpoint, and for this machine")
            return 0
        print(f"{options.checkpoint} -> {target}")
        folder = build(options.checkpoint, target, options.repository, settings)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _failed(error)
    print(f"installed in {folder}")
    return 0


def _failed(error: Exception) -> int:
    """The exit status, after a sentence; what no sentence is known for is raised again."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):  # of a library that was being loaded
            return 130
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, (CheckpointError, GraphError, EngineError, OSError)):
        sentence = str(error)
    elif isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        sentence = "memory does not suffice; a smaller --frame or --tile takes less"
    else:
        raise error
    print(f"build_engine: {sentence}", file=sys.stderr)
    return 1


def build(checkpoint: Path, target: str, repository: Path, settings: Settings = AS_SHIPPED) -> Path:
    """Install the engine of a checkpoint in a model repository, or find it there. Returns its folder.

    Raises CheckpointError, GraphError or EngineError; the repository then holds what it held before.
    """
    refuse_idle_settings(target, settings)
    network = load_checkpoint(checkpoint)
    folder = repository / "denoiser" / "1" / target
    if target.startswith("tensorrt"):
        load_tensorrt(target)  # says what is missing before minutes are spent
    if target == "tensorrt" and not this_machine().card:
        raise EngineError(f"tensorrt builds for the card in the machine, and there is none; {REMEDIES['tensorrt']}")
    built_from = _built_from(checkpoint, network, target, settings)
    if target != "onnx":  # which is kept there, and served by none of the ensembles
        _refuse_other_inputs(folder, input_names(network))
    if _installed_from(folder) == built_from:
        print("  nothing has changed since it was built: the installed engine is kept")
    else:
        rebuild = rebuild_command(checkpoint, target, repository, settings)
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
        manifest = EngineManifest(
            target=target,
            network=type(network).__name__,
            inputs=input_names(network),
            photon_unit=network.photon_unit,
            multiple=network.multiple,
            precision=built.precision,
            convolutions=built.convolutions,
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
    if target != "onnx":  # whose version stands there
        built_from[target] = library_version(target)
    built_from |= {name: str(value) for name, value in asdict(settings).items()}
    built_from["sides"] = f"{settings.planes(network.multiple)} {settings.profile(network.multiple)}"  # as callers tile
    if target == "openvino":
        built_from |= {"processor": _processor(), "kernels": sha256(library.built(library.NAME))}
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
    """TensorRT where there is a card and the library, TensorRT for RTX where it can be served, else OpenVINO."""
    machine = this_machine()
    if machine.card and find_spec("tensorrt"):
        return "tensorrt"
    if machine.card and not rtx_hindrance(machine):
        return "tensorrt-rtx"
    return "openvino"


def _installed_from(folder: Path) -> dict[str, str] | None:
    try:
        return read_manifest(folder).built_from
    except EngineError:
        return None


def _sources() -> str:
    """One hash over the code that decides what an engine computes and on what it is judged: another makes a new one."""
    networks = Path(inspect.getfile(Network)).parent
    scenes = [Path(inspect.getfile(module)) for module in (leaves, scenes_of_photographs, shots)]  # of the gate
    files = sorted(
        [*Path(__file__).parent.glob("*.py"), *networks.glob("*.py"), *networks.parent.glob("*.py"), *scenes]
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _processor() -> str:
    from exposure.export.openvino_engine import bf16_is_fast

    return f"{platform.machine()}, vectors of {lanes()}{' with BF16' if bf16_is_fast() else ''}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    sys.exit(main())
