"""Graphs and engines against torch; what must not be installed is not."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import PROJECT
from test_nafnet import naf
from test_networks import variant

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.export import build_engine, graph
from exposure.export.ensembles import LEAVES, ensemble_config, install_configs
from exposure.export.manifest import EngineError, Manifest, read_manifest, replacing, seal
from exposure.export.openvino_engine import OpenVinoEngine, openvino_from_onnx
from exposure.export.scene import low_light_crops
from exposure.networks import CheckpointInfo, Network, save_checkpoint
from exposure.schedule import SERVED_PASSES


def saved(tmp_path: Path, network: Network, unit: float = 15583.0) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(network, path, CheckpointInfo(photon_unit=unit, licence="CC0-1.0"), dtype=torch.float32)
    network.info, network.photon_unit = CheckpointInfo(photon_unit=unit), unit
    return path


@pytest.mark.parametrize("make", [variant, naf])
@pytest.mark.parametrize(("inputs", "adaptive"), [(4, False), (8, True), (12, True)])
def test_the_graph_is_the_network(
    tmp_path: Path, make: Callable[[int, bool], Network], inputs: int, adaptive: bool
) -> None:
    network = make(inputs, adaptive)
    saved(tmp_path, network)
    path = tmp_path / "model.onnx"
    graph.onnx_from_network(network, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    wanted = ["IMAGE", "PHOTON_GAIN", "ORIGIN_IMAGE"] if inputs == 12 else ["IMAGE", "PHOTON_GAIN"]
    assert [tensor.name for tensor in model.graph.input] == wanted
    assert [tensor.name for tensor in model.graph.output] == ["CLEAN"]
    # two FP32 implementations of a random network: 100 dB is an error of 1e-5
    assert graph.agreement(network, graph.onnx_runner(path), 100, "the graph") > 100
    openvino_from_onnx(path, tmp_path)
    for precision, least in (("f32", 100), ("bf16", 50)):
        engine = OpenVinoEngine(tmp_path, precision)
        assert graph.agreement(network, engine, least, precision) > least


def test_half_graphs_cast_twice(tmp_path: Path, network: Network) -> None:
    """Strongly typed: half inside, FP32 edges and tail, so that no builder flag is needed."""
    graph.onnx_from_network(network, tmp_path / "half.onnx", half=True)
    model = onnx.load(tmp_path / "half.onnx")
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 2
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    halves = [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16]
    assert len(halves) == 2 * 22  # weight and bias of every layer but the last
    assert all(kinds[name] == onnx.TensorProto.FLOAT for name in kinds if "conv10_1" in name)


@pytest.mark.parametrize("fault", ["nan", "wrong"])
def test_a_wrong_engine_is_refused(network: Network, fault: str) -> None:
    def run(image: np.ndarray, *_: np.ndarray) -> np.ndarray:
        return np.full_like(image, np.nan) if fault == "nan" else image

    with pytest.raises(graph.GraphError, match="NaN" if fault == "nan" else "agrees with FP32 torch to"):
        graph.agreement(network, run, 60, "the engine")


def test_a_refused_graph_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overflowing weights load as finite numbers and give NaN: nothing may be left of such a build."""
    network = variant(8, True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(1e30 * torch.randn_like(parameter).sign())
    repository = tmp_path / "repository"
    monkeypatch.chdir(tmp_path)
    arguments = ["--checkpoint", str(saved(tmp_path, network)), "--repository", str(repository)]
    assert build_engine.main([*arguments, "--target", "openvino"]) == 1
    assert list((repository / "denoiser" / "1").glob("*openvino*")) == []


def test_build_installs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, repository = saved(tmp_path, variant(8, True), unit=1000.0), tmp_path / "repository"
    arguments = ["--checkpoint", str(checkpoint), "--repository", str(repository), "--target", "openvino"]
    assert build_engine.main(arguments) == 0
    manifest = read_manifest(repository / "denoiser" / "1" / "openvino")
    assert (manifest.photon_unit, manifest.multiple, manifest.licence) == (1000.0, 16, "CC0-1.0")
    assert "trace the network" in capsys.readouterr().out
    assert build_engine.main(arguments) == 0
    assert "the installed engine is kept" in capsys.readouterr().out
    saved(tmp_path, variant(8, False))
    assert build_engine.main(arguments) == 0
    assert "trace the network" in capsys.readouterr().out


def test_concat_origin_networks_get_their_wires(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    install_configs(repository, concat_origin=True)
    for config in ("config.pbtxt", "configs/cpu.pbtxt"):
        assert "ORIGIN_IMAGE" in (repository / "denoiser" / config).read_text()
    assert 'input_map { key: "ORIGIN_IMAGE" value: "image_0" }' in (repository / "exposure_1/config.pbtxt").read_text()
    install_configs(repository, concat_origin=False)
    for leaf in LEAVES:
        checked_in = (MODEL_REPOSITORY / leaf / "config.pbtxt").read_text()
        assert (repository / leaf / "config.pbtxt").read_text() == checked_in


@pytest.mark.parametrize("passes", SERVED_PASSES)
def test_checked_in_ensembles_are_the_generated_ones(passes: int) -> None:
    assert (MODEL_REPOSITORY / f"exposure_{passes}" / "config.pbtxt").read_text() == ensemble_config(passes)


def test_a_changed_engine_is_found(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "openvino"
    shutil.copytree(repository / "denoiser" / "1" / "openvino", folder)
    weights = folder / "model.bin"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.bin is not the file that was built"):
        OpenVinoEngine.installed(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(EngineError, match="not an engine manifest"):
        read_manifest(folder)
    with pytest.raises(EngineError, match="no engine in"):
        read_manifest(tmp_path)


def test_one_repository_has_one_kind_of_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A 12-channel engine beside one of 8 channels would need other ensembles: refused, and nothing rewired."""
    repository = tmp_path / "repository"
    other = repository / "denoiser" / "1" / "tensorrt"
    with replacing(other) as part:
        seal(part, Manifest("tensorrt", "UNet", ["IMAGE", "PHOTON_GAIN"], 15583, 16, "f16", {}, "CC0-1.0", {}))
    arguments = ["--checkpoint", str(saved(tmp_path, variant(12, True))), "--repository", str(repository)]
    assert build_engine.main([*arguments, "--target", "openvino"]) == 1
    assert "holds an engine with other inputs" in capsys.readouterr().err
    assert [path.name for path in repository.iterdir()] == ["denoiser"]
    assert [path.name for path in other.parent.iterdir()] == ["tensorrt"]


def test_an_engine_wants_all_its_inputs(tmp_path: Path) -> None:
    network = variant(12, True)
    saved(tmp_path, network)
    graph.onnx_from_network(network, tmp_path / "model.onnx")
    openvino_from_onnx(tmp_path / "model.onnx", tmp_path)
    image, gain = np.zeros((1, 4, 16, 16), np.float32), np.ones(1, np.float32)
    with pytest.raises(EngineError, match="IMAGE, PHOTON_GAIN, ORIGIN_IMAGE; 2 arrays came"):
        OpenVinoEngine(tmp_path, "f32")(image, gain)


def test_an_interrupted_install_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "old").touch()
    with contextlib.suppress(KeyboardInterrupt), replacing(folder) as part:
        (part / "new").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (folder / "old").exists()


def test_missing_tensorrt_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    assert build_engine.main(["--target", "tensorrt", "--repository", str(tmp_path)]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "tensorrt is not installed" in complaint
    assert list(tmp_path.iterdir()) == []


def test_rtx_plan_for_the_a5000(tmp_path: Path) -> None:
    """NVIDIA's own parser and builder, without a card."""
    pytest.importorskip("tensorrt_rtx_bindings")
    folder = build_engine.build(CHECKPOINT, "tensorrt-rtx", tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["built_from"]["compute_capability"] == "86"
    assert manifest["precision"] == "f16"
    assert (folder / "model.plan").stat().st_size > 15e6  # 7.76 M weights in FP16


def test_a_graph_that_the_parser_refuses(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    from exposure.export.tensorrt_engine import plan_from_onnx

    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(EngineError, match=r"cannot parse junk\.onnx"):
        plan_from_onnx(tmp_path / "junk.onnx", tmp_path / "plan", "tensorrt-rtx", 86)
    assert not (tmp_path / "plan").exists()


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
