"""What tests share: the real data, the shipped network, one engine, one running server."""

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from test_nafnet import small_naf

from exposure import Sensor, load_checkpoint
from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import Client
from exposure.export.build_engine import build
from exposure.export.recipes import Settings
from exposure.kernels.manifest import read_manifest
from exposure.networks import CheckpointInfo, Network, save_checkpoint
from exposure.training.leaves import dead_leaves

os.environ["EXPOSURE_CACHE"] = tempfile.mkdtemp(prefix="exposure-tests-")  # timings and kernels, not the user's
atexit.register(shutil.rmtree, os.environ["EXPOSURE_CACHE"], ignore_errors=True)
PROJECT = Path(__file__).parents[1]
CFAS = {
    "RGGB": ((0, 1), (1, 2)),
    "GRBG": ((1, 0), (2, 1)),
    "GBRG": ((1, 2), (0, 1)),
    "BGGR": ((2, 1), (1, 0)),
}

# Fixtures, and what tests import.
SERVERS = {"address", "client", "repository", "small_repository", "running_server", "shared_memory"}


def plain_tags(cfa: str = "RGGB", white: int = 4095) -> list[tuple[int, int, int, Any, bool]]:
    """What makes a TIFF of one mosaic a DNG."""
    return [
        (50706, 1, 4, (1, 4, 0, 0), True),  # DNGVersion
        (33421, 3, 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, 1, 4, CFAS[cfa][0] + CFAS[cfa][1], True),  # CFAPattern
        (50717, 4, 1, white, True),  # WhiteLevel
    ]


def tagged(path: Path, mosaic: NDArray[Any], *tags: tuple[int, int, int, Any, bool], cfa: str = "RGGB") -> Path:
    """A plain DNG of 12 bits with further tags."""
    tifffile.imwrite(path, mosaic, photometric="cfa", metadata=None, extratags=[*plain_tags(cfa), *tags])
    return path


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real RAW files; EXPOSURE_DATA names it where it is not beside the project."""
    folder = Path(os.environ.get("EXPOSURE_DATA", PROJECT.parent / "shared"))
    if not (folder / "raw").is_dir():
        pytest.skip(f"no real RAW files in {folder}; set EXPOSURE_DATA")
    return folder


def pytest_itemcollected(item: pytest.Item) -> None:
    """`make test` runs two halves side by side: one has all servers, since some tests look for what they leave."""
    names = {*getattr(item, "fixturenames", ()), *vars(getattr(item, "module", object))}
    if SERVERS & names:
        item.add_marker(pytest.mark.servers)


@pytest.fixture(scope="session")
def network() -> Network:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository whose engine computes in FP32, to be held against torch: the project's own, or, where that one
    computes in BF16, another.
    """
    installed = build(CHECKPOINT, "openvino", MODEL_REPOSITORY)
    if read_manifest(installed).precision == "f32":
        return MODEL_REPOSITORY
    own = tmp_path_factory.mktemp("f32") / "model_repository"
    build(
        CHECKPOINT, "openvino", own, Settings(frames=((768, 512),), fp32=True)
    )  # of whole frames, the gate takes long
    return own


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own, beside its checkpoint, for what any network shows: its engine starts in a second."""
    folder = tmp_path_factory.mktemp("small")
    save_checkpoint(small_naf(8, True), folder / "small.safetensors", CheckpointInfo(), dtype=torch.float32)
    build(folder / "small.safetensors", "openvino", folder / "repository", Settings(frames=((96, 64),), fp32=True))
    return folder / "repository"


@pytest.fixture(scope="session")
def address(repository: Path) -> Iterator[str]:
    """gRPC address of a real Triton server."""
    with running_server(ServerOptions(repository, grpc_port=0, http_port=0, metrics_port=0)) as server:
        yield server.address
        assert server.process.poll() is None, server.failure()  # which every later test would tell in its own way


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def dslr(data: Path, phase: str) -> tuple[NDArray[np.uint16], Sensor]:
    """The 768x512 crop of a DSLR frame in one of the four Bayer phases, 14 bit."""
    mosaic = np.fromfile(data / "raw" / f"dslr_768x512_{phase.lower()}.u16", "<u2").reshape(512, 768)
    return mosaic, Sensor((600, 600, 600, 600), 15520, CFAS[phase])


def shared_memory() -> set[str]:
    """Names of the blocks in /dev/shm, to see what a server or client leaves; torch's and Python's own come and go."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith(("torch_", "sem."))}


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(paths):
        Image.fromarray((255 * dead_leaves(160, seed)).astype(np.uint8)).save(path)
    return paths


def is_gone(pid: int) -> bool:
    """Within some seconds; one that nobody has waited for is gone, too."""
    for _ in range(500):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False
