"""checkpoint -> ONNX -> engine -> model repository:  python export/build_engine.py"""

import argparse
import hashlib
import inspect
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.export.ensembles import install_configs
from exposure.export.graph import (
    FP16_AGREEMENT_DB,
    FP32_AGREEMENT_DB,
    GraphError,
    agreement,
    input_names,
    onnx_from_network,
    onnx_runner,
    torch_runner,
)
from exposure.export.manifest import EngineError, Manifest, read_manifest, replacing, seal, sha256
from exposure.export.tensorrt_engine import PLAN, RTX_CARDS, load_tensorrt, plan_from_onnx
from exposure.networks import CheckpointError, Network, load_checkpoint

T = TypeVar("T")
TARGETS = ("openvino", "tensorrt-rtx", "tensorrt", "onnx")
GRAPH = "model.onnx"
PACKAGES = {
    "onnx": ("onnx",),
    "openvino": ("onnx", "openvino"),
    "tensorrt": ("onnx", "tensorrt"),
    "tensorrt-rtx": ("onnx", "tensorrt-rtx-cu13-bindings"),
}


def main(arguments: list[str] | None = None) -> int:
    """Build and install one engine; 0 when the repository holds it, 1 with one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        target = options.target or target_for_this_machine()
        print(f"{options.checkpoint} -> {target}")
        folder = build(options.checkpoint, target, options.repository, options.compute_capability)
    except (CheckpointError, GraphError, EngineError, OSError) as error:
        print(f"build_engine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"installed in {folder}")
    return 0


def build(checkpoint: Path, target: str, repository: Path, compute_capability: int | None = None) -> Path:
    """Install the engine of a checkpoint in a model repository, or find it there. Returns its folder.

    Raises CheckpointError, GraphError or EngineError; the repository then holds what it held before.
    """
    network = load_checkpoint(checkpoint)
    folder = repository / "denoiser" / "1" / target
    built_from = {"checkpoint": sha256(checkpoint), "network": type(network).__name__, "sources": _sources()}
    built_from |= {package: _version(package) for package in ("torch", *PACKAGES[target])}
    if target == "tensorrt-rtx":
        compute_capability = compute_capability or 86
        built_from["compute_capability"] = str(compute_capability)
    if target == "openvino":
        built_from["processor"] = _processor()
    if target.startswith("tensorrt"):
        load_tensorrt(target)  # says what is missing before minutes are spent
    _refuse_other_inputs(folder, input_names(network))
    if _installed_from(folder) == built_from:
        print("  nothing has changed since it was built: the installed engine is kept")
    else:
        _install(folder, network, target, compute_capability, built_from)
    if target != "onnx":
        install_configs(repository, network.concat_origin)
    return folder


def _install(
    folder: Path, network: Network, target: str, compute_capability: int | None, built_from: dict[str, str]
) -> None:
    with replacing(folder) as part:
        precision, agreement_db = _fill(part, network, target, compute_capability)
        manifest = Manifest(
            target=target,
            network=type(network).__name__,
            inputs=input_names(network),
            photon_unit=network.photon_unit,
            multiple=network.multiple,
            precision=precision,
            agreement_db={name: round(value, 1) for name, value in agreement_db.items()},
            licence=network.info.licence,
            built_from=built_from,
        )
        seal(part, manifest)


def _refuse_other_inputs(folder: Path, inputs: list[str]) -> None:
    """One repository has one set of ensembles: all its engines must take the same tensors."""
    for other in folder.parent.glob("*/manifest.json"):
        if other.parent.name not in (folder.name, "onnx") and read_manifest(other.parent).inputs != inputs:
            raise EngineError(f"{other.parent} holds an engine with other inputs; use another --repository")


def target_for_this_machine() -> str:
    """TensorRT where there is a card and the library, else OpenVINO. TensorRT for RTX cannot be served yet."""
    if shutil.which("nvidia-smi") and find_spec("tensorrt"):
        return "tensorrt"
    return "openvino"


def _fill(folder: Path, network: Network, target: str, compute_capability: int | None) -> tuple[str, dict[str, float]]:
    """Put the engine's files into an empty folder. Returns the precision and the measured agreements in dB."""
    half = target.startswith("tensorrt")
    with tempfile.TemporaryDirectory() as scratch:
        graph = (folder if target == "onnx" else Path(scratch)) / GRAPH
        _stage("trace the network to ONNX", lambda: onnx_from_network(network, graph, half=half))
        measured = {"onnx": _stage("hold the graph against torch", lambda: _graph_agreement(network, graph))}
        print(f"    it agrees with FP32 torch to {measured['onnx']:.1f} dB")
        if target == "onnx":
            return "f32", measured
        if half:
            measured["f16"] = _stage("compute it once with an FP16 body, in torch", lambda: _half_agreement(network))
            print(f"    it agrees with FP32 torch to {measured['f16']:.1f} dB")
            what = target if compute_capability is None else f"{target} for SM{compute_capability}"
            plan = folder / PLAN
            _stage(f"build {what}", lambda: plan_from_onnx(graph, plan, target, compute_capability))
            return "f16", measured
        return _openvino(folder, network, graph, measured)


