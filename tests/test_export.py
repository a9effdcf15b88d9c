"""Graphs and engines against torch; what must not be installed is not."""

import contextlib
import functools
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_manifest import FOR_A5000, plan_for
from test_nafnet import small_naf
from test_networks import variant

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.export import arithmetic, build_engine, graph, openvino_engine, options, recipes, tensorrt_engine
from exposure.export.arithmetic import Arithmetic
from exposure.export.build_engine import build
from exposure.export.ensembles import LEAVES, ensemble_config, install_configs
from exposure.export.gate import ALLOWANCES
from exposure.export.install import replacing
from exposure.export.openvino_engine import WIDE_ENDS, OpenVinoEngine, WideEnds, openvino_from_onnx
from exposure.export.precision import GraphError, choose_islands
from exposure.export.recipes import Built, Settings
from exposure.export.scene import low_light_crops
from exposure.export.tensorrt_engine import PlanOptions, plan_from_onnx
from exposure.export.tensorrt_runtime import PlanEngine
from exposure.files import sha256
from exposure.kernels import machine
from exposure.kernels.machine import Machine, this_machine
from exposure.kernels.manifest import EngineError, read_manifest, trusted_manifest
from exposure.kernels.unet import UNetEngine
from exposure.networks import CheckpointInfo, Network, save_checkpoint
from exposure.schedule import SERVED_PASSES
from exposure.tiles import plan_tiles


def saved(tmp_path: Path, network: Network, unit: float = 15583.0) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(network, path, CheckpointInfo(photon_unit=unit, licence="CC0-1.0"), dtype=torch.float32)
    network.info, network.photon_unit = CheckpointInfo(photon_unit=unit), unit
    return path


Make = Callable[[int, bool], Network]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Make, int, bool], Path]:
    """The folder of a network's graph and OpenVINO model; each is traced once for all tests."""

    @functools.cache
    def folder(make: Make, inputs: int, adaptive: bool) -> Path:
        path = tmp_path_factory.mktemp("graph")
        network = make(inputs, adaptive)
        saved(path, network)
        graph.onnx_from_network(network, path / "model.onnx", checkpoint="5e1f")
        openvino_from_onnx(path / "model.onnx", path)
        (path / "bf16").mkdir()
        openvino_from_onnx(path / "model.onnx", path / "bf16", wide=WideEnds(None, 2))
        return path

    return folder


def test_every_target_has_a_recipe() -> None:
    assert set(build_engine.RECIPES) == set(options.TARGETS)


def test_no_engine_for_rtx_is_built_on_a_card_that_cannot_run_it() -> None:
    assert recipes._rtx_card(Machine()) == 86
    assert recipes._rtx_card(Machine("RTX 4090", "89", "13.0", "580.1")) == 89
    with pytest.raises(EngineError, match=r"does not build for H200 of compute capability 90; use --target tensorrt"):
        recipes._rtx_card(Machine("H200", "90", "13.0", "580.1"))


@pytest.mark.parametrize(
    ("make", "inputs", "adaptive"),
    [(variant, 4, False), (variant, 8, True), (variant, 12, True), (small_naf, 4, False), (small_naf, 12, True)],
)
def test_the_graph_is_the_network(
    graphs: Callable[[Make, int, bool], Path], tmp_path: Path, make: Make, inputs: int, adaptive: bool
) -> None:
    network = make(inputs, adaptive)
    saved(tmp_path, network)
    path = graphs(make, inputs, adaptive) / "model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model)
    wanted = ["IMAGE", "PHOTON_GAIN", "ORIGIN_IMAGE"] if inputs == 12 else ["IMAGE", "PHOTON_GAIN"]
    assert [tensor.name for tensor in model.graph.input] == wanted
    assert [tensor.name for tensor in model.graph.output] == ["CLEAN"]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["checkpoint"], told["network"], told["precision"]) == ("5e1f", type(network).__name__, "f32")
    assert (told["photon_unit"], told["licence"]) == (str(network.photon_unit), network.info.licence)
    # two FP32 implementations of a random network: 100 dB is an error of 1e-5
    assert graph.agreement(network, graph.onnx_runner(path), 100, "the graph") > 100
    marked = path.parent / "bf16"
    for folder, precision, least in ((path.parent, "f32", 100), (marked, "f32", 100), (marked, "bf16", 40)):
        engine = OpenVinoEngine(folder, precision)
        assert graph.agreement(network, engine, least, precision) > least


