"""The CUDA kernels without a GPU: nvcc compiles them for every card we name, and their index code runs on the CPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CFAS, PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exposure import Sensor, unroll
from exposure.kernels import ops
from exposure.kernels.library import Field, Injection

SOURCE = PROJECT / "kernels" / "csrc" / "cuda.cu"
ARCHITECTURES = (75, 80, 86, 89, 90, 120)


def test_nvcc_compiles_for_every_card(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here: the CUDA source is not compiled")
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in ARCHITECTURES]
    targets.append("-gencode=arch=compute_120,code=compute_120")  # PTX, for cards to come
    flags = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler", "-fPIC,-ffp-contract=off,-Wall", "-shared"]
    result = subprocess.run(
        [nvcc, *flags, *targets, SOURCE, "-o", tmp_path / "cuda.so"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "cuda.so").stat().st_size > 100_000


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same source as C++, its launches turned into loops over the same grid."""
    target = tmp_path_factory.mktemp("cuda") / "launched.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC", "-x", "c++"]
    subprocess.run(["g++", *flags, f"-I{PROJECT / 'tests'}", SOURCE, "-o", target], check=True)
    return ctypes.CDLL(str(target))


def address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@settings(max_examples=40, deadline=None)
@given(
    phase=st.sampled_from(list(CFAS)),
    height=st.integers(2, 80),
    width=st.integers(2, 80),
    multiple=st.sampled_from([1, 2, 16]),
)
def test_pack_and_unpack_cover_their_grids(on_cpu: Any, phase: str, height: int, width: int, multiple: int) -> None:
    sensor = Sensor((500, 510, 520, 530), 16383, CFAS[phase])
    mosaic = np.random.default_rng(height).integers(0, 17000, (height, width)).astype(np.uint16)
    expected = ops.pack(mosaic, sensor, 3.0, multiple=multiple)
    image, back = np.full_like(expected, np.nan), np.zeros_like(mosaic)
    planes = expected.shape[1:]
    layout = ops._layout(sensor, mosaic.shape, planes, [3.0 / (sensor.white - black) for black in sensor.black])
    assert on_cpu.exposure_cuda_pack(address(mosaic), ctypes.byref(layout), address(image), None) == 0
    np.testing.assert_array_equal(image, expected)
    layout = ops._layout(sensor, mosaic.shape, planes, [sensor.white - black for black in sensor.black])
    assert on_cpu.exposure_cuda_unpack(address(image), ctypes.byref(layout), address(back), None) == 0
    np.testing.assert_array_equal(back, ops.unpack(expected, sensor, mosaic.shape))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 70), seed=st.integers(0, 2**64 - 1))
def test_photons_cover_their_grid(on_cpu: Any, height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(height)
    clean, original = (random.random((4, height, width), np.float32) for _ in range(2))
    step, field = unroll(100, 0.5, 15583, 2)[0], Field(seed, 1, 3, 5, height, width)
    counts, following = np.full_like(clean, np.nan), np.full_like(clean, np.nan)
    rate = (clean * 300).astype(np.float32)
    assert on_cpu.exposure_cuda_poisson(address(rate), ctypes.byref(field), address(counts), None) == 0
    np.testing.assert_array_equal(counts, ops.poisson(rate, seed=seed, step=1, origin=(6, 10)))
    injection = Injection(step.photons, step.keep, step.per_photon)
    arrays = (address(clean), address(original), ctypes.byref(injection), ctypes.byref(field), address(following))
    assert on_cpu.exposure_cuda_expose(*arrays, None) == 0
    np.testing.assert_array_equal(following, ops.expose(clean, original, step, seed=seed, index=1, origin=(6, 10)))
