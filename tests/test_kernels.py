"""The compiled kernels against the definitions, bit for bit, and their random numbers against their distribution."""

import re
import subprocess
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CFAS, PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from test_sensor import sensors

from exposure import Step, sensor, unroll
from exposure.denoise import expose
from exposure.kernels import arrays, library, ops
from exposure.sensor import Sensor

sides = st.one_of(st.integers(2, 40), st.integers(100, 140))


@given(sensor_=sensors(), height=sides, width=sides, multiple=st.sampled_from([1, 2, 16]), ratio=st.floats(1, 300))
def test_pack_is_the_definition(sensor_: Sensor, height: int, width: int, multiple: int, ratio: float) -> None:
    mosaic = np.random.default_rng(height * width).integers(0, 65536, (height, width)).astype(np.uint16)
    np.testing.assert_array_equal(
        ops.pack(mosaic, sensor_, ratio, multiple=multiple), sensor.pack(mosaic, sensor_, ratio, multiple=multiple)
    )


@given(sensor_=sensors(), height=sides, width=sides)
def test_unpack_is_the_definition(sensor_: Sensor, height: int, width: int) -> None:
    image = np.random.default_rng(height).uniform(-0.2, 1.2, (4, 80, 80)).astype(np.float32)
    np.testing.assert_array_equal(
        ops.unpack(image, sensor_, (height, width)), sensor.unpack(image, sensor_, (height, width))
    )


def test_half_planes_are_the_rounded_planes() -> None:
    """Every FP16 value, the middle to the next, and their neighbours; infinities and NaN: rounded as NumPy rounds."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        middles = (halves + np.nextafter(halves.astype(np.float16), np.float16(np.inf)).astype(np.float32)) / 2
        near = [np.nextafter(x, np.float32(to)) for x in (halves, middles) for to in (-np.inf, np.inf)]
    values = np.concatenate([halves, middles, *near]).reshape(4, 256, -1)
    nothing = Step(photon_gain=1, photons=0, keep=1, per_photon=0)
    stored = ops.expose(np.zeros_like(values), values, nothing, seed=0, index=0, dtype="float16")
    exact = ops.expose(np.zeros_like(values), values, nothing, seed=0, index=0)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(stored.view(np.uint16), exact.astype(np.float16).view(np.uint16))


@given(sensor_=sensors(), height=sides, width=sides, ratio=st.floats(1, 300))
def test_half_packing_is_packing_rounded(sensor_: Sensor, height: int, width: int, ratio: float) -> None:
    mosaic = np.random.default_rng(height * width).integers(0, 65536, (height, width)).astype(np.uint16)
    image = ops.pack(mosaic, sensor_, ratio, multiple=16, dtype="float16")
    assert image.dtype == np.float16
    np.testing.assert_array_equal(image, ops.pack(mosaic, sensor_, ratio, multiple=16).astype(np.float16))


def test_torch_tensors_come_back_as_torch_tensors() -> None:
    sensor_, random = Sensor((500, 510, 520, 530), 16383, CFAS["GBRG"]), np.random.default_rng(0)
    mosaic = random.integers(0, 16000, (33, 21)).astype(np.uint16)
    image, rate = ops.pack(torch.from_numpy(mosaic), sensor_, 2.0), torch.from_numpy(random.random((2, 4, 9, 7)) * 50)
    assert torch.equal(image, torch.from_numpy(ops.pack(mosaic, sensor_, 2.0)))
    back = ops.unpack(image.requires_grad_(), sensor_, mosaic.shape)
    np.testing.assert_array_equal(back.numpy(), ops.unpack(image.detach().numpy(), sensor_, mosaic.shape))
    transposed = rate.float().transpose(-1, -2)  # not dense
    counts = ops.poisson(transposed, seed=1, index=0)
    np.testing.assert_array_equal(counts.numpy(), ops.poisson(transposed.numpy(), seed=1, index=0))


@given(seed=st.integers(0, 2**64 - 1), passes=st.integers(2, 4), gain=st.floats(0.05, 30), ratio=st.floats(1, 300))
def test_expose_is_the_definition(seed: int, passes: int, gain: float, ratio: float) -> None:
    random = np.random.default_rng(passes)
    clean, original = (random.uniform(-0.1, 1.1, (1, 4, 9, 7)).astype(np.float32) for _ in range(2))
    for index, step in enumerate(unroll(ratio, gain, 15583, passes)[:-1]):

        def draw(rate: NDArray[np.float32], index: int = index) -> NDArray[np.float32]:
            return ops.poisson(rate, seed=seed, index=index, origin=(6, 2))

        expected = expose(clean, original, step, draw)
        np.testing.assert_array_equal(
            ops.expose(clean, original, step, seed=seed, index=index, origin=(6, 2)), expected
        )


@given(ratio=st.floats(1, 300), gain=st.floats(0.01, 100), saturation=st.floats(100, 65535), passes=st.integers(1, 4))
def test_the_schedule_is_the_definition(ratio: float, gain: float, saturation: float, passes: int) -> None:
    rows = ops.schedule(ratio, gain, saturation, passes, photon_unit=15583)
    expected = [astuple(step) for step in unroll(ratio, gain, saturation, passes, photon_unit=15583)]
    np.testing.assert_allclose(rows, expected, rtol=1.2e-7, atol=1e-30)  # one rounding to FP32


def test_what_speaks_dlpack_is_taken() -> None:
    """As CuPy's and JAX's arrays do; this one lies on the processor."""

    class Foreign:
        def __init__(self, tensor: torch.Tensor) -> None:
            self._tensor = tensor

        def __dlpack__(self, **how: Any) -> object:
            return self._tensor.__dlpack__(**how)

        def __dlpack_device__(self) -> object:
            return self._tensor.__dlpack_device__()

    rate = torch.rand(4, 6, 7) * 30
    found = ops.poisson(Foreign(rate), seed=3, index=0)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(ops.poisson(rate, seed=3, index=0)))


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Geometry, odd numbers and random calls under AddressSanitizer and UndefinedBehaviorSanitizer, in a program of
    their own.
    """
    program = tmp_path / "sanitized"
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined,float-cast-overflow"]
    csrc = PROJECT / "kernels" / "csrc"
    sources = [PROJECT / "tests" / "sanitized.cpp", csrc / "cpu.cpp", csrc / "cores.cpp"]
    subprocess.run(
        ["g++", *flags, "-fno-sanitize-recover=all", "-pthread", *sources, "-o", program], check=True, text=True
    )
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "geometries" in result.stdout