@pytest.mark.parametrize("wide", WIDE_ENDS, ids=str)
def test_the_ends_of_a_bf16_engine_stay_in_fp32(
    graphs: Callable[[Make, int, bool], Path], tmp_path: Path, wide: WideEnds
) -> None:
    """As OpenVINO reads it: of the two before the first pooling, and at the end, as many as were asked for."""
    openvino_from_onnx(graphs(variant, 12, True) / "model.onnx", tmp_path, wide=wide)
    operations = ov.Core().read_model(tmp_path / "model.xml").get_ordered_ops()
    marked = [
        any("DisablePrecisionConversion" in key for key in op.get_rt_info())
        for op in operations
        if op.get_type_name() in ("Convolution", "ConvolutionBackpropData")
    ]
    first = 2 if wide.first is None else wide.first
    assert marked == first * [True] + (23 - first - wide.last) * [False] + wide.last * [True]


def test_half_graphs_cast_twice(tmp_path: Path, network: Network) -> None:
    """Strongly typed: half inside, FP32 edges and tail, so that no builder flag is needed."""
    graph.onnx_from_network(network, tmp_path / "half.onnx", half=True, islands=["conv9_2"])
    model = onnx.load(tmp_path / "half.onnx")
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 2
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    halves = [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16]
    assert len(halves) == 2 * 21  # weight and bias of every layer but the island at the end and the last
    wide = [name for name in kinds if "conv10_1" in name or "conv9_2" in name]
    assert [kinds[name] for name in wide] == 4 * [onnx.TensorProto.FLOAT]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["precision"], told["fp32_islands"]) == ("f16", "conv9_2")


def test_half_graphs_may_start_in_fp32(tmp_path: Path, network: Network) -> None:
    """No cast before the first level's end: neither of the inputs nor between its two convolutions."""
    graph.onnx_from_network(network, tmp_path / "half.onnx", half=True, islands=["conv1_1", "conv1_2", "conv9_2"])
    model = onnx.load(tmp_path / "half.onnx")
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 2
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert sum(kind == onnx.TensorProto.FLOAT16 for kind in kinds.values()) == 2 * 19
    assert graph.agreement(network, graph.onnx_runner(tmp_path / "half.onnx"), graph.HALF_AGREEMENT_DB, "it")


@pytest.mark.parametrize("fault", ["nan", "wrong"])
def test_a_wrong_engine_is_refused(network: Network, fault: str) -> None:
    def run(image: NDArray[Any], *_: NDArray[Any]) -> NDArray[Any]:
        return np.full_like(image, np.nan) if fault == "nan" else image

    with pytest.raises(GraphError, match="NaN" if fault == "nan" else "agrees with FP32 torch to"):
        graph.agreement(network, run, 60, "the engine")


