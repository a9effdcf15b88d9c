"""The U-Net's kernels on a processor against the definition in torch, and against themselves."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_networks import variant

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT
from exposure.kernels import unet
from exposure.kernels.unet import LAYERS, UNetEngine
from exposure.networks import UNet
from exposure.quality import agreement_db

pytestmark = pytest.mark.skipif(not unet.lanes(), reason=unet.NO_VECTORS)

GAIN = np.array([37], np.float32)
# Winograd's F(4x4, 3x3) multiplies by up to 8 and subtracts: a few bits of FP32's 24 are lost (Lavin and Gray, 2015).
# 110 dB are errors of 3e-6; a wrong tile, border or weight is below 60.
LEAST_DB = 110


def engine_of(network: UNet, most_lanes: int = unet.WIDEST) -> UNetEngine:
    return UNetEngine({name: value.numpy() for name, value in network.state_dict().items()}, most_lanes=most_lanes)


def planes(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((1, 4, height, width), np.float32) ** 2


def defined(network: UNet, image: NDArray[np.float32], original: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return network(torch.from_numpy(image), torch.from_numpy(GAIN), torch.from_numpy(original)).numpy()


def test_the_layers_are_the_networks() -> None:
    """In the order in which the network has them, which is that of csrc/unet.h."""
    assert [name.removesuffix(".weight") for name in variant(8, True).state_dict() if "weight" in name] == list(LAYERS)


@pytest.mark.parametrize(("inputs", "adaptive"), [(4, False), (4, True), (8, True), (12, False), (12, True)])
@pytest.mark.parametrize("width", [4, 16, 20])
def test_every_variant_is_the_definition(inputs: int, adaptive: bool, width: int) -> None:
    """Also where channels are padded, and a level has half a vector too few."""
    network = variant(inputs, adaptive, width)
    image, original = planes(48, 80), planes(48, 80, seed=1)
    assert agreement_db(engine_of(network)(image, GAIN, original), defined(network, image, original)) > LEAST_DB


@pytest.mark.parametrize(
    "widths", [(40, 8, 8, 24, 4), (4, 48, 4, 64, 8), (4, 4, 300, 4, 4), (4, 4, 4, 4, 200), (100, 4, 4, 4, 4)]
)
def test_every_width_finds_its_place(widths: tuple[int, ...]) -> None:
    """The levels share one piece of memory, whichever of them is the largest."""
    torch.manual_seed(0)
    network = UNet(concat_origin=True, widths=widths).eval()
    image, original = planes(80, 64), planes(80, 64, seed=1)
    assert agreement_db(engine_of(network)(image, GAIN, original), defined(network, image, original)) > LEAST_DB


@settings(max_examples=25)
@given(rows=st.integers(1, 13), columns=st.integers(1, 13), seed=st.integers(0, 9))
def test_every_size_is_the_definition(rows: int, columns: int, seed: int) -> None:
    """Tiles of 4x4 hang over the sides of some levels, and blocks of tiles over the ends of rows."""
    network = variant(12, True)
    image, original = planes(16 * rows, 16 * columns, seed), planes(16 * rows, 16 * columns, seed + 10)
    assert agreement_db(engine_of(network)(image, GAIN, original), defined(network, image, original)) > LEAST_DB


@pytest.mark.parametrize(
    ("widths", "sides"),
    [
        # the deepest level has 81 tiles: for one thread in large blocks, for three not
        ((4, 4, 4, 4, 300), (576, 576)),
        # the first has 192, for one thread in large blocks, each with several parts of the last layer
        ((272, 4, 4, 4, 4), (48, 64)),
    ],
)
def test_many_channels_are_the_definition(
    monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...], sides: tuple[int, int]
) -> None:
    """Where weights are many, blocks hold more tiles, unless threads would wait for each other: the same bits."""
    torch.manual_seed(0)
    network, image = UNet(concat_origin=True, widths=widths).eval(), planes(*sides)
    monkeypatch.setattr(unet, "threads", lambda: 1)
    clean = engine_of(network)(image, GAIN, image)
    assert agreement_db(clean, defined(network, image, image)) > LEAST_DB
    np.testing.assert_array_equal(engine_of(network, 8)(image, GAIN, image), clean)
    monkeypatch.setattr(unet, "threads", lambda: 3)
    np.testing.assert_array_equal(engine_of(network)(image, GAIN, image), clean)


def test_the_shipped_network_is_the_definition() -> None:
    network = load_checkpoint(CHECKPOINT)
    assert isinstance(network, UNet)
    image, original = planes(112, 176), planes(112, 176, seed=1)
    assert agreement_db(engine_of(network)(image, GAIN, original), defined(network, image, original)) > LEAST_DB


def test_vectors_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits by AVX-512 and AVX2, by one thread and by more than there are blocks."""
    network, image = variant(12, True, 20), planes(64, 112)
    expected = engine_of(network)(image, GAIN, image)
    for lanes in {8, unet.lanes()}:
        for threads in (1, 3, 40):
            monkeypatch.setattr(unet, "threads", lambda number=threads: number)
            np.testing.assert_array_equal(engine_of(network, lanes)(image, GAIN, image), expected)


