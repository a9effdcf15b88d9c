"""The files of deploy/ hold together: what can be said of them without a container runtime and without a card."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.export import options
from exposure.export.ensembles import install_configs
from exposure.export.recipes import Settings
from exposure.networks import Network
from exposure.tiles import TILE_PIXELS

USUAL_PLANES = (1424, 2128)  # of a 12 MP frame, padded
DOCKERFILE = (PROJECT / "deploy" / "Dockerfile").read_text()
COMPOSE = (PROJECT / "deploy" / "compose.yaml").read_text()


def test_both_images_are_of_one_release() -> None:
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert images == ["nvcr.io/nvidia/tensorrt:${RELEASE}-py3", "nvcr.io/nvidia/tritonserver:${RELEASE}-py3"]
    release = re.search(r"ARG RELEASE=(\S+)", DOCKERFILE)
    assert release
    assert release[1] in (PROJECT / "deploy" / "README.md").read_text()


def test_what_is_copied_is_there_and_suffices() -> None:
    copied = [word for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    for name in copied:
        assert (PROJECT / name).exists(), name
    packages = re.findall(r'^"exposure(?:/\w+)?" = "(\w+)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(packages) <= set(copied)


def test_the_composition() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(COMPOSE)["services"]
    assert [service["build"]["target"] for service in services.values()] == ["build", "server"]
    stages = re.findall(r"^FROM \S+ AS (\w+)", DOCKERFILE, re.MULTILINE)
    assert stages == ["build", "server"]
    assert services["server"]["depends_on"]["engine"]["condition"] == "service_completed_successfully"
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in services["server"]["command"] if "=" in flag)
    pool = int(flags["cuda-memory-pool-byte-size"].split(":")[1])
    assert pool > 2 * (5 * 4 * TILE_PIXELS + 2 * TILE_PIXELS)  # images in FP32, mosaics
    settings = [flag for flag in services["server"]["command"] if "megapixels-in-flight" in flag]
    assert settings == [f"--backend-config=exposure,megapixels-in-flight={2 * TILE_PIXELS // 10**6}"]
    assert flags["rate-limit-resource"] == "card:1"
    assert not services["engine"]["environment"]["EXPOSURE_CACHE"].startswith(flags["model-repository"])
    assert "--frame=4240x2832" in services["engine"]["command"]


def test_a_stop_is_waited_for() -> None:
    """By Compose for longer than by Triton, which else would be killed in the middle of an answer."""
    yaml = pytest.importorskip("yaml")
    server = yaml.safe_load(COMPOSE)["services"]["server"]
    triton = next(int(flag.partition("=")[2]) for flag in server["command"] if flag.startswith("--exit-timeout-secs="))
    assert int(server["stop_grace_period"].removesuffix("s")) > triton


def test_the_engine_is_of_a_checkpoint_that_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped one, or that of two variables; the command is one that build_engine.py takes."""
    yaml = pytest.importorskip("yaml")

    def filled(text: str) -> str:
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: os.environ.get(found[1]) or found[2], text)

    engine = yaml.safe_load(COMPOSE)["services"]["engine"]
    mounts = dict(filled(volume).split(":")[:2][::-1] for volume in engine["volumes"])
    asked = options.parser().parse_args([filled(word) for word in engine["command"]])
    options.refuse_idle_settings(asked.target, options.settings_of(asked))
    inside = mounts[str(asked.checkpoint.parent)]
    assert (PROJECT / "deploy" / inside / asked.checkpoint.name).resolve() == CHECKPOINT
    assert str(asked.repository) in mounts
    monkeypatch.setenv("CHECKPOINTS", "/home/me")
    monkeypatch.setenv("CHECKPOINT", "model.pt")
    assert "/home/me:/checkpoints:ro" in map(filled, engine["volumes"])
    assert "--checkpoint=/checkpoints/model.pt" in map(filled, engine["command"])


@pytest.mark.parametrize("concat_origin", [False, True])
def test_every_frame_has_its_graph_and_warm_up(tmp_path: Path, concat_origin: bool, network: Network) -> None:
    planes = Settings(frames=((4240, 2832), (2832, 4240), (6000, 4000))).planes(16)
    assert len(set(planes)) == 3
    install_configs(tmp_path, concat_origin, planes)
    config = text_format.Parse((tmp_path / "denoiser/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    names = {tensor.name for tensor in config.input}
    graphs, warm_ups = config.optimization.cuda.graph_spec, config.model_warmup
    assert len(graphs) == len(warm_ups) == len(planes)
    for (height, width), graph, warm_up in zip(planes, graphs, warm_ups, strict=True):
        assert set(graph.input) == set(warm_up.inputs) == names
        assert warm_up.batch_size == 1  # Triton passes over a request of 0, which is the default
        assert list(graph.input["IMAGE"].dim) == list(warm_up.inputs["IMAGE"].dims) == [1, 4, height, width]
    assert config.instance_group[0].rate_limiter.resources[0].name == "card"
    before = (tmp_path / "denoiser/config.pbtxt").read_text()
    install_configs(tmp_path, concat_origin)  # as an engine for another target does
    assert (tmp_path / "denoiser/config.pbtxt").read_text() == before
    install_configs(tmp_path, network.concat_origin, [USUAL_PLANES])
    checked_in = (MODEL_REPOSITORY / "denoiser/config.pbtxt").read_text()
    assert (tmp_path / "denoiser/config.pbtxt").read_text() == checked_in


def test_the_check_on_a_card_says_what_it_lacks() -> None:
    """Without a card nothing is called passed, and nothing fails."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a card: run the script itself")
    script = [sys.executable, str(PROJECT / "benchmarks" / "gpu_engine.py")]
    result = subprocess.run(script, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all("not checked" in line and "torch finds no NVIDIA card here" in line for line in lines)
