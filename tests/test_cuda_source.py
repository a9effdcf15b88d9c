"""The CUDA kernels without a GPU: nvcc compiles them for every card we name, and their index code runs on the CPU."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CFAS, PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from exposure import Sensor, unroll
from exposure.kernels import arrays, library, ops
from exposure.kernels.machine import this_machine

sys.path.insert(0, str(PROJECT / "benchmarks"))
import gpu_kernels
from gpu_device import Gpu

CSRC = PROJECT / "kernels" / "csrc"
STAND_IN = [CSRC / "cuda.cu", PROJECT / "tests" / "device_on_cpu.cpp"]


def cmake(build: Path, cuda: str, nvcc: Path = Path("/nowhere/nvcc")) -> subprocess.CompletedProcess[str]:
    """Configure the kernels without the backend, on a machine whose nvcc is there, or nowhere."""
    command = ["cmake", f"-S{PROJECT / 'kernels'}", f"-B{build}", "-DEXPOSURE_BACKEND=OFF", f"-DEXPOSURE_CUDA={cuda}"]
    environment = os.environ | {"CUDACXX": str(nvcc)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_nvcc_built_it_for_every_card() -> None:
    """`pip install` compiled it where nvcc is; it loads where no driver is, and tells in words that there is none."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here: the CUDA kernels are not compiled")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    cubins = library.built(library.CUDA).read_bytes()
    assert "sm_80" in known
    for card in {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"} & set(known):
        assert card.encode() in cubins
    needed = subprocess.run(["readelf", "-d", library.built(library.CUDA)], capture_output=True, text=True, check=True)
    assert "libcuda" not in needed.stdout  # the runtime is inside, the driver is looked for on the first call
    if not this_machine().card:
        with pytest.raises(OSError, match=r"exposure_cuda_use: CUDA error \d+, .*(driver|device)"):
            Gpu(library.cuda_library())


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here outside pip's build")
def test_an_nvcc_of_wheels_finds_its_libraries(tmp_path: Path) -> None:
    """NVIDIA's wheels have them in lib; nvcc looks into lib64."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here: the CUDA kernels are not compiled")
    dry = [nvcc, "--dryrun", "-x", "cu", "/dev/null"]
    said = subprocess.run(dry, capture_output=True, text=True, check=True).stderr
    toolkit = Path(said.partition("_HERE_=")[2].split()[0]).parent  # nvcc on the path may be a link or a script
    if not (toolkit / "lib64" / "libcudart_static.a").exists():
        pytest.skip("this nvcc's libraries lie elsewhere")
    wheel = tmp_path / "cu13"
    (wheel / "bin").mkdir(parents=True)
    for program in (toolkit / "bin").iterdir():
        (wheel / "bin" / program.name).symlink_to(program)
    for name, place in (("include", "include"), ("nvvm", "nvvm"), ("lib", "lib64")):
        (wheel / name).symlink_to(toolkit / place)
    configured = cmake(tmp_path / "build", "ON", wheel / "bin" / "nvcc")
    assert "CUDA kernels: built by nvcc" in configured.stdout, configured.stderr


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here outside pip's build")
def test_the_build_says_what_it_does_about_cuda(tmp_path: Path) -> None:
    missing = cmake(tmp_path / "on", "ON")
    assert missing.returncode != 0
    assert "EXPOSURE_CUDA is ON and no nvcc was found" in missing.stderr
    assert "CUDA kernels: not built, EXPOSURE_CUDA is OFF" in cmake(tmp_path / "off", "OFF").stdout
    assert "CUDA kernels: not built, no nvcc was found" in cmake(tmp_path / "auto", "AUTO").stdout
    assert "it must be AUTO, ON or OFF" in cmake(tmp_path / "odd", "maybe").stderr


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same kernels as C++, launched as loops over a grid, with memory that only they and copies can touch."""
    target = tmp_path_factory.mktemp("cuda") / "on_cpu.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC", "-x", "c++"]
    subprocess.run(["g++", *flags, f"-I{PROJECT / 'tests'}", *STAND_IN, "-o", target], check=True)
    return ctypes.CDLL(str(target))


def test_every_kernel_covers_its_grid(stand_in: Any) -> None:
    """What gpu-check compares on a card, compared on the CPU."""
    with Gpu(stand_in) as gpu:
        results = gpu_kernels.parity(gpu, whole_frame=False)
    assert len(results) == 6
    assert {result["outcome"] for result in results.values()} == {"passed"}
    assert stand_in.device_on_cpu_bytes() == 0


def test_the_comparison_sees_one_wrong_bit() -> None:
    right = np.ones((4, 8, 8), np.float32)
    wrong = right.copy()
    wrong[2, 3, 4] = np.nextafter(np.float32(1), np.float32(2))
    assert gpu_kernels.judged(iter([(right, right)]))["outcome"] == "passed"
    found = gpu_kernels.judged(iter([(right, right), (wrong, right)]))
    assert (found["outcome"], found["differing"], found["elements"]) == ("failed", 1, 512)
    assert found["largest_difference"] == pytest.approx(2**-23)
    wrong[0, 0, 0] = np.nan
    assert gpu_kernels.judged(iter([(wrong, right)]))["largest_difference"] == np.inf
    assert gpu_kernels.judged(iter([]))["outcome"] == "failed"


