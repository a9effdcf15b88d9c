"""What runs a plan, without a card: TensorRT and CuPy are stand-ins, which compute nothing."""

import math
import pickle
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROJECT, is_gone

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.export import tensorrt_engine
from exposure.export import tensorrt_runtime as runtime
from exposure.export.graph import FP32_AGREEMENT_DB, onnx_from_network, onnx_runner
from exposure.kernels.machine import Machine
from exposure.kernels.manifest import EngineError
from exposure.networks import Network

sys.path.insert(0, str(PROJECT / "benchmarks"))
import ceilings
import gpu_benchmark
import gpu_check
import gpu_machine
import gpu_peers
import peers
import workers
from gpu_machine import NotCheckedError

NAMES = ("IMAGE", "PHOTON_GAIN", "CLEAN")
A_CARD = Machine("A card", "86", "13.0", "580.1")


class OutOfMemoryError(MemoryError):
    """CuPy's."""


class CUDARuntimeError(RuntimeError):
    """CuPy's."""


class Stream:
    ptr = 7

    def __init__(self, non_blocking: bool = True) -> None:
        assert non_blocking

    def synchronize(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


class Array(np.ndarray[Any, Any]):
    """An array of the card: one that tells its address."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=id(self))


def on_card(array: Any, dtype: Any = None) -> Any:
    return np.ascontiguousarray(array, dtype).view(Array)


class Context:
    """Sides of more than 100 are beyond the profile."""

    def __init__(self, config: Any) -> None:
        self.config, self.shape, self.addresses = config, (), set[str]()

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self.shape = shape if name == "IMAGE" else self.shape
        return max(shape) <= 100

    def set_tensor_address(self, name: str, address: int) -> None:
        assert address
        self.addresses.add(name)

    def get_tensor_shape(self, name: str) -> Any:
        assert name == "CLEAN"
        return self.shape

    def execute_async_v3(self, stream: int) -> bool:
        assert self.addresses == set(NAMES)
        return stream == Stream.ptr


class Engine:
    num_io_tensors = len(NAMES)

    def get_tensor_name(self, index: int) -> str:
        return NAMES[index]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name == "CLEAN" else "input"

    def create_runtime_config(self) -> Any:
        kernels = SimpleNamespace(serialize=lambda: b"kernels")
        return SimpleNamespace(create_runtime_cache=lambda: kernels, set_runtime_cache=lambda _: None)

    def create_execution_context(self, config: Any) -> Context:
        return Context(config)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The stand-in for CuPy; TensorRT's, and a card, are there too."""
    errors = {"memory": SimpleNamespace(OutOfMemoryError=OutOfMemoryError)}
    errors["runtime"] = SimpleNamespace(CUDARuntimeError=CUDARuntimeError)
    cuda = SimpleNamespace(Stream=Stream, get_current_stream=Stream, **errors)
    arrays = {"asarray": on_card, "ascontiguousarray": on_card, "empty": lambda *how: on_card(np.zeros(*how))}
    fake = SimpleNamespace(float32=np.float32, asnumpy=np.asarray, cuda=cuda, **arrays)
    trt = SimpleNamespace(
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda *_: None}),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: Engine()),
        TensorIOMode=SimpleNamespace(INPUT="input"),
        CudaGraphStrategy=SimpleNamespace(DISABLED="no graphs"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="at once"),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(runtime, "cupy_is_installed", lambda: True)
    monkeypatch.setattr(runtime, "load_tensorrt", lambda _: trt)
    monkeypatch.setattr(runtime, "this_machine", lambda: A_CARD)
    monkeypatch.setenv("EXPOSURE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.plan").write_bytes(b"plan")
    return fake


def ask(engine: runtime.PlanEngine, side: int) -> Any:
    return engine(np.ones((1, 4, side, side), np.float32), np.ones(1, np.float32))


def test_kernels_are_kept_when_a_shape_first_came(cupy: Any, tmp_path: Path) -> None:
    del cupy
    engine = runtime.PlanEngine(tmp_path / "model.plan", "tensorrt-rtx")
    assert engine._context.config.cuda_graph_strategy == "no graphs"
    for number in range(20):  # of plans that were built before
        (tmp_path / "cache" / "kernels" / f"{number}.cache").touch()
    runtime.PlanEngine(tmp_path / "model.plan", "tensorrt-rtx")
    earlier = list((tmp_path / "cache").rglob("*.cache"))
    assert len(earlier) == runtime.KERNEL_CACHES
    for file in earlier:
        file.unlink()
    for side, written in ((16, True), (16, False), (32, True)):
        assert ask(engine, side).shape == (1, 4, side, side)
        kept = list((tmp_path / "cache").rglob("*.cache"))
        assert [file.read_bytes() for file in kept] == [b"kernels"] * written
        for file in kept:
            file.unlink()


