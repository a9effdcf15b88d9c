"""Which configuration is served, and what is said of it; the configurations as Triton's own protobuf reads them."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROJECT
from google.protobuf import text_format
from test_manifest import plan_for
from tritonclient.grpc import model_config_pb2

from exposure.assets import MODEL_REPOSITORY
from exposure.client import hardware
from exposure.client import server as launcher
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import ServerError
from exposure.export.ensembles import LEAVES, install_configs
from exposure.kernels import machine
from exposure.kernels.machine import Machine, outdated_driver, this_machine

FOR_RTX = {"library": "tensorrt-rtx-cu13-bindings", "library_version": "1.7.1.116", "compute_capability": "86"}
A_CARD = Machine("RTX A5000", "86", "13.0", "580.65")


@pytest.mark.parametrize("leaf", LEAVES)
def test_all_configurations_of_a_model_have_one_interface(leaf: str) -> None:
    files = [MODEL_REPOSITORY / leaf / "config.pbtxt", *(MODEL_REPOSITORY / leaf / "configs").glob("*.pbtxt")]
    configs = [text_format.Parse(file.read_text(), model_config_pb2.ModelConfig()) for file in files]
    assert len(configs) > 1
    assert all(list(config.input) == list(configs[0].input) for config in configs)
    assert all(list(config.output) == list(configs[0].output) for config in configs)


def test_an_engine_for_other_cards_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("openvino", "tensorrt-rtx"):
        plan_for(tmp_path / "denoiser" / "1" / target, target, FOR_RTX)
    monkeypatch.setattr(hardware, "this_machine", lambda: Machine("RTX 4090", "89", "13.0", "580.65"))
    monkeypatch.setattr(machine, "find_spec", lambda _: object())
    monkeypatch.setattr(machine, "built", Path)
    monkeypatch.setattr(machine, "python_backend_lacks", str)
    chosen = hardware.choose_config(tmp_path)
    assert chosen.config_name == "cpu"
    assert (
        "was built for cards of compute capability 86, and this machine has RTX 4090 of 89; rebuild with:" in chosen.why
    )


@pytest.mark.parametrize(
    ("installed", "card", "modules", "choice", "said"),
    [
        ("openvino", "", True, "cpu", "no NVIDIA card is here"),
        ("openvino tensorrt-rtx", "", True, "cpu", "no NVIDIA card is here"),
        ("openvino tensorrt-rtx", "RTX A5000", True, "rtx", "RTX A5000 is here, and an engine of TensorRT for RTX"),
        ("openvino tensorrt-rtx", "RTX A5000", False, "cpu", "is here, but tensorrt_rtx_bindings and cupy are missing"),
        (
            "openvino",
            "RTX A5000",
            True,
            "cpu",
            r"is here, but no engine for it \(build one with: .* --target tensorrt-rtx",
        ),
        ("openvino tensorrt", "H100", True, "cpu", "served by NVIDIA's container alone"),
        (
            "tensorrt-rtx",
            "RTX A5000",
            False,
            None,
            "cannot run on .*: .* and cupy are missing, and the engine needs",
        ),
        ("tensorrt-rtx", "", True, None, "needs an NVIDIA card, and none is here; build one with: .* openvino"),
        ("tensorrt", "H100", True, None, "is served by NVIDIA's container: deploy/README.md"),
        ("", "", True, None, "is no model repository; build one with: python export/build_engine.py --repository /"),
    ],
)
def test_what_is_served_and_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: str,
    card: str,
    modules: bool,
    choice: str | None,
    said: str,
) -> None:
    for target in installed.split():
        plan_for(tmp_path / "denoiser" / "1" / target, target, FOR_RTX)
    monkeypatch.setattr(hardware, "this_machine", lambda: replace(A_CARD, card=card) if card else Machine())
    monkeypatch.setattr(machine, "find_spec", lambda _: object() if modules else None)
    monkeypatch.setattr(machine, "built", Path)
    monkeypatch.setattr(machine, "python_backend_lacks", str)
    if choice is None:
        with pytest.raises(ServerError, match=said):
            hardware.choose_config(tmp_path)
    else:
        chosen = hardware.choose_config(tmp_path)
        assert chosen.config_name == choice
        assert re.search(said, chosen.why)


def test_no_command_is_advised_that_can_only_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX refuses a data-centre card of Hopper."""
    plan_for(tmp_path / "denoiser" / "1" / "openvino", "openvino", FOR_RTX)
    monkeypatch.setattr(hardware, "this_machine", lambda: replace(A_CARD, card="H200", compute_capability="90"))
    why = hardware.choose_config(tmp_path).why
    assert "H200 is here, but TensorRT for RTX is not for cards of compute capability 90" in why
    assert "deploy/README.md" in why
    assert "tensorrt-rtx" not in why