def test_the_stand_in_refuses_host_memory(stand_in: Any) -> None:
    with Gpu(stand_in) as gpu:
        host = np.ones((4, 2, 2), np.float32)
        with pytest.raises(OSError, match="an illegal memory access"):
            gpu.run(
                "poisson", arrays.address(host), ops._field((2, 2), 0, 0, (0, 0)), gpu.empty(host.shape, np.float32)
            )


@settings(max_examples=40, deadline=None)
@given(
    phase=st.sampled_from(list(CFAS)),
    height=st.integers(2, 300),
    width=st.integers(2, 300),
    multiple=st.sampled_from([1, 2, 16]),
)
def test_pack_and_unpack_cover_their_grids(stand_in: Any, phase: str, height: int, width: int, multiple: int) -> None:
    sensor = Sensor((500, 510, 520, 530), 16383, CFAS[phase])
    shape = height, width
    mosaic = gpu_kernels.dark(shape)
    expected = ops.pack(mosaic, sensor, 3.0, multiple=multiple)
    with Gpu(stand_in) as gpu:
        image, back = gpu.empty(expected.shape, np.float32), gpu.empty(mosaic.shape, np.uint16)
        gpu.run("pack", gpu.upload(mosaic), gpu_kernels.packing(sensor, shape, expected.shape, 3.0), image, 0)
        gpu.run("unpack", image, gpu_kernels.unpacking(sensor, shape, expected.shape), back)
        np.testing.assert_array_equal(gpu.download(image), expected)
        np.testing.assert_array_equal(gpu.download(back), ops.unpack(expected, sensor, mosaic.shape))


@pytest.fixture
def as_if_on_gpu(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ops takes CPU tensors for GPU tensors and the stand-in for the CUDA library: its calls, without a card."""
    stand_in.exposure_cuda_error.restype = ctypes.c_char_p
    monkeypatch.setattr(arrays, "cuda_library", lambda: stand_in)
    monkeypatch.setattr(library, "cuda_library", lambda: stand_in)
    monkeypatch.setattr(arrays, "lies_on_gpu", lambda array: isinstance(array, torch.Tensor))
    monkeypatch.setattr(arrays, "_on_card_of", lambda _: contextlib.nullcontext((0, 0)))


@pytest.mark.usefixtures("as_if_on_gpu")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ops_calls_the_cuda_kernels_as_they_are_declared(dtype: Any) -> None:
    sensor, mosaic = Sensor((500, 510, 520, 530), 16383, CFAS["GRBG"]), gpu_kernels.dark((33, 47))
    packed = ops.pack(torch.from_numpy(mosaic), sensor, 3.0, multiple=16, dtype=dtype)
    assert packed.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(packed.numpy(), ops.pack(mosaic, sensor, 3.0, multiple=16, dtype=dtype))
    clean, original = (np.random.default_rng(i).random((2, 4, 9, 7), np.float32) for i in range(2))
    np.testing.assert_array_equal(
        ops.unpack(torch.from_numpy(clean[0]), sensor, (17, 13)).numpy(), ops.unpack(clean[0], sensor, (17, 13))
    )
    options: dict[str, Any] = {"seed": 2**64 - 1, "origin": (6, 10)}
    rate = torch.from_numpy(clean) * 300
    counts = ops.poisson(rate, index=3, **options)
    np.testing.assert_array_equal(counts.numpy(), ops.poisson(rate.numpy(), index=3, **options))
    step = unroll(100, 0.5, 15583, 2)[0]
    following = ops.expose(torch.from_numpy(clean), torch.from_numpy(original), step, index=1, dtype=dtype, **options)
    expected = ops.expose(clean, original, step, index=1, dtype=dtype, **options)
    np.testing.assert_array_equal(following.numpy(), expected)


@pytest.mark.usefixtures("as_if_on_gpu")
def test_an_error_of_cudas_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_on_card_of", lambda _: contextlib.nullcontext((3, 0)))  # a card that is not there
    with pytest.raises(OSError, match="CUDA error 1: invalid argument"):
        ops.poisson(torch.ones(4, 2, 2), seed=0, index=0)


def test_kernels_that_were_not_built_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "CUDA", "libnowhere.so")
    monkeypatch.setattr(arrays, "lies_on_gpu", lambda _: True)
    library.cuda_library.cache_clear()
    with pytest.raises(
        OSError, match=r"libnowhere\.so is not built; install the project with pip, where nvcc is on PATH"
    ):
        ops.poisson(torch.ones(4, 2, 2), seed=0, index=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA arrays are not tried")
def test_arrays_on_a_gpu_stay_there() -> None:
    mosaic = torch.from_numpy(gpu_kernels.dark((64, 48)))
    sensor = Sensor((512,) * 4, 16383, CFAS["RGGB"])
    with torch.cuda.stream(torch.cuda.Stream()):
        image = ops.pack(mosaic.cuda(), sensor)
        counts = ops.poisson(image * 500, seed=1, index=0)
        assert image.is_cuda
        assert torch.equal(counts.cpu(), ops.poisson(image.cpu() * 500, seed=1, index=0))
        assert torch.equal(ops.unpack(image, sensor, (64, 48)).cpu(), torch.from_numpy(mosaic.numpy().clip(512, 16383)))