def test_the_stand_in_has_only_what_tensorrt_has() -> None:
    """Its names are those of the installed binding, which needs no card to tell them."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    for stand_in, real in ((Engine, trt.ICudaEngine), (Context, trt.IExecutionContext)):
        assert {name for name in vars(stand_in) if not name.startswith("_")} <= set(dir(real))
    config = {"create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"}
    assert config | {"dynamic_shapes_kernel_specialization_strategy"} <= set(dir(trt.IRuntimeConfig))
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache))
    assert hasattr(trt.CudaGraphStrategy, "DISABLED")
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (OutOfMemoryError("5 bytes"), runtime.CardFullError, "the card's memory does not suffice: 5 bytes"),
        (CUDARuntimeError("cudaErrorLaunchFailure"), runtime.CardError, "A card failed: cudaErrorLaunchFailure"),
    ],
)
def test_what_cuda_says_is_one_sentence(
    cupy: Any, tmp_path: Path, error: Exception, kind: type[EngineError], sentence: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    engine = runtime.PlanEngine(tmp_path / "model.plan", "tensorrt-rtx")
    with pytest.raises(EngineError, match=r"IMAGE is .*; the engine's profile does not take it"):
        ask(engine, 101)
    cupy.empty = fails
    with pytest.raises(kind, match=sentence):
        ask(engine, 16)
    cupy.cuda.Stream = fails
    with pytest.raises(kind, match=sentence):
        runtime.PlanEngine(tmp_path / "model.plan", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        (Machine(), "cannot start a builder without an NVIDIA card: factory"),
        (A_CARD, "cannot start a builder on A card: factory function returned"),
    ],
)
def test_a_builder_that_cannot_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: Machine, sentence: str
) -> None:
    def fails(*_: Any) -> Any:
        raise TypeError("factory function returned nullptr")

    trt = SimpleNamespace(Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda *_: None}), Builder=fails)
    monkeypatch.setattr(tensorrt_engine, "load_tensorrt", lambda _: trt)
    monkeypatch.setattr(tensorrt_engine, "this_machine", lambda: machine)
    options = tensorrt_engine.PlanOptions((16, 16), (16, 16), (16, 16))
    with pytest.raises(EngineError, match=sentence):
        tensorrt_engine.plan_from_onnx(tmp_path / "graph.onnx", tmp_path / "plan", "tensorrt", options)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What goes up to the card, for which the processor stands in."""
    uploads: list[Any] = []

    def uploaded(tensor: torch.Tensor) -> torch.Tensor:
        uploads.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "cuda", uploaded)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, **_: module)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return uploads


def test_a_peer_on_a_card_computes_what_the_network_does(uploads: list[Any], network: Network) -> None:
    """Its planes go up once."""
    peer = gpu_peers.OnCard(network)
    assert torch.backends.cudnn.allow_tf32 is False
    image, original = (np.random.default_rng(seed).random((1, 4, 32, 48), np.float32) for seed in range(2))
    gain = np.array([0.5], np.float32)
    with torch.no_grad():
        expected = network(*map(torch.from_numpy, (image, gain, original)))
    np.testing.assert_array_equal(peer(image, gain, original), expected.numpy())
    passes = peer.over(image, gain)
    uploads.clear()
    passes(2)
    assert not uploads


@pytest.mark.usefixtures("uploads")
def test_a_peer_compiles_itself_once_for_what_is_verified_and_timed() -> None:
    compiled = []

    class Small(torch.nn.Module):
        def forward(self, image: Any, gain: Any, original: Any) -> Any:
            return torch.cat([image, original], 1) * gain

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    peer = gpu_peers.OnCard(torch.compile(Small(), dynamic=False, backend=backend))
    image, original = (np.random.default_rng(seed).random((1, 4, 32, 48), np.float32) for seed in range(2))
    gain = np.array([0.5], np.float32)
    peer(image, gain, original)
    met = len(compiled)
    peer.over(image, gain)(3)
    assert len(compiled) == met > 0
    torch.compiler.reset()