def _openvino(folder: Path, network: Network, graph: Path, measured: dict[str, float]) -> tuple[str, dict[str, float]]:
    from exposure.export.openvino_engine import BF16_AGREEMENT_DB, OpenVinoEngine, bf16_is_fast, openvino_from_onnx

    _stage("convert to OpenVINO", lambda: openvino_from_onnx(graph, folder))
    measured["f32"] = agreement(network, OpenVinoEngine(folder, "f32"), FP32_AGREEMENT_DB, "the FP32 engine")
    if not bf16_is_fast():
        print("    FP32: this processor does not multiply BF16 natively")
        return "f32", measured
    measured["bf16"] = agreement(network, OpenVinoEngine(folder, "bf16"), 0, "the BF16 engine")
    precision = "bf16" if measured["bf16"] >= BF16_AGREEMENT_DB else "f32"
    print(f"    {precision.upper()}: BF16 agrees to {measured['bf16']:.1f} dB, {BF16_AGREEMENT_DB:.0f} are needed")
    return precision, measured


def _graph_agreement(network: Network, graph: Path) -> float:
    return agreement(network, onnx_runner(graph), FP32_AGREEMENT_DB, "the ONNX graph")


def _half_agreement(network: Network) -> float:
    # one crop: CPUs take 10 s and more for it, and only this arithmetic shows the rounding before a card does
    run = torch_runner(network, half=True)
    return agreement(network, run, FP16_AGREEMENT_DB, "the network with an FP16 body", crops=1)


def _stage(what: str, work: Callable[[], T]) -> T:
    """Say what is being done, and how long it took."""
    print(f"  {what} ...", end="", flush=True)
    started = time.perf_counter()
    result = work()
    print(f" {time.perf_counter() - started:.1f} s")
    return result


def _installed_from(folder: Path) -> dict[str, str] | None:
    try:
        return read_manifest(folder).built_from
    except EngineError:
        return None


def _sources() -> str:
    """One hash over the code that decides what an engine computes: a change there makes a new engine."""
    networks = Path(inspect.getfile(Network)).parent
    files = sorted([*Path(__file__).parent.glob("*.py"), *networks.glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _processor() -> str:
    from exposure.export.openvino_engine import bf16_is_fast

    return f"{platform.machine()}{' with BF16' if bf16_is_fast() else ''}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build_engine", description="Build an engine from a checkpoint and install it in the model repository."
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=CHECKPOINT,
        help="a published .pt or a .safetensors (default: the shipped one)",
    )
    parser.add_argument("--target", choices=TARGETS, help="default: what this machine can serve")
    parser.add_argument(
        "--repository", type=Path, default=MODEL_REPOSITORY, help="where to install it (created if need be)"
    )
    parser.add_argument(
        "--compute-capability",
        type=int,
        choices=RTX_CARDS,
        help="card of a tensorrt-rtx engine (default: 86, RTX A5000)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