def test_a_refused_graph_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overflowing weights load as finite numbers and give NaN: nothing may be left of such a build."""
    network = small_naf(8, True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(1e30 * torch.randn_like(parameter).sign())
    repository = tmp_path / "repository"
    monkeypatch.chdir(tmp_path)
    arguments = ["--checkpoint", str(saved(tmp_path, network)), "--repository", str(repository)]
    assert build_engine.main([*arguments, "--target", "openvino"]) == 1
    assert list((repository / "denoiser" / "1").glob("*openvino*")) == []


def test_build_installs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, repository = saved(tmp_path, small_naf(8, True), unit=1000.0), tmp_path / "repository"
    arguments = ["--checkpoint", str(checkpoint), "--repository", str(repository), "--target", "openvino"]
    arguments += ["--frame", "96x64"]
    assert build_engine.main(arguments) == 0
    manifest = read_manifest(repository / "denoiser" / "1" / "openvino")
    assert (manifest.photon_unit, manifest.multiple, manifest.licence) == (1000.0, 2, "CC0-1.0")
    assert "trace the network" in capsys.readouterr().out
    assert build_engine.main(arguments) == 0
    assert "the installed engine is kept" in capsys.readouterr().out
    saved(tmp_path, small_naf(8, False))
    assert build_engine.main(arguments) == 0
    assert "trace the network" in capsys.readouterr().out


def test_concat_origin_networks_get_their_wires(tmp_path: Path, network: Network) -> None:
    repository = tmp_path / "repository"
    install_configs(repository, concat_origin=True)
    for config in ("config.pbtxt", "configs/cpu.pbtxt"):
        assert "ORIGIN_IMAGE" in (repository / "denoiser" / config).read_text()
    assert 'input_map { key: "ORIGIN_IMAGE" value: "image_0" }' in (repository / "exposure_1/config.pbtxt").read_text()
    install_configs(repository, concat_origin=False)
    for config in ("config.pbtxt", "configs/cpu.pbtxt"):
        assert "ORIGIN_IMAGE" not in (repository / "denoiser" / config).read_text()
    assert "ORIGIN_IMAGE" not in (repository / "exposure_1/config.pbtxt").read_text()
    install_configs(repository, network.concat_origin)
    for leaf in LEAVES:
        checked_in = (MODEL_REPOSITORY / leaf / "config.pbtxt").read_text()
        assert (repository / leaf / "config.pbtxt").read_text() == checked_in


def test_a_repository_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path, network: Network) -> None:
    install_configs(tmp_path, network.concat_origin, [(96, 64)])
    (tmp_path / "pack" / "config.pbtxt").write_text("old")
    (tmp_path / "denoiser" / "1" / "model.py").write_text("old")
    (tmp_path / "expose" / "configs" / "cpu.pbtxt").unlink()
    install_configs(tmp_path, network.concat_origin)
    for name in ("pack/config.pbtxt", "denoiser/1/model.py", "expose/configs/cpu.pbtxt"):
        assert (tmp_path / name).read_text() == (MODEL_REPOSITORY / name).read_text()
    assert 'name: "96x64"' in (tmp_path / "denoiser" / "config.pbtxt").read_text()  # its frames are kept
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("passes", SERVED_PASSES)
def test_checked_in_ensembles_are_those_of_the_shipped_network(passes: int, network: Network) -> None:
    checked_in = (MODEL_REPOSITORY / f"exposure_{passes}" / "config.pbtxt").read_text()
    assert checked_in == ensemble_config(passes, concat_origin=network.concat_origin)


def test_what_is_no_manifest_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine in"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(EngineError, match="not an engine manifest"):
        read_manifest(tmp_path)


def test_one_repository_has_one_kind_of_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A 12-channel engine beside one of 8 channels would need other ensembles: refused, and nothing rewired."""
    repository = tmp_path / "repository"
    other = repository / "denoiser" / "1" / "tensorrt"
    plan_for(other, "tensorrt", FOR_A5000)
    arguments = ["--checkpoint", str(saved(tmp_path, variant(12, True))), "--repository", str(repository)]
    assert build_engine.main([*arguments, "--target", "openvino"]) == 1
    assert "holds an engine with other inputs" in capsys.readouterr().err
    assert [path.name for path in repository.iterdir()] == ["denoiser"]
    assert [path.name for path in other.parent.iterdir()] == ["tensorrt"]