def test_a_plan_is_built_once_for_the_planes_that_come_first() -> None:
    built = []

    def build(sides: tuple[int, int]) -> Any:
        built.append(sides)
        return lambda image, *_: image

    peer, gain = gpu_peers.ByPlan(build), np.ones(1, np.float32)
    for sides in ((32, 48), (16, 16)):
        image = np.ones((1, 4, *sides), np.float32)
        assert peer(image, gain, image).shape == image.shape
    assert built == [(32, 48)]


def test_a_compiler_prints_no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, select_algorithm

    monkeypatch.setattr(config, "autotune_num_choices_displayed", 10)
    monkeypatch.setattr(select_algorithm, "PRINT_AUTOTUNE", True)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(gpu_peers, "Compiled", lambda module, **_: module)
    gpu_peers.cuda_compiled(load_checkpoint(CHECKPOINT.with_name("unet_small.safetensors")), Path())
    assert (config.autotune_num_choices_displayed, select_algorithm.PRINT_AUTOTUNE) == (0, False)
    assert peers.PEERS[peers.COMPILED].environment.items() >= gpu_peers.QUIET.items()


def test_short_passes_are_timed_together_on_a_card_that_is_warm() -> None:
    """Of a clock that rises: the first passes take longer."""
    asked: list[int] = []

    def passes(count: int) -> None:
        asked.append(count)
        time.sleep(count * (0.002 if sum(asked) > 10 else 0.02))

    began = time.monotonic()
    count = gpu_peers.warmed(passes)
    assert time.monotonic() - began >= gpu_machine.LOAD_S
    assert asked[: gpu_peers.WARM_UPS] == [1] * gpu_peers.WARM_UPS
    assert count * 0.002 >= 0.9 * gpu_peers.LEAST_S
    asked.clear()
    assert 0.001 < gpu_peers.clocked(passes, 60) < 0.02
    assert asked == [60]


def test_peers_of_torch_need_no_onnx() -> None:
    """Nor does a peer whose library is absent cost the others."""
    absent = ("onnx", "onnxruntime", "onnxscript", "openvino", "tensorrt", "tensorrt_rtx_bindings")
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT / 'benchmarks')!r})\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"
        "import gpu_benchmark, gpu_peers, importlib.util\n"
        "gpu_peers.no_card = lambda: None\n"
        "gpu_peers.find_spec = lambda name: None\n"
        "assert gpu_peers.no_provider('CUDAExecutionProvider') == 'onnxruntime is not installed'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert peers.FP32_DB == FP32_AGREEMENT_DB


def test_a_peer_by_onnx_runtime_keeps_its_planes(tmp_path: Path, network: Network) -> None:
    """On the processor here; what a provider cannot do is told, not done by another."""
    onnx_from_network(network, tmp_path / "model.onnx")
    peer = gpu_peers.ByOnnxRuntime(tmp_path / "model.onnx", "CPUExecutionProvider", "cpu")
    image, original = (np.random.default_rng(seed).random((1, 4, 32, 48), np.float32) for seed in range(2))
    gain = np.array([0.5], np.float32)
    expected = onnx_runner(tmp_path / "model.onnx")(image, gain, original)
    np.testing.assert_array_equal(peer(image, gain, original), expected)
    peer.over(image, gain)(2)
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(RuntimeError, match="Unknown Provider Type: NowhereExecutionProvider"),
    ):
        gpu_peers.ByOnnxRuntime(tmp_path / "model.onnx", "NowhereExecutionProvider")


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (
            "Please install TensorRT libraries as mentioned in the GPU requirements page",
            NotCheckedError,
            "TensorRT lib",
        ),
        ("", NotCheckedError, "a library that it needs does not load"),  # it goes on with another
        ("TensorRT EP failed to create engine from network", RuntimeError, "failed to create"),
    ],
)
def test_a_provider_without_its_libraries_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: str, kind: type[Exception], said: str
) -> None:
    """One that is there and fails has failed: no other takes its place."""

    def session(*_: Any, enable_fallback: int, **__: Any) -> Any:
        assert not enable_fallback
        if raised:
            raise RuntimeError(raised)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])

    onnxruntime = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=session)
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
    with pytest.raises(kind, match=said):
        gpu_peers.ByOnnxRuntime(tmp_path, "TensorrtExecutionProvider")


