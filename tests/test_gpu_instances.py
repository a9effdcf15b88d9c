"""GPU instances of the Triton backend without a GPU: its models on a stand-in card, under AddressSanitizer.

The card's memory is closed to everything but copies and kernels, and these run only when a stream is waited for. It
stands in until a card runs the real thing, which is what `make gpu-check` does.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PROJECT

BACKEND, CSRC, TESTS = (PROJECT / folder for folder in ("kernels/backend", "kernels/csrc", "tests"))
SOURCES = ("admission", "pack", "expose", "unpack", "request", "sensor", "cpu_device", "gpu_device", "cuda_library")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program and, beside it, the stand-in under the name of the CUDA library."""
    folder = tmp_path_factory.mktemp("gpu_instances")
    flags = ["-std=c++17", "-O0", "-ffp-contract=off", "-fsanitize=address", "-pthread", "-fPIC"]
    kernels = [CSRC / "cuda.cu", TESTS / "device_on_cpu.cpp"]
    program = [TESTS / "backend_on_cpu.cpp", *(BACKEND / f"{name}.cpp" for name in SOURCES), CSRC / "cpu.cpp"]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        subprocess.run(["g++", *flags, f"-I{TESTS}", "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        units = [str(unit) for unit in threads.map(compiled, [*program, *kernels])]
    library = ["-shared", *units[len(program) :], "-o", str(folder / "libexposure_kernels_cuda.so")]
    for rest in (library, [*units[: len(program)], "-ldl", "-o", str(folder / "backend")]):
        subprocess.run(["g++", *flags, *rest], check=True)
    return folder


def test_pixels_on_a_card_and_on_the_host_give_the_same(folder: Path) -> None:
    result = subprocess.run([folder / "backend", folder], capture_output=True, text=True, check=False, timeout=300)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "0 failures\n")


def test_a_missing_cuda_library_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "backend", tmp_path)
    result = subprocess.run([tmp_path / "backend", tmp_path], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert "libexposure_kernels_cuda.so is not built, and a GPU instance needs it" in result.stdout
    assert result.stdout.count("\n") == 1