def test_a_graph_alone_lies_beside_any_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the ensembles serves it."""
    other = plan_for(tmp_path / "repository" / "denoiser" / "1" / "tensorrt", "tensorrt", FOR_A5000)
    monkeypatch.setitem(build_engine.RECIPES, "onnx", lambda *_: Built("f32", {"library": ""}, {}))
    build_engine.build(saved(tmp_path, variant(12, True)), "onnx", tmp_path / "repository")
    assert sorted(path.name for path in other.parent.iterdir()) == ["onnx", "tensorrt"]


def test_an_unchanged_repository_is_not_written_to(tmp_path: Path) -> None:
    """It may well be read-only."""
    install_configs(tmp_path, concat_origin=False)
    paths = [tmp_path, *tmp_path.rglob("*")]
    for path in paths:
        os.utime(path, (1, 1))
    install_configs(tmp_path, concat_origin=False)
    assert [path for path in paths if path.stat().st_mtime != 1] == []


@pytest.mark.parametrize(
    ("target", "flags", "sentence"),
    [
        ("onnx", "--fp32", "--fp32 is for openvino, tensorrt-rtx, tensorrt; it changes nothing of an engine"),
        ("openvino", "--portable", "--portable is for tensorrt-rtx, tensorrt; it changes nothing of"),
        ("openvino", "--compute-capability 86", "--compute-capability is for tensorrt-rtx; it"),
        ("tensorrt", "--compute-capability 86", "--compute-capability is for tensorrt-rtx; it"),
        ("tensorrt-rtx", "--compute-capability 86 --portable", "--portable builds for every card"),
        ("openvino", "--optimization-level 0", "--optimization-level is for"),
        ("onnx", "--optimization-level 0", "--optimization-level is for"),
        ("onnx", "--frame 96x64", "--frame is for"),
        ("onnx", "--tile 4", "--tile is for"),
        ("openvino", "--check --frame 4240x2832", "--check builds nothing; --frame has no meaning beside it"),
        ("openvino", "--check --tile 13", "--check builds nothing; --tile"),
        ("openvino", "--check --fp32", "--check builds nothing; --fp32"),
        ("openvino", "--frame 30000x30000 --tile 0.5", "30000x30000 pixels need more than 64 tiles of"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, flags: str, sentence: str
) -> None:
    assert build_engine.main(["--target", target, "--repository", str(tmp_path), *flags.split()]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"build_engine: {sentence}")
    assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_builds_again_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, whatever the paths are called."""
    settings = Settings(frames=((96, 64), (640, 480)), tile=4.5, fp32=True)
    monkeypatch.chdir(tmp_path)
    command = options.rebuild_command(Path("my model.pt"), "openvino", Path("ré/$HOME"), settings)
    monkeypatch.chdir("/")
    asked = options.parser().parse_args(shlex.split(command)[2:])
    assert options.settings_of(asked) == settings
    assert (asked.checkpoint, asked.repository) == (tmp_path / "my model.pt", tmp_path / "ré" / "$HOME")
    monkeypatch.chdir(MODEL_REPOSITORY.parent)
    command = options.rebuild_command(CHECKPOINT, "onnx", Path("model_repository"), Settings())
    assert command == "python export/build_engine.py --target onnx"


def test_memory_that_does_not_suffice_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_engine, "build", lambda *_: torch.empty(1 << 58))  # torch says it with a RuntimeError
    assert build_engine.main([]) == 1
    told = "build_engine: memory does not suffice; a smaller --frame or --tile takes less\n"
    assert capsys.readouterr().err == told
    monkeypatch.setattr(build_engine, "build", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):  # a fault of ours keeps its traceback
        build_engine.main([])


def test_a_full_disk_is_one_sentence(graphs: Callable[[Make, int, bool], Path], tmp_path: Path) -> None:
    """OpenVINO says no more than that a stream failed."""
    graph_file, before = graphs(small_naf, 4, False) / "model.onnx", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=r"model\.xml could not be written; is the disk full\?"):
            openvino_from_onnx(graph_file, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("make", "inputs", "targets"), [(variant, 4, ("onnx",)), (small_naf, 12, ("onnx", "openvino"))]
)
def test_a_published_checkpoint_becomes_a_graph_and_an_engine(
    tmp_path: Path, make: Make, inputs: int, targets: tuple[str, ...]
) -> None:
    network, checkpoint, repository = make(inputs, True), tmp_path / "model.pt", tmp_path / "repository"
    torch.save({"netG": network.state_dict(), "opt_g": {}, "epoch": 3, "iterations": 900}, checkpoint)
    for target in targets:
        settings = Settings() if target == "onnx" else Settings(frames=((96, 64),), fp32=True)
        folder = build(checkpoint, target, repository, settings)
        manifest = read_manifest(folder)
        assert (manifest.network, manifest.precision) == (type(network).__name__, "f32")
        assert manifest.built_from["onnx"] == onnx.__version__
        assert re.fullmatch("[0-9a-f]{64}", manifest.accuracy["graph"])
    assert manifest.accuracy["graph"] == sha256(repository / "denoiser" / "1" / "onnx" / "model.onnx")