NO_MEMORY_LEFT = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'a' "
    "Status Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, "
    "onnxruntime::Stream*, bool, onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of "
    "size 1073741824"
)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (NotCheckedError("ONNX Runtime cannot use its TensorrtExecutionProvider here"), "not checked"),
        (RuntimeError("OutOfMemoryError: CUDA out of memory. Tried to allocate 20 MiB."), "not checked"),
        (RuntimeError(NO_MEMORY_LEFT), "not checked"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "failed"),
    ],
)
def test_what_a_peer_lacks_when_it_is_verified_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Exception, outcome: str
) -> None:
    """As when it is timed. Its process stands in: what it says is pickled."""
    questions, said = [("arrays",)], list[bytes]()

    def build(*_: Any) -> Any:
        raise answer

    def asked() -> Any:
        if not questions:
            raise EOFError
        return questions.pop()

    class Worker(workers.Worker):
        def __init__(self) -> None:
            self.peer, self._until = peers.PEERS[peers.OURS], math.inf
            here: Any = SimpleNamespace(send=id, poll=bool, recv=lambda: pickle.loads(said[0]))
            self._pipe = here

    monkeypatch.setattr(workers, "PEERS", {"a": SimpleNamespace(build=build)})
    monkeypatch.setattr(workers, "die_with_parent", lambda _: None)
    theirs: Any = SimpleNamespace(recv=asked, send=lambda answer: said.append(pickle.dumps(answer)))
    workers._serve("a", tmp_path, theirs, 0)
    with pytest.raises(workers.PeerError) as error:
        Worker().run(16, 16)
    found = gpu_benchmark._outcome(workers._left_out(error.value), None)
    assert found["outcome"] == outcome
    assert str(answer)[:40] in found["why"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
def test_peers_that_need_a_card_say_so() -> None:
    on_card = [peer for peer in peers.PEERS.values() if peer.on_card]
    assert {peer.absent() for peer in on_card} == {"torch sees no NVIDIA card here"}
    assert len(on_card) == 8
    with pytest.raises(NotCheckedError, match="torch sees no NVIDIA card here"):
        gpu_benchmark.measured("512²", 60)


def test_a_peer_that_computes_something_else_fails_the_check() -> None:
    wrong = gpu_benchmark._outcome({"left_out": "it agrees to 20 dB only", "absent": False}, None)
    ended = gpu_benchmark._outcome({"agreement_db": 90.0}, "its process ended (exit -11)")
    absent = gpu_benchmark._outcome({"left_out": "torch sees no NVIDIA card here", "absent": True}, None)
    short = gpu_benchmark._outcome({"agreement_db": 90.0}, "CUDA out of memory")
    late = gpu_benchmark._outcome({"agreement_db": 90.0}, "no time was left for it")
    timed = gpu_benchmark._outcome({"agreement_db": 90.0}, None)
    told = [peer["outcome"] for peer in (wrong, ended, absent, short, late, timed)]
    assert told == ["failed", "failed", "not checked", "not checked", "not checked", "passed"]
    peers = {"a": absent, "b": timed}
    assert gpu_check.not_made({"peers at 12 MP": {"outcome": "passed", "peers": peers}}).startswith("1 of 2 checks not")


def test_a_peer_for_which_no_time_is_left_is_absent(tmp_path: Path) -> None:
    with pytest.raises(workers.AbsentPeerError, match="no time was left for it"):
        workers.Worker(peers.OURS, tmp_path, until=0)
    until = time.monotonic() + 2
    worker = workers.Worker(peers.OURS, tmp_path, until=until)
    with pytest.raises(workers.AbsentPeerError, match="no time was left for it"):
        worker.run(16, 16)  # it is still being loaded
    assert time.monotonic() < until  # half is for the others
    assert not worker._process.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
@pytest.mark.parametrize("late", [False, True])
def test_a_process_ends_with_what_started_it(tmp_path: Path, late: bool) -> None:
    """late: it says so when its parent is gone already."""
    script, said = tmp_path / "run.py", tmp_path / "said"
    wait = "while os.getppid() == parent: time.sleep(0.01)\n    " if late else ""
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"sys.path.insert(0, {str(PROJECT / 'benchmarks')!r})\n"
        "import processes\n"
        f"parent, said = os.getpid(), pathlib.Path({str(said)!r})\n"
        "if os.fork() == 0:\n"
        f"    if {late}: said.write_text(str(os.getpid()))\n"
        f"    {wait}processes.die_with_parent(parent)\n"
        "    said.write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "while not (said.exists() and said.read_text()): time.sleep(0.01)\n"
        "os.kill(parent, signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, script], check=False, timeout=60)
    assert is_gone(int(said.read_text()))


def test_a_peer_is_tied_to_what_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is asked anything: a busy one hears of no closed pipe."""
    tied: list[int] = []
    monkeypatch.setattr(workers, "die_with_parent", tied.append)
    ours, theirs = Pipe()
    ours.close()
    workers._serve("a", tmp_path, theirs, 42)
    assert tied == [42]


PLAN = "tensorrt, FP16 body"
TUNERS = {name: replace(peers.PEERS[peers.COMPILED], absent=lambda: None) for name in (peers.COMPILED, PLAN)}
EAGER = "torch CUDA FP32 eager"
READY = {name: replace(peers.PEERS[name], absent=lambda: None) for name in (EAGER, *gpu_benchmark.BESIDE)}


class AtWork:
    """Peers of whom some are late; asks nothing of any card. verified: whom, in turn, at which sides, until when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: tuple[str, ...] = ()) -> None:
        self.late, self.verified = late, list[tuple[list[str], Any, float]]()
        probe = SimpleNamespace(
            run=lambda: None, record=dict, best=ceilings.Ceilings(1e15, 4e12, on_card=True), flops=[1.0]
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(gpu_benchmark, "Probe", lambda _: probe)
        monkeypatch.setattr(gpu_benchmark, "clock_under_load", lambda _: 1980)
        monkeypatch.setattr(gpu_benchmark, "PEERS", READY | TUNERS)
        monkeypatch.setattr(gpu_benchmark, "peers_at_work", self.peers_at_work)

    @contextmanager
    def peers_at_work(self, names: Any, graph: Path, _: Any, *, sides: Any, until: float) -> Iterator[Any]:
        assert not graph.exists()
        self.verified.append((list(names), sides, until))
        here = {name: self for name in names if name not in self.late}
        late = {"left_out": workers.NO_TIME, "absent": True}
        yield here, {name: {"agreement_db": 90.0} if name in here else late for name in names}

    def run(self, *_: int) -> float:
        return 0.001

    def peak_gib(self) -> float:
        return 1.0

    def close(self) -> None: ...


def test_those_that_are_ready_are_timed_before_any_tunes(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = AtWork(monkeypatch)
    until = time.monotonic() + 100
    found = gpu_benchmark.measured("512²", until)
    assert found["outcome"] == "passed"
    assert found["sm_clock_mhz"] == 1980
    assert list(found["frame"]["peers"]) == list(READY)
    assert at_work.verified == [(list(READY), (512, 512), until - gpu_benchmark.RESERVE_S)]


def test_where_nothing_was_timed_nothing_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    AtWork(monkeypatch, late=tuple(READY))
    found = gpu_benchmark.measured("512²", time.monotonic() + 100)
    assert found["outcome"] == "not checked"
    assert found["why"].startswith("nothing was timed: torch CUDA FP32 eager: no time was left for it; ")


def test_a_peer_that_tunes_too_long_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, kept = AtWork(monkeypatch, late=(peers.COMPILED,)), list[Any]()
    until = time.monotonic() + 100
    found = gpu_benchmark.tuned("512²", until, kept.append)
    assert [result["outcome"] for result in kept] == ["not checked", "not checked"]  # before each
    assert "nothing was timed" in kept[0]["why"]
    told = {name: peer["outcome"] for name, peer in found["peers"].items()}
    assert told == dict.fromkeys((*gpu_benchmark.BESIDE, "tensorrt, FP16 body"), "passed") | {
        peers.COMPILED: "not checked"
    }
    assert found["outcome"] == "passed"
    timed = found["frame"]["peers"][PLAN]
    assert timed["speed_over_baseline"]["samples"] == gpu_benchmark.ROUNDS  # in the same rounds
    shares = [time_out - until for _, _, time_out in at_work.verified]
    assert shares[0] == -gpu_benchmark.RESERVE_S
    assert shares[1] < -gpu_benchmark.RESERVE_S - 30  # half, for there are two


def test_a_peer_that_tunes_is_verified_at_the_size_of_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Worker(workers.Worker):
        def __init__(self, name: str, *_: Any, **__: Any) -> None:
            self.name, self.peer = name, peers.PEERS[name]

        def _ask(self, *question: Any, reserve_s: float = 0) -> Any:
            _, *arrays = question
            asked.append((self.name, arrays[0].shape[2:], reserve_s))
            return network(*map(torch.from_numpy, arrays)).detach().numpy()

        def hang_up(self) -> None: ...
        def close(self, _: float = 0) -> None: ...

    network = load_checkpoint(CHECKPOINT.with_name("unet_small.safetensors"))
    monkeypatch.setattr(workers, "Worker", Worker)
    names = [peers.HALF, peers.COMPILED]
    with workers.peers_at_work(names, tmp_path, network, sides=(192, 240)) as (at_work, found):
        assert list(at_work) == names
    assert [told["agreement_db"] > 90 for told in found.values()] == [True, True]
    assert asked == [(peers.HALF, (176, 208), 0), (peers.COMPILED, (192, 240), workers.TIMING_S)]


def test_the_cards_ceilings_are_of_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor stands in: smaller, since its FP16 is slow."""
    monkeypatch.setattr(ceilings, "CARD_MATRIX", 64)
    monkeypatch.setattr(ceilings, "CARD_ARRAY_BYTES", 4096)
    rand = torch.rand

    def here(*sides: int, device: str, **more: Any) -> torch.Tensor:
        assert device == "cuda"
        return rand(*sides, **more)

    monkeypatch.setattr(torch, "rand", here)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    probe = ceilings.Probe("cuda")
    products: list[int] = []
    mm = torch.mm

    def counted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        products.append(1)
        return mm(a, b)

    monkeypatch.setattr(torch, "mm", counted)
    probe.run()
    assert len(products) == ceilings.CARD_LAUNCHES  # timed together
    assert probe._a.dtype is torch.float16
    assert probe.best.on_card
    assert (probe.best.flops, probe.best.bandwidth) == (probe.flops[0], probe.bandwidth[0])
    whole, half = (ceilings.cost_of_pass(load_checkpoint(CHECKPOINT), 64, 64, size) for size in (4, 2))
    assert (half.flops, half.traffic) == (whole.flops, whole.traffic / 2)


def test_the_client_is_told_whether_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = SimpleNamespace(UNAVAILABLE="later", INVALID_ARG="otherwise", INTERNAL="never")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", SimpleNamespace(TritonError=codes))
    code = runpy.run_path(str(MODEL_REPOSITORY / "denoiser" / "1" / "model.py"))["_code"]
    assert code(runtime.CardFullError("")) == code(OutOfMemoryError("")) == "later"
    assert code(EngineError("")) == "otherwise"
    assert code(runtime.CardError("")) == code(CUDARuntimeError("")) == "never"


class BuilderConfig:
    """What TensorRT is told, and a store of timings that remembers what it was made of."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.hardware_compatibility_level = None

    def add_optimization_profile(self, profile: Any) -> None: ...

    def clear_flag(self, flag: str) -> None:
        self.told.discard(flag)

    def set_flag(self, flag: str) -> None:
        self.told.add(flag)

    def create_timing_cache(self, known: bytes) -> bytes:
        return known

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"!")


def test_timings_are_kept_for_each_card_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPOSURE_CACHE", str(tmp_path))
    met = []
    for version, card in (("10.14", "RTX A5000"), ("10.14", "RTX A5000"), ("10.14", "H200"), ("11.0", "RTX A5000")):
        config = BuilderConfig()
        trt = SimpleNamespace(__version__=version)
        path = tensorrt_engine._timing_cache(trt, "tensorrt", config, card)
        met.append(config.cache)
        tensorrt_engine._keep_timings(config, path)
    assert met == [b"", b"!", b"", b""]
    assert len(list((tmp_path / "timing").iterdir())) == 3
    assert tensorrt_engine._timing_cache(trt, "tensorrt-rtx", config, card) is None
    tensorrt_engine._keep_timings(config, tmp_path / "gone" / "a.cache")  # a disk that takes nothing costs no plan


@pytest.mark.parametrize("portable", [False, True])
def test_a_portable_plan_is_for_later_versions_and_cards(monkeypatch: pytest.MonkeyPatch, portable: bool) -> None:
    flags = SimpleNamespace(TF32="tf32", VERSION_COMPATIBLE="versions")
    trt = SimpleNamespace(BuilderFlag=flags, HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"))
    monkeypatch.setattr(tensorrt_engine, "_profile", lambda *_: None)
    options = tensorrt_engine.PlanOptions((16, 16), (16, 16), (16, 16), portable=portable)
    builder = SimpleNamespace(create_builder_config=BuilderConfig)
    config = tensorrt_engine._config(trt, "tensorrt", builder, None, options)
    assert config.told == ({"versions"} if portable else set())
    assert config.hardware_compatibility_level == ("ampere" if portable else None)