def test_triton_must_find_the_driver_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def missing(name: str) -> None:
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(machine, "find_library", lambda name: name)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert machine.python_backend_lacks().endswith("which is not here; link it to libcuda.so.1")
    assert asked == ["libcuda.so"]


def test_what_is_to_be_built_is_built_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the repository that was asked for, and the target where only one will do."""
    (tmp_path / "denoiser").mkdir()
    with pytest.raises(ServerError) as caught:
        hardware.choose_config(tmp_path)
    assert str(caught.value).startswith(f"no engine in {tmp_path / 'denoiser' / '1'}; build one with: ")
    assert str(caught.value).endswith(f"build_engine.py --repository {tmp_path}")
    plan_for(tmp_path / "denoiser" / "1" / "tensorrt-rtx", "tensorrt-rtx", FOR_RTX)
    monkeypatch.setattr(hardware, "this_machine", Machine)
    with pytest.raises(ServerError) as caught:
        hardware.choose_config(tmp_path)
    assert str(caught.value).endswith(f"build_engine.py --target openvino --repository {tmp_path}")


def test_a_card_without_the_kernels_for_it_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Path:
        raise OSError(f"{name} is not built; install the project with pip")

    for target in ("openvino", "tensorrt-rtx"):
        plan_for(tmp_path / "denoiser" / "1" / target, target, FOR_RTX)
    monkeypatch.setattr(hardware, "this_machine", lambda: A_CARD)
    monkeypatch.setattr(machine, "find_spec", lambda _: object())
    monkeypatch.setattr(machine, "built", missing)
    chosen = hardware.choose_config(tmp_path)
    assert chosen.config_name == "cpu"
    assert "RTX A5000 is here, but libexposure_kernels_cuda.so is not built; install the project with pip" in chosen.why


@pytest.mark.parametrize(
    ("built_on", "convolutions", "here", "told"),
    [
        ("x86_64", "", True, True),
        ("x86_64", "", False, False),
        ("x86_64 with BF16", "", True, False),
        ("x86_64", "winograd", True, False),  # it computes in FP32, here as there
    ],
)
def test_an_engine_of_a_slower_processor_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_on: str, convolutions: str, here: bool, told: bool
) -> None:
    folder = tmp_path / "denoiser" / "1" / "openvino"
    plan_for(folder, "openvino", {"library": "openvino"})
    text = json.loads((folder / "manifest.json").read_text())
    text["built_from"]["processor"], text["convolutions"] = built_on, convolutions
    (folder / "manifest.json").write_text(json.dumps(text))
    monkeypatch.setattr(hardware, "this_machine", Machine)
    monkeypatch.setattr(hardware, "has_bf16", lambda: here)
    assert ("built on a processor without BF16" in hardware.choose_config(tmp_path).why) == told


def test_a_python_without_its_library_cannot_serve_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("openvino", "tensorrt-rtx"):
        plan_for(tmp_path / "denoiser" / "1" / target, target, FOR_RTX)
    monkeypatch.setattr(hardware, "this_machine", lambda: A_CARD)
    monkeypatch.setattr(machine, "find_spec", lambda _: object())
    monkeypatch.setattr(machine, "built", Path)
    monkeypatch.setattr(machine, "PYTHON_LIBRARY", "libpython9.99.so.1.0")
    chosen = hardware.choose_config(tmp_path)
    assert chosen.config_name == "cpu"
    assert "RTX A5000 is here, but libpython9.99.so.1.0 is not here, and Triton's Python backend needs it" in chosen.why


def test_a_driver_that_is_too_old_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(A_CARD, cuda="12.4", driver="550.54")
    plan_for(tmp_path / "denoiser" / "1" / "tensorrt-rtx", "tensorrt-rtx", FOR_RTX)
    monkeypatch.setattr(hardware, "this_machine", lambda: old)
    sentence = "cannot run on RTX A5000: the driver knows CUDA 12.4; tensorrt-rtx needs driver 580 or later"
    with pytest.raises(ServerError, match=sentence):
        hardware.choose_config(tmp_path)
    plan_for(tmp_path / "denoiser" / "1" / "openvino", "openvino", {"library": "openvino"})
    assert hardware.choose_config(tmp_path).config_name == "cpu"
    assert outdated_driver(replace(old, cuda="13.0")) == outdated_driver(Machine()) == ""


def test_a_build_beside_an_old_driver_ends_at_once(tmp_path: Path) -> None:
    """Before minutes are spent; the driver is a made-up one."""
    driver = ["gcc", "-shared", "-fPIC", str(PROJECT / "tests" / "card.c"), "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(driver, check=True)
    made_up = {"CARD_NAME": "A card", "CARD_CAPABILITY": "86", "CARD_CUDA": "12040"}
    command = [sys.executable, str(PROJECT / "export" / "build_engine.py"), "--target", "tensorrt-rtx"]
    result = subprocess.run(
        [*command, "--repository", str(tmp_path / "repository")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **made_up, "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert result.returncode == 1
    assert result.stderr == "build_engine: the driver knows CUDA 12.4; tensorrt-rtx needs driver 580 or later\n"


def test_the_rtx_denoiser_refuses_to_start_without_its_card(tmp_path: Path) -> None:
    """The real server, its Python backend and model.py; the sentence comes from the driver's absence."""
    if this_machine().card:
        pytest.skip("this machine has a card")
    install_configs(tmp_path, concat_origin=False)
    plan_for(tmp_path / "denoiser" / "1" / "tensorrt-rtx", "tensorrt-rtx", FOR_RTX)
    for other in ("pack", "expose", "unpack"):  # they would refuse too, and first
        shutil.rmtree(tmp_path / other)
    config = tmp_path / "denoiser" / "configs" / "rtx.pbtxt"
    options = ServerOptions(tmp_path, "rtx", grpc_port=0, http_port=0, metrics_port=0)
    with pytest.raises(ServerError, match="invalid or unsupported gpu id 0"), running_server(options):
        pass
    config.write_text(
        config.read_text().replace("KIND_GPU count: 1 gpus: [ 0 ]", "KIND_CPU count: 1")
    )  # so that Triton lets model.py speak
    sentence = "was built for cards of compute capability 86, and this machine has no NVIDIA card"
    with pytest.raises(ServerError, match=sentence), running_server(options):
        pass


@pytest.mark.parametrize("config", sorted(MODEL_REPOSITORY.rglob("*.pbtxt")), ids=lambda path: path.parent.name)
def test_configurations_are_what_triton_reads(config: Path) -> None:
    parsed = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    assert parsed.name == config.relative_to(MODEL_REPOSITORY).parts[0]
    for group in parsed.instance_group:  # the card that plans are built, judged and held against the manifest for
        assert list(group.gpus) == [0] * (group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU)


def test_the_card_holds_what_waits_between_models() -> None:
    """Else the host does, and what Triton pins there the Python backend does not fill."""
    flags = dict(
        flag.partition("=")[::2] for flag in launcher._command(ServerOptions(config_name="rtx"), Path(), Path())
    )
    assert flags["--pinned-memory-pool-byte-size"] == "0"
    card, pool = flags["--cuda-memory-pool-byte-size"].split(":")
    assert card == "0"
    assert int(pool) > 3 * 4 * 1_000_000 * ServerOptions.megapixels_in_flight  # images of FP32, of 4 planes
    on_cpu = " ".join(launcher._command(ServerOptions(), Path(), Path()))
    assert "pool" not in on_cpu
