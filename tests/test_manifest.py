"""Engines not to be trusted: changed, cut short, swapped, of another card, version or checkpoint; a sentence each."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import openvino
import pytest
import torch
from conftest import PROJECT
from test_nafnet import small_naf

from exposure.assets import CHECKPOINT
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import ServerError
from exposure.export import build_engine
from exposure.export.arithmetic import installed_engine
from exposure.export.install import seal
from exposure.export.recipes import Settings
from exposure.kernels.machine import Machine, mismatch
from exposure.kernels.manifest import EngineError, EngineManifest, read_manifest, trusted_manifest
from exposure.networks import CheckpointInfo, save_checkpoint

A5000, H100 = Machine("NVIDIA RTX A5000", "86", "13.0", "580.1"), Machine("NVIDIA H100", "90", "13.0", "580.1")
ADA = Machine("NVIDIA RTX 4090", "89", "13.0", "580.1")
FOR_A5000 = {
    "library": "tensorrt",
    "library_version": "10.14.1.48",
    "card": A5000.card,
    "compute_capability": "86",
    "portable": "no",
}
SMALL = Settings(frames=((96, 64),), fp32=True)


@pytest.fixture
def engine(small_repository: Path) -> Path:
    """A small engine, in a repository of its own."""
    return small_repository / "denoiser" / "1" / "openvino"


@pytest.fixture
def copied(engine: Path, tmp_path: Path) -> Path:
    """The same, in a copy of its repository that a test may spoil."""
    shutil.copytree(engine.parents[2], tmp_path / "repository")
    return tmp_path / "repository" / "denoiser" / "1" / "openvino"


@pytest.fixture(scope="module")
def server_says(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The C++ reader of the server, compiled alone, with and without the made-up driver."""
    folder = tmp_path_factory.mktemp("reader")
    wheel = Path(openvino.__file__).parent
    library = next((wheel / "libs").glob("libopenvino.so*"))
    sources = [PROJECT / "tests" / "read_manifest.cpp", PROJECT / "kernels" / "backend" / "manifest.cpp"]
    compiler = ["g++", "-std=c++17", "-O1", f"-I{wheel / 'include'}", *map(str, sources), str(library), "-ldl"]
    subprocess.run([*compiler, "-o", folder / "reader"], check=True)
    (folder / "driver").mkdir()
    driver = ["gcc", "-shared", "-fPIC", str(PROJECT / "tests" / "card.c")]
    subprocess.run([*driver, "-o", folder / "driver" / "libcuda.so.1"], check=True)

    def says(engine: Path, card: Machine | None = None) -> str:
        path = f"{wheel / 'libs'}:{folder / 'driver' if card else ''}"
        environment = {**os.environ, "LD_LIBRARY_PATH": path}
        if card:
            environment |= {"CARD_NAME": card.card, "CARD_CAPABILITY": card.compute_capability}
        result = subprocess.run(
            [folder / "reader", engine], capture_output=True, text=True, env=environment, check=False
        )
        assert result.stderr == ""
        return result.stdout.strip()

    return says


def plan_for(folder: Path, target: str, runs_on: dict[str, str]) -> Path:
    """A folder with a manifest for a card; its plan is never deserialised here."""
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(b"plan")
    manifest = EngineManifest(
        target=target,
        network="UNet",
        inputs=["IMAGE", "PHOTON_GAIN"],
        photon_unit=15583,
        multiple=16,
        precision="f16",
        islands=[],
        frames=[],
        profile={"smallest": [16, 16], "usual": [1424, 2128], "largest": [2128, 2128]},
        planes=[],
        licence="CC0-1.0",
        runs_on=runs_on,
        accuracy={},
        built_from={"compute_capability": "None"},
        build_seconds=0,
        rebuild=f"python export/build_engine.py --target {target}",
    )
    seal(folder, manifest)
    return folder