def test_nothing_is_left_of_earlier_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a larger pass, whether kept or given back, does not show in a smaller one."""
    network, large, small = variant(12, True), planes(96, 96), planes(16, 32)
    expected = engine_of(network)(small, GAIN, small)
    for kept in (unet.KEPT_PIXELS, 1000):
        monkeypatch.setattr(unet, "KEPT_PIXELS", kept)
        engine = engine_of(network)
        for _ in range(2):
            engine(np.full_like(large, np.nan), GAIN, large)
            np.testing.assert_array_equal(engine(small, GAIN, small), expected)


def test_what_is_no_number_does_not_vanish() -> None:
    """The accuracy gate looks for it. Far from it, at both ends of the row, nothing is known of it."""
    image = np.where(np.arange(800) == 400, np.float32(np.nan), planes(32, 800))
    clean = engine_of(variant(4, True))(image, GAIN)
    assert np.isnan(clean[..., 400]).all()
    assert np.isfinite(clean[..., [0, 799]]).all()


def test_a_mask_that_is_no_number_does_not_vanish() -> None:
    """Also where both estimates that it blends are numbers."""
    network = variant(8, True)
    with torch.no_grad():
        network.get_parameter("conv10_1.bias")[0] = np.nan
    assert np.isnan(engine_of(network)(planes(32, 32), GAIN)).all()


def test_every_stage_is_timed() -> None:
    engine = engine_of(variant(8, True))
    assert engine.stage_seconds() == {}
    engine(planes(32, 32), GAIN)
    assert list(engine.stage_seconds()) == ["inputs", *LAYERS[:-1]]
    assert all(0 < seconds < 10 for seconds in engine.stage_seconds().values())


@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str) -> None:
    program, csrc = tmp_path / "sanitized", PROJECT / "kernels" / "csrc"
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    compiled = []
    for name, vectors in {"layers_avx2": ["-mavx2", "-mfma"], "layers_avx512": ["-mavx512f"], "unet": []}.items():
        compiled.append(tmp_path / f"{name}.o")
        subprocess.run(["g++", *flags, *vectors, "-c", csrc / f"{name}.cpp", "-o", compiled[-1]], check=True)
    source = PROJECT / "tests" / "sanitized_unet.cpp"
    subprocess.run(["g++", *flags, "-pthread", source, *compiled, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "48 passes\n", "")


@pytest.mark.parametrize("shape", [(1, 4, 24, 32), (4, 32, 32), (2, 4, 32, 32), (1, 3, 32, 32)])
def test_other_planes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="it must be 1x4xhxw, sides multiples of 16"):
        engine_of(variant(8, True))(np.zeros(shape, np.float32), GAIN)


def test_an_original_of_another_kind_is_refused() -> None:
    engine, image = engine_of(variant(12, True)), planes(32, 32)
    others: list[Any] = [None, planes(16, 32), image.astype(np.float64)]
    for original in others:
        with pytest.raises(ValueError, match="must be FP32 and of the same shape"):
            engine(image, GAIN, original)


def test_parameters_of_another_size_are_refused() -> None:
    parameters = {name: value.numpy() for name, value in variant(8, True).state_dict().items()}
    others = {"conv5_2.weight": (64, 64, 1, 1), "upv6.bias": (31,), "conv1_1.weight": (4, 7, 3, 3)}
    for name, shape in others.items():
        with pytest.raises(ValueError, match="are not those of a U-Net"):
            UNetEngine(parameters | {name: np.zeros(shape)})


def test_a_processor_without_its_vectors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "lanes", lambda: 0)
    with pytest.raises(OSError, match="neither AVX-512 nor AVX2"):
        engine_of(variant(8, True))


def test_too_little_memory_is_told_and_survived() -> None:
    """In a process that may have little: the pass is refused, a smaller one still answered."""
    code = """
import resource, numpy as np
from test_networks import variant
from exposure.kernels.unet import UNetEngine
engine = UNetEngine({name: value.numpy() for name, value in variant(8, True, 32).state_dict().items()})
image, gain = np.zeros((1, 4, 1600, 1600), np.float32), np.ones(1, np.float32)
before = engine(image[..., :32, :32], gain)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (400 << 20), resource.RLIM_INFINITY))
try:
    engine(image, gain)
except MemoryError as error:
    assert str(error) == "memory does not suffice for planes of 1600x1600", error
    assert np.array_equal(engine(image[..., :32, :32], gain), before)
    print("told")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="tests", check=False)
    assert result.stdout == "told\n", result.stderr