def test_a_build_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    scratch, repository = tmp_path / "scratch", tmp_path / "repository"
    scratch.mkdir()
    command = [sys.executable, str(PROJECT / "export" / "build_engine.py"), "--target", "openvino"]
    command += ["--checkpoint", str(saved(tmp_path, small_naf(8, True))), "--repository", str(repository)]
    with subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(scratch)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as build:
        while build.poll() is None and not list(scratch.glob("*/model.onnx")):  # traced, or nearly
            time.sleep(0.05)
        build.terminate()
        _, complaint = build.communicate()
    assert (build.returncode, complaint) == (130, b"")
    assert list(scratch.glob("tmp*")) == []  # torch and ONNX Runtime leave a folder and a number of theirs
    assert list((repository / "denoiser" / "1").iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("raise ModuleNotFoundError(name='torch')", 1, "build_engine: torch is not installed, and engines are built"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_the_script_ends_in_order_before_torch_is_there(tmp_path: Path, fault: str, code: int, said: str) -> None:
    (tmp_path / "torch.py").write_text(fault)
    result = subprocess.run(
        [sys.executable, PROJECT / "export" / "build_engine.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert result.returncode == code
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == bool(said)


def test_an_engine_wants_all_its_inputs(graphs: Callable[[Make, int, bool], Path]) -> None:
    engine = OpenVinoEngine(graphs(small_naf, 12, True), "f32")
    image, gain = np.zeros((1, 4, 16, 16), np.float32), np.ones(1, np.float32)
    with pytest.raises(EngineError, match="IMAGE, PHOTON_GAIN, ORIGIN_IMAGE; 2 arrays came"):
        engine(image, gain)


def test_small_sizes_are_kept_up_to_a_bound_too(
    graphs: Callable[[Make, int, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds weights of its own, whatever its size."""
    monkeypatch.setattr(openvino_engine, "COMPILED_PIXELS", 2 * openvino_engine.WEIGHTS + 2000)
    engine = OpenVinoEngine(graphs(small_naf, 12, True), "f32")
    for side in (16, 32, 48, 16, 64):
        image = np.zeros((1, 4, side, 16), np.float32)
        assert engine(image, np.ones(1, np.float32), image).shape == image.shape
    assert list(engine._compiled) == [(1, 4, 16, 16), (1, 4, 64, 16)]


def test_an_interrupted_install_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "old").touch()
    with contextlib.suppress(KeyboardInterrupt), replacing(folder) as part:
        (part / "new").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (folder / "old").exists()


def test_an_engine_survives_a_failed_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "engine", Path.rename
    folder.mkdir()
    (folder / "old").touch()

    def fails(path: Path, target: Path) -> Path:
        if target == folder and not path.name.endswith(".old"):
            raise OSError("the disk is full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="the disk is full"), replacing(folder) as part:
        (part / "new").touch()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("engine"), Path("engine/old")]


def test_a_build_leaves_another_one_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "engine") as first, replacing(tmp_path / "engine"):
        assert first.is_dir()


def test_other_settings_make_another_engine(network: Network) -> None:
    one, other = (
        build_engine._built_from(CHECKPOINT, network, "openvino", Settings(fp32=fp32)) for fp32 in (False, True)
    )
    assert {name for name in one if one[name] != other[name]} == {"fp32"}


def test_what_the_gate_refuses_in_bf16_is_built_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def gate(_network: Network, _run: object, precision: str, *_: object) -> list[dict[str, str]]:
        tried.append(precision)
        if precision == "bf16":
            raise GraphError("too coarse")
        return [{"scene": "passed"}]

    monkeypatch.setattr(openvino_engine, "bf16_is_fast", lambda: True)
    monkeypatch.setattr(openvino_engine, "openvino_from_onnx", lambda *_, **__: None)
    monkeypatch.setattr(arithmetic, "OpenVinoEngine", lambda *_: None)
    monkeypatch.setattr(recipes, "_traced", lambda *_: {"graph_db": 120.0})
    monkeypatch.setattr(recipes, "_gate", gate)
    built = recipes.openvino_recipe(small_naf(8, True), tmp_path, Settings(), "5e1f")
    assert tried == [*len(WIDE_ENDS) * ["bf16"], "f32"]
    assert (built.precision, built.accuracy["scenes"]) == ("f32", [{"scene": "passed"}])
    assert built.accuracy["refused"] == len(WIDE_ENDS) * ["too coarse"]
    assert built.accuracy["wide"] == "everything"


@pytest.mark.parametrize("fast_bf16", [True, False])
@pytest.mark.parametrize("fp32", [True, False])
@pytest.mark.parametrize(("ours", "openvinos"), [(1.0, 2.0), (2.0, 1.0)])
def test_the_fastest_is_tried_first(
    graphs: Callable[[Make, int, bool], Path],
    monkeypatch: pytest.MonkeyPatch,
    fast_bf16: bool,
    fp32: bool,
    ours: float,
    openvinos: float,
) -> None:
    monkeypatch.setattr(openvino_engine, "bf16_is_fast", lambda: fast_bf16)
    monkeypatch.setattr(arithmetic, "_seconds", lambda *_: (ours, openvinos))
    graph_file = graphs(variant, 12, True) / "model.onnx"
    attempts, timed = arithmetic.cpu_attempts(variant(12, True), graph_file, (32, 48), fp32=fp32)
    assert timed == {"winograd_s": ours, "openvino_s": openvinos}
    in_bf16 = [Arithmetic(wide=wide) for wide in WIDE_ENDS] if fast_bf16 and not fp32 else []
    if ours < openvinos:
        assert attempts == [arithmetic.WINOGRAD, *in_bf16, arithmetic.FP32]
    else:  # our kernels may still be faster than OpenVINO's FP32, which was not timed then
        assert attempts == [*in_bf16, *([arithmetic.WINOGRAD] if in_bf16 else []), arithmetic.FP32]
    attempts, timed = arithmetic.cpu_attempts(small_naf(12, True), graph_file, (32, 48), fp32=fp32)
    assert (attempts, timed) == ([*in_bf16, arithmetic.FP32], {})


@pytest.mark.parametrize(("inputs", "adaptive"), [(4, False), (8, True), (12, True)])
def test_our_kernels_find_the_network_in_the_installed_file(
    graphs: Callable[[Make, int, bool], Path], inputs: int, adaptive: bool
) -> None:
    """Bit for bit what they compute of the network itself, also from a file that is marked for BF16."""
    network, folder = variant(inputs, adaptive), graphs(variant, inputs, adaptive)
    saved(folder, network)
    image, gain = np.random.default_rng(1).random((1, 4, 32, 48), np.float32), np.array([7], np.float32)
    expected = UNetEngine({name: value.numpy() for name, value in network.state_dict().items()})(image, gain, image)
    for where in (folder, folder / "bf16"):
        np.testing.assert_array_equal(arithmetic.WINOGRAD.opened(where)(image, gain, image), expected)


def test_the_same_file_is_served_by_openvino_where_our_kernels_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = variant(12, True)
    monkeypatch.setattr(arithmetic, "_seconds", lambda *_: (1.0, 2.0))
    folder = build(saved(tmp_path, network), "openvino", tmp_path / "repository", Settings(frames=((96, 64),)))
    assert read_manifest(folder).convolutions == "winograd"
    assert isinstance(arithmetic.installed_engine(folder), UNetEngine)
    monkeypatch.setattr(arithmetic, "lanes", lambda: 0)
    engine = arithmetic.installed_engine(folder)
    assert isinstance(engine, OpenVinoEngine)
    assert engine.precision == "f32"
    assert graph.agreement(network, engine, 100, "OpenVINO") > 100


@pytest.mark.parametrize(
    ("capability", "found", "target"),
    [
        ("", "tensorrt tensorrt_rtx_bindings cupy kernels", "openvino"),
        ("86", "kernels", "openvino"),
        ("86", "tensorrt_rtx_bindings kernels", "openvino"),
        ("86", "tensorrt_rtx_bindings cupy kernels", "tensorrt-rtx"),
        ("86", "tensorrt_rtx_bindings cupy", "openvino"),  # built without nvcc: `exposure serve` would not take it
        ("90", "tensorrt_rtx_bindings cupy kernels", "openvino"),  # no card that TensorRT for RTX is for
        ("90", "tensorrt", "tensorrt"),
    ],
)
def test_the_target_is_that_of_card_and_libraries(
    monkeypatch: pytest.MonkeyPatch, capability: str, found: str, target: str
) -> None:
    def built(name: str) -> Path:
        if "kernels" not in found.split():
            raise OSError(f"{name} is not built")
        return Path(name)

    here = Machine("A card", capability, "13.0", "580.65") if capability else Machine()
    monkeypatch.setattr(build_engine, "this_machine", lambda: here)
    monkeypatch.setattr(machine, "built", built)
    monkeypatch.setattr(machine, "python_backend_lacks", str)
    for module in (build_engine, machine):
        monkeypatch.setattr(module, "find_spec", lambda name: object() if name in found.split() else None)
    assert build_engine.target_for_this_machine() == target


def test_missing_tensorrt_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    assert build_engine.main(["--target", "tensorrt", "--repository", str(tmp_path)]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "tensorrt is not installed" in complaint
    assert list(tmp_path.iterdir()) == []


def test_rtx_plan_for_the_a5000(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NVIDIA's own parser and builder, without a card; the gate on what the graph computes, real RAW files among it."""
    pytest.importorskip("tensorrt_rtx_bindings")
    assert data.exists()
    settings = Settings(frames=((96, 64),), compute_capability=86)
    folder = build_engine.build(CHECKPOINT, "tensorrt-rtx", tmp_path, settings)
    manifest = read_manifest(folder)
    assert (manifest.runs_on["compute_capability"], manifest.precision) == ("86", "f16")
    assert manifest.islands == ["conv9_2"]  # without it the gate's 4 DN are missed: test_gate.py
    assert (folder / "model.plan").stat().st_size > 15e6  # 7.76 M weights in FP16
    assert "imitated in torch" in manifest.accuracy["ran_on"]
    assert any(scene["scene"].endswith(".dng") for scene in manifest.accuracy["scenes"])
    assert "the plan itself has not run" in capsys.readouterr().out
    with pytest.raises(EngineError, match=r"no NVIDIA card|has .* of"):
        trusted_manifest(folder, "tensorrt-rtx")


@pytest.mark.parametrize(
    ("checkpoint", "precision", "islands"),
    [("unet_half", "f16", ["conv1_1", "conv1_2", "conv9_2"]), ("unet_small", "f32", [])],
)
def test_what_the_gate_refuses_in_fp16_is_built_in_wider_numbers(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], checkpoint: str, precision: str, islands: list[str]
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    assert data.exists()
    settings = Settings(frames=((96, 64),), compute_capability=86)
    file = CHECKPOINT.with_name(f"{checkpoint}.safetensors")
    manifest = read_manifest(build_engine.build(file, "tensorrt-rtx", tmp_path, settings))
    assert (manifest.precision, manifest.islands) == (precision, islands)
    assert all("at most 4 DN are allowed" in sentence for sentence in manifest.accuracy["refused"])
    most = ALLOWANCES[precision].most_dn
    assert all(scene["difference_dn"] <= most for scene in manifest.accuracy["scenes"])
    assert manifest.accuracy["refused"][-1] in capsys.readouterr().out


@pytest.fixture(scope="module")
def half_nafnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The strongly typed graph of a NAFNet with its islands."""
    folder = tmp_path_factory.mktemp("half")
    network = small_naf(8, True)
    saved(folder, network)
    islands = choose_islands(network, list(low_light_crops(15583.0))[:1], 1424 * 2128)
    assert "middle_blks.0.sca.0" in islands  # its sum over a frame leaves FP16's range
    graph.onnx_from_network(network, folder / "n.onnx", half=True, islands=islands)
    return folder / "n.onnx"


@pytest.mark.parametrize("compute_capabilities", [(89,), (86, 89, 120)])
def test_rtx_plans_of_a_nafnet(half_nafnet: Path, tmp_path: Path, compute_capabilities: tuple[int, ...]) -> None:
    """Every layer and every island is supported; one plan may be for several cards."""
    pytest.importorskip("tensorrt_rtx_bindings")
    options = PlanOptions((16, 16), (64, 96), (1424, 2128), compute_capabilities, level=1)
    plan_from_onnx(half_nafnet, tmp_path / "plan", "tensorrt-rtx", options)
    assert (tmp_path / "plan").stat().st_size > 1e5


def test_a_plan_that_is_interrupted_is_no_failed_build(
    half_nafnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a build Python runs in the builder's callbacks alone, where it would be swallowed."""
    pytest.importorskip("tensorrt_rtx_bindings")
    told = []

    def interrupted(*_: object, **__: object) -> None:
        told.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_engine, "print", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        plan_from_onnx(half_nafnet, tmp_path / "plan", "tensorrt-rtx", PlanOptions((16, 16), (64, 96), (64, 96), (86,)))
    assert told
    assert not (tmp_path / "plan").exists()


def test_a_graph_that_the_parser_refuses(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    options = PlanOptions((16, 16), (16, 16), (16, 16), (86,))
    with pytest.raises(EngineError, match=r"cannot parse junk\.onnx"):
        plan_from_onnx(tmp_path / "junk.onnx", tmp_path / "plan", "tensorrt-rtx", options)
    assert not (tmp_path / "plan").exists()


def test_a_plan_without_a_card_is_one_sentence(tmp_path: Path) -> None:
    if this_machine().card:
        pytest.skip("this machine has a card")
    with pytest.raises(EngineError, match="needs an NVIDIA card, and this machine has none"):
        PlanEngine(tmp_path / "model.plan", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("frames", "tile", "largest"),
    [
        (((4240, 2832),), 13, (2416, 2416)),
        (((33, 47),), 13, (2416, 2416)),
        (((4240, 2832),), 1.05, (688, 688)),
        (((4240, 2832),), 0.41, (432, 432)),
    ],
)
def test_profiles_cover_what_is_asked(
    frames: tuple[tuple[int, int], ...], tile: float, largest: tuple[int, int]
) -> None:
    profile = Settings(frames=frames, tile=tile).profile(16)
    assert profile["largest"] == largest
    assert profile["smallest"] == (16, 16)


@given(
    frame=st.sampled_from([(4240, 2832), (3024, 4032), (3456, 4608), (5504, 8256), (6336, 9504), (8736, 11648)])
    | st.tuples(st.integers(32, 12000), st.integers(32, 12000)),
    tile=st.sampled_from([13.0, 4.0, 0.5]),
)
def test_a_plan_takes_what_the_client_sends(frame: tuple[int, int], tile: float) -> None:
    """Whole frames, and the tiles of larger ones, of every camera."""
    largest = Settings(tile=tile).profile(16)["largest"]
    for sent in plan_tiles(frame, round(1e6 * tile)):
        assert sent.rows.stop - sent.rows.start <= 2 * largest[0]
        assert sent.columns.stop - sent.columns.start <= 2 * largest[1]


@pytest.mark.parametrize("text", ["4240", "0x0", "31x400", "axb", "4240x2832x3", "-5x100"])
def test_odd_frames_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_engine.main([f"--frame={text}"])
    assert "is no frame; write width x height" in capsys.readouterr().err


def test_the_script_runs_by_itself(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, PROJECT / "export" / "build_engine.py", "--checkpoint", "nowhere.pt"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "build_engine: nowhere.pt: there is no such file\n"


def test_openvino_does_not_report_home() -> None:
    code = "import exposure.export.openvino_engine, sys; sys.exit(sys.modules['openvino_telemetry'] is not None)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_low_light_crops_are_dark() -> None:
    crops = list(low_light_crops(15583.0))
    assert [crop.image.shape[2] % 16 for crop in crops] == [0, 0, 0]
    assert all(0 < crop.photon_gain < 0.02 for crop in crops)