def edit(folder: Path, **runs_on: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["runs_on"] |= runs_on
    path.write_text(json.dumps(manifest))


def test_a_good_engine_is_trusted(engine: Path, server_says: Callable[..., str]) -> None:
    assert trusted_manifest(engine, "openvino").network == "NAFNet"
    assert server_says(engine) == "trusted"


@pytest.mark.parametrize("spoil", ["flipped byte", "truncated", "swapped", "missing"])
def test_files_are_held_against_their_hashes(
    copied: Path, server_says: Callable[..., str], tmp_path: Path, spoil: str
) -> None:
    """Found before anything is deserialised, by the tools and by the server, with the same sentence."""
    weights = copied / "model.bin"
    content = bytearray(weights.read_bytes())
    if spoil == "flipped byte":
        content[1000] ^= 1
    elif spoil == "truncated":
        del content[-100:]
    elif spoil == "swapped":  # by the one of another checkpoint, of the same size
        save_checkpoint(small_naf(8, True), tmp_path / "b.safetensors", CheckpointInfo(), dtype=torch.float16)
        other = build_engine.build(tmp_path / "b.safetensors", "openvino", tmp_path / "other", SMALL)
        assert (other / "model.bin").stat().st_size == len(content)
        content = bytearray((other / "model.bin").read_bytes())
    weights.write_bytes(content)
    if spoil == "missing":
        weights.unlink()
    with pytest.raises(EngineError, match=r"model\.bin is not the file that was built; rebuild with") as caught:
        installed_engine(copied)
    assert server_says(copied) == str(caught.value)
    assert str(caught.value).endswith("--frame 96x64 --fp32")


def test_the_command_in_a_refusal_is_as_it_was_written(tmp_path: Path, server_says: Callable[..., str]) -> None:
    """By the tools and by the server, where names have accents, spaces, quotes and backslashes."""
    folder = plan_for(tmp_path / "plan", "tensorrt", FOR_A5000)
    path, odd = folder / "manifest.json", shlex.quote('/my "ré"\\')
    manifest = replace(read_manifest(folder), rebuild=f"python build_engine.py --repository {odd}", files={})
    path.unlink()
    seal(folder, manifest)
    (folder / "model.plan").write_bytes(b"another")
    with pytest.raises(EngineError) as caught:
        read_manifest(folder)
    assert str(caught.value).endswith(f"rebuild with: python build_engine.py --repository {odd}")
    assert server_says(folder) == str(caught.value)


def test_a_missing_engine_is_to_be_built_where_it_is_missed(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        read_manifest(tmp_path / "denoiser" / "1" / "openvino")
    assert str(caught.value).endswith(f"build_engine.py --target openvino --repository {tmp_path}")


def test_another_version_is_refused(copied: Path, server_says: Callable[..., str]) -> None:
    edit(copied, library_version="2025.1.0")
    with pytest.raises(EngineError) as caught:
        installed_engine(copied)
    sentence = "was built by openvino 2025.1.0, and this machine has openvino 2026.4.1; rebuild with: python"
    assert sentence in str(caught.value)
    assert sentence.replace("machine", "server") in server_says(copied)


def test_the_server_ends_its_start_with_the_sentence(copied: Path) -> None:
    edit(copied, library_version="2025.1.0")
    options = ServerOptions(copied.parents[2], grpc_port=0, http_port=0, metrics_port=0)
    with (
        pytest.raises(ServerError, match=r"was built by openvino 2025\.1\.0, and this server has openvino 2026"),
        running_server(options),
    ):
        pass


def test_another_checkpoint_is_refused(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = engine.parents[3] / "small.safetensors"
    assert trusted_manifest(engine, "openvino", own)
    with pytest.raises(EngineError, match=r"was built from the checkpoint of SHA-256 [0-9a-f]{12}\.\.\., and .* is"):
        trusted_manifest(engine, "openvino", CHECKPOINT)
    where = ["--check", "--repository", str(engine.parents[2]), "--target", "openvino"]
    assert build_engine.main([*where, "--checkpoint", str(own)]) == 0
    assert build_engine.main(where) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_another_target_is_refused(engine: Path) -> None:
    with pytest.raises(EngineError, match="holds an engine for openvino; this is the tensorrt loader"):
        trusted_manifest(engine, "tensorrt")


@pytest.mark.parametrize(
    ("change", "machine", "library", "sentence"),
    [
        ({}, A5000, "10.14.1.48", None),
        ({}, replace(A5000, driver="590.2"), "10.14.1.48", None),
        ({}, H100, "10.14.1.48", "A5000 of compute capability 86, and this machine has NVIDIA H100 of 90"),
        ({}, ADA, "10.14.1.48", "and this machine has NVIDIA RTX 4090 of 89"),
        ({}, replace(A5000, card="NVIDIA RTX A6000"), "10.14.1.48", "and this machine has NVIDIA RTX A6000"),
        ({}, Machine(), "10.14.1.48", "and this machine has no NVIDIA card"),
        ({}, A5000, "10.15.0.1", "built by tensorrt 10.14.1.48, and this machine has tensorrt 10.15.0.1"),
        ({}, A5000, "", "and this machine has no tensorrt"),
        ({"portable": "yes"}, ADA, "10.15.0.1", None),
        ({"portable": "yes"}, ADA, "10.4.0", "built by tensorrt 10.14.1.48, and this machine has tensorrt 10.4.0"),
        ({"portable": "yes"}, replace(A5000, compute_capability="75"), "10.14.1.48", "of compute capability 86, and"),
        ({"portable": "yes"}, replace(A5000, card="NVIDIA A100", compute_capability="80"), "10.14.1.48", None),
        ({"portable": "yes", "library": "tensorrt-rtx-cu13-bindings"}, ADA, "10.15.0.1", "built by tensorrt-rtx-cu13"),
        ({"card": "", "compute_capability": "86 89"}, ADA, "10.14.1.48", None),
        ({"card": "", "compute_capability": "86 89"}, H100, "10.14.1.48", "cards of compute capability 86, 89, and"),
    ],
)
def test_machines(change: dict[str, str], machine: Machine, library: str, sentence: str | None) -> None:
    problem = mismatch(FOR_A5000 | change, machine, library)
    assert (problem is None) == (sentence is None)
    assert sentence is None or sentence in str(problem)


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        (A5000, "trusted up to 2128x2128"),  # planes
        (H100, "was built for cards of compute capability 86 89, and this machine has NVIDIA H100 of 90; rebuild with"),
        (None, "was built for cards of compute capability 86 89, and this machine has no NVIDIA card; rebuild with"),
    ],
)
def test_the_server_asks_the_driver(
    tmp_path: Path, server_says: Callable[..., str], card: Machine | None, sentence: str
) -> None:
    if card is None and Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a card")
    runs_on = {"library": "tensorrt-rtx", "library_version": "1.7.1.116", "compute_capability": "86 89", "card": ""}
    assert sentence in server_says(plan_for(tmp_path / "plan", "tensorrt-rtx", runs_on), card)


def test_the_server_asks_for_its_library(tmp_path: Path, server_says: Callable[..., str]) -> None:
    said = server_says(plan_for(tmp_path / "plan", "tensorrt", FOR_A5000), A5000)
    if "trusted" in said or "this server has tensorrt 1" in said:
        pytest.skip("TensorRT is installed here")
    assert "was built by tensorrt 10.14.1.48, and this server has no tensorrt; rebuild with: python" in said


def test_the_driver_is_asked_the_same_in_python(tmp_path: Path) -> None:
    subprocess.run(
        ["gcc", "-shared", "-fPIC", PROJECT / "tests" / "card.c", "-o", tmp_path / "libcuda.so.1"], check=True
    )
    code = "from exposure.kernels.machine import this_machine; print(this_machine())"
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "CARD_NAME": "A card", "CARD_CAPABILITY": "120"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )
    assert "Machine(card='A card', compute_capability='120', cuda='13.0'" in result.stdout


def test_the_manifest_is_complete(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest.runs_on["library_version"]
    assert len(manifest.built_from["checkpoint"]) == 64
    assert set(manifest.files) == {"model.xml", "model.bin"}
    assert manifest.profile == {"smallest": [16, 16], "usual": [32, 48], "largest": [2416, 2416]}
    assert manifest.planes == [[32, 48]]
    assert manifest.build_seconds > 0
    scenes = manifest.accuracy["scenes"]
    assert {(scene["scene"], scene["passes"]) for scene in scenes} >= {("odd", 1), ("odd", 3), ("full-frame", 1)}
    assert all(scene["agreement_db"] > 70 for scene in scenes)