def test_counts_at_once_are_counts_one_by_one(tmp_path: Path) -> None:
    """Every width of vectors that this processor has, as the library's own build compiles it."""
    flags = re.search(r"kernels_options INTERFACE (-.*)\)", (PROJECT / "kernels" / "CMakeLists.txt").read_text())
    assert flags is not None
    program = tmp_path / "strips"
    source = PROJECT / "tests" / "strips.cpp"
    subprocess.run(["g++", "-std=c++17", *flags[1].split(), "-Werror", source, "-o", program], check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    known = Path("/proc/cpuinfo").read_text()
    widths = [8] * ("avx2" in known) + [16] * all(f"avx512{part}" in known for part in ("vl", "dq", "bw"))
    assert told == "".join(f"{width} at once\n" for width in widths)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that Random123 is published with
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    np.testing.assert_array_equal(ops.philox(np.array(counter, np.uint32), np.array(key, np.uint32)), words)


SQUARE = np.ones((4, 4), np.uint16)
RATES = [0.01, 0.3, 1, 3, 9.99, 10, 12, 30, 64, 100, 500, 4e3, 2e4, 1.6e5, 2e5]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("index", [0, 1])
def test_counts_are_poisson(rate: float, index: int) -> None:
    """Two million draws, plain and mirrored: mean, variance, and chi-squared over the counts, in bins of equal mass
    where many."""
    counts = ops.poisson(np.full((4, 700, 750), rate, np.float32), seed=RATES.index(rate) + 77, index=index).ravel()
    rate, n = float(np.float32(rate)), counts.size
    assert abs(counts.mean() - rate) < 4.5 * np.sqrt(rate / n)
    assert abs(counts.astype(float).var() - rate) < 4.5 * np.sqrt((rate + 2 * rate**2) / n)
    quantiles = stats.poisson.ppf(np.linspace(0, 1, 400)[1:-1], rate) if rate > 300 else np.arange(0, 5 * rate + 20)
    edges = np.unique(quantiles)
    observed = np.diff(np.concatenate([[0], np.searchsorted(np.sort(counts), edges, side="right"), [n]]))
    expected = n * np.diff(np.concatenate([[0], stats.poisson.cdf(edges, rate), [1]]))
    enough = expected > 10
    observed, expected = (np.append(x[enough], x[~enough].sum()) for x in (observed, expected))
    filled = expected > 1
    chi2 = np.sum((observed - expected)[filled] ** 2 / expected[filled])
    assert stats.chi2.sf(chi2, filled.sum() - 1) > 1e-4


def test_the_largest_uniform_is_no_outlier() -> None:
    """There the sum of all probabilities, in FP32, lies below the uniform: no count would ever reach it."""
    rate = 7.27960253
    count = ops.poisson(np.full((4, 64, 1600), rate, np.float32), seed=0, index=0)[0, 58, 1491]
    assert stats.poisson.isf(2**-20, rate) < count < stats.poisson.isf(2**-28, rate)


@pytest.mark.parametrize("index", [0, 1])
def test_uniforms_are_uniform(index: int) -> None:
    """A count below 10 electrons is 0 exactly where its stream's first uniform is below exp(-rate), or mirrored above 1
    less that: three quantiles, 200,000 streams each."""
    rates = np.repeat(np.float32(-np.log([0.1, 0.5, 0.9])), 4 * 50_000).reshape(3, 4, 200, 250).astype(np.float32)
    zeros = (ops.poisson(rates, seed=5, index=index) == 0).reshape(3, -1).mean(1)
    expected = np.exp(-rates.reshape(3, -1)[:, 0].astype(float))
    # 4.5 standard deviations of a share of 200,000: seven in a million of such tests would fail by chance
    assert (abs(zeros - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 200_000)).all()


def test_streams_are_independent() -> None:
    rate = np.full((4, 128, 128), 50, np.float32)
    first = ops.poisson(rate, seed=1, index=0)
    np.testing.assert_array_equal(first, ops.poisson(rate, seed=1, index=0))
    others = [ops.poisson(rate, seed=2, index=0), ops.poisson(rate, seed=1, index=2), first[[1, 2, 3, 0]]]
    others += [np.roll(ops.poisson(rate, seed=1, index=index), plane, 0) for index in (2, 4, 6) for plane in range(4)]
    others += [ops.poisson(rate, seed=1 + 2**32, index=0), np.roll(first, 1, 1), np.roll(first, 1, 2)]
    for other in others:
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 4.5 / np.sqrt(first.size)


@pytest.mark.parametrize(("rates", "most"), [((4, 8), -0.9), ((8, 16), -0.55), ((30, 60), -0.8), ((5e3, 1e4), -0.95)])
def test_an_odd_index_is_antithetic(rates: tuple[float, float], most: float) -> None:
    """Weaker where one rate lies below 10 electrons and the other above, for these are drawn by two algorithms, where a
    count is accepted at a second attempt, and below an electron, for none is below 0."""
    first, second = (
        ops.poisson(np.full((4, 128, 128), rate, np.float32), seed=1, index=6 + i) for i, rate in enumerate(rates)
    )
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < most


@settings(max_examples=30)
@given(row=st.integers(0, 30), column=st.integers(0, 30), height=st.integers(1, 20), width=st.integers(1, 20))
def test_a_tile_has_the_frames_noise(row: int, column: int, height: int, width: int) -> None:
    rate = np.random.default_rng(0).uniform(0, 300, (4, 50, 50)).astype(np.float32)
    frame = ops.poisson(rate, seed=11, index=3)
    tile = np.s_[:, row : row + height, column : column + width]
    part = ops.poisson(np.ascontiguousarray(rate[tile]), seed=11, index=3, origin=(2 * row, 2 * column))
    np.testing.assert_array_equal(part, frame[tile])


def test_threads_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = np.random.default_rng(0).uniform(0, 300, (3, 4, 33, 21)).astype(np.float32)
    mosaic, bayer = (rate[0, 0] * 200).astype(np.uint16), Sensor((512, 500, 520, 0), 60000, CFAS["GBRG"])
    batch, packed = ops.poisson(rate, seed=3, index=0), ops.pack(mosaic, bayer)
    for count in (1, 3, 64):
        monkeypatch.setattr(arrays, "threads", lambda count=count: count)
        np.testing.assert_array_equal(ops.poisson(rate[1], seed=3, index=0), batch[1])
        np.testing.assert_array_equal(ops.pack(mosaic, bayer), packed)
        np.testing.assert_array_equal(ops.unpack(packed, bayer, mosaic.shape), sensor.unpack(packed, bayer, (33, 21)))


def test_rates_at_the_edges() -> None:
    rates = np.zeros((4, 2, 2), np.float32)
    rates[1], rates[2] = 1e-30, 2.0**24
    counts = ops.poisson(rates, seed=0, index=0)
    assert (counts[:2] == 0).all()
    assert (abs(counts[2] - 2.0**24) < 6 * 2.0**12).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ops.poisson(np.ones((4, 2, 2)), seed=0, index=0), "rate is float64 4x2x2; it must be float32"),
        (lambda: ops.poisson(np.ones((3, 2, 2), np.float32), seed=0, index=0), "must end in 4xhxw"),
        (lambda: ops.poisson(np.ones((4, 0, 2), np.float32), seed=0, index=0), "not empty"),
        (lambda: ops.poisson(np.full((4, 2, 2), np.nan, np.float32), seed=0, index=0), "rate reaches nan"),
        (lambda: ops.poisson(np.full((4, 2, 2), 1e9, np.float32), seed=0, index=0), r"rate reaches 1e\+09"),
        (lambda: ops.poisson(np.ones((4, 2, 2), np.float32), seed=-1, index=0), "seed and index are -1 and 0"),
        (
            lambda: ops.poisson(np.ones((4, 2, 2), np.float32), seed=0, index=2**30),
            "seed and index are 0 and 1073741824",
        ),
        (lambda: ops.poisson(np.ones((4, 2, 2), np.float32), seed=0, index=0, origin=(-2, 0)), "origin is"),
        (lambda: ops.poisson(np.ones((4, 2, 2), np.float32), seed=0, index=0, origin=(2**33, 0)), "origin is"),
        (
            lambda: ops.pack(SQUARE, Sensor((0,) * 4, 9, CFAS["RGGB"]), np.nan),
            "ratio is nan; it must be positive",
        ),
        (lambda: ops.pack(SQUARE, Sensor((0,) * 4, 9, CFAS["RGGB"]), -5), "ratio is -5"),
        (lambda: ops.pack(np.ones((4, 4, 4), np.uint16), Sensor((0,) * 4, 9, CFAS["RGGB"])), "mosaic is uint16 4x4x4"),
        (lambda: ops.pack(np.ones((4, 4), np.int16), Sensor((0,) * 4, 9, CFAS["RGGB"])), "it must be uint16"),
        (
            lambda: ops.unpack(np.ones((4, 2, 2), np.float32), Sensor((0,) * 4, 9, CFAS["RGGB"]), (6, 4)),
            "image is 4x2x2",
        ),
        (
            lambda: ops.pack(SQUARE, Sensor((0,) * 4, 9, CFAS["RGGB"]), dtype="int8"),  # type: ignore[arg-type]
            'dtype is "int8"; planes are',
        ),
        (lambda: ops.poisson(torch.ones((4, 2, 2), device="meta"), seed=0, index=0), "rate lies on meta"),
        (lambda: ops.philox(np.zeros(3, np.uint32), np.zeros(2, np.uint32)), "3 and 2 words"),
    ],
)
def test_misuse_is_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_what_is_no_array_is_one_sentence() -> None:
    with pytest.raises(TypeError, match="rate is a list; it must be an array of NumPy, torch or a GPU"):
        ops.poisson([1.0], seed=0, index=0)


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NAME", "libnowhere.so")
    library.library.cache_clear()
    with pytest.raises(OSError, match="is not built; install the project with pip"):
        library.library()
    monkeypatch.undo()
    library.library.cache_clear()
