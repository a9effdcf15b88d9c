"""The same network by every means at hand, each in a process of its own: memory and idle threads are its own."""

import contextlib
import functools
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_peers import (
    WARM_UPS,
    OnCard,
    cuda_compiled,
    cuda_eager,
    cuda_graph,
    cuda_half,
    cuda_onnx,
    cuda_plan,
    no_card,
    no_library,
    no_provider,
)
from harness import peak_bytes
from numpy.typing import NDArray

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.export.graph import FP32_AGREEMENT_DB, onnx_runner
from exposure.export.scene import low_light_crops
from exposure.export.tensorrt_engine import MODULES
from exposure.networks import Network
from exposure.quality import agreement_db

Run = Callable[..., NDArray[np.float32]]
ENGINE_FOLDER = MODEL_REPOSITORY / "denoiser" / "1" / "openvino"
CLOSE_S = 5.0
REPLY_S = 120.0  # a peer that takes longer for one answer is left out, and named
TUNING_S = 480.0  # the same where kernels are tried out first
NO_TIME = "no time was left for it"
PHOTON_GAIN = 0.5  # a middle one, for timing
LOW_PRECISION_DB = 50.0  # below, a peer computes something else
# Torch allocates large planes anew in every layer; without these, page faults dominate.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


class PeerError(RuntimeError):
    """A peer that cannot be measured here; the message says why."""


class AbsentPeerError(PeerError):
    """A peer that cannot be here, or for which no time is left."""


@dataclass(frozen=True)
class Peer:
    """build: (network, ONNX graph) to a function of arrays. absent: why it cannot be here, or None.

    least_db: agreement with FP32 torch below which it is not timed. reply_s: longest wait for one answer. on_card:
    whether it computes on a card, where the processor's roofline says nothing and its memory is the card's. bf16:
    whether the processor multiplies in BF16.
    """

    build: Callable[[Network, Path], Run]
    absent: Callable[[], str | None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    least_db: float = FP32_AGREEMENT_DB
    reply_s: float = REPLY_S
    on_card: bool = False
    bf16: bool = False


def eager(network: Network, _: Path) -> Run:
    """As the published code runs it: FP32, planes one after the other."""
    return _torch(network)


def channels_last(network: Network, _: Path) -> Run:
    return _torch(network, memory=torch.channels_last)


def compiled(network: Network, _: Path) -> Run:
    return _torch(torch.compile(network, dynamic=False), memory=torch.channels_last)


def bf16(network: Network, _: Path) -> Run:
    """Body and tail in BF16, by autocast: what a torch user would write."""
    return _torch(network, memory=torch.channels_last, autocast=torch.bfloat16)


def onnx_runtime(_: Network, graph: Path) -> Run:
    return onnx_runner(graph)


def openvino_f32(_: Network, graph: Path) -> Run:
    return openvino_engine(graph, "f32")


def openvino_bf16(_: Network, graph: Path) -> Run:
    """Ours, where the gate lets it pass: BF16 but for both ends."""
    return openvino_engine(graph, "bf16")


def openvino_int8(network: Network, graph: Path) -> Run:
    """Inner levels in INT8, the rest as ours; not offered as an engine, for it does not pass the accuracy gate."""
    from int8 import quantised

    return openvino_engine(quantised(network, graph), "f32" if no_fast_bf16() else "bf16")


def openvino_engine(graph: Path, precision: str, *, timed: bool = False) -> Any:
    """An engine of its own for each, as the gate lets the shipped network's pass."""
    from exposure.export.openvino_engine import WIDE_ENDS, OpenVinoEngine, openvino_from_onnx  # a card needs none

    folder = Path(tempfile.mkdtemp(dir=graph.parent))
    openvino_from_onnx(graph, folder, wide=WIDE_ENDS[0] if precision == "bf16" else None)
    return OpenVinoEngine(folder, precision, timed=timed)


def no_fast_bf16() -> str | None:
    from exposure.export.openvino_engine import bf16_is_fast

    return None if bf16_is_fast() else "this processor has no BF16 arithmetic"


OURS, PUBLISHED = "OpenVINO FP32", "torch FP32 eager"
COMPILED = "torch.compile CUDA FP16 channels-last"
PEERS = {
    PUBLISHED: Peer(eager, environment=TUNED_MALLOC),
    "torch FP32 channels-last": Peer(channels_last, environment=TUNED_MALLOC),
    "torch.compile FP32 channels-last": Peer(compiled, environment=TUNED_MALLOC),
    "torch BF16 channels-last": Peer(bf16, no_fast_bf16, TUNED_MALLOC, LOW_PRECISION_DB, bf16=True),
    "ONNX Runtime FP32": Peer(onnx_runtime),
    OURS: Peer(openvino_f32),
    "OpenVINO BF16, FP32 ends": Peer(openvino_bf16, no_fast_bf16, least_db=LOW_PRECISION_DB, bf16=True),
    "OpenVINO INT8 inside": Peer(openvino_int8, least_db=LOW_PRECISION_DB),
    "torch CUDA FP32 eager": Peer(cuda_eager, no_card, on_card=True),
    "torch CUDA FP16 channels-last": Peer(cuda_half, no_card, least_db=LOW_PRECISION_DB, on_card=True),
    COMPILED: Peer(cuda_compiled, no_card, least_db=LOW_PRECISION_DB, reply_s=TUNING_S, on_card=True),
    "torch CUDA graph, FP16 body": Peer(cuda_graph, no_card, least_db=LOW_PRECISION_DB, on_card=True),
}
_FP16_ON_CARD: dict[str, Any] = {"least_db": LOW_PRECISION_DB, "reply_s": TUNING_S, "on_card": True}
PEERS |= {
    f"ONNX Runtime {name}, {numbers}": Peer(
        functools.partial(cuda_onnx, f"{name}ExecutionProvider"),
        functools.partial(no_provider, f"{name}ExecutionProvider"),
        **_FP16_ON_CARD,
    )
    for name, numbers in (("CUDA", "FP16 body"), ("Tensorrt", "FP16 throughout"))
} | {
    f"{target}, FP16 body": Peer(
        functools.partial(cuda_plan, target), functools.partial(no_library, library), **_FP16_ON_CARD
    )
    for target, library in MODULES.items()
}


class Worker:
    """A peer at work. Raises PeerError, one sentence, when it fails or takes longer than its `reply_s`.

    until: on the monotonic clock, when it must have answered whatever it is asked.
    """

    def __init__(self, name: str, graph: Path, cores: Sequence[int] | None = None, *, until: float = math.inf) -> None:
        self.name, self.peer, self._until = name, PEERS[name], until
        reason = self.peer.absent() or (NO_TIME if time.monotonic() > until else None)
        if reason:
            raise AbsentPeerError(reason)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(name, graph, theirs), daemon=True)
        with environment(self.peer.environment), _cores(cores):
            self._process.start()
        theirs.close()

    def __call__(self, *arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output; for verification."""
        return self._ask("arrays", *arrays)

    def verify(self, network: Network) -> float:
        """Agreement with eager FP32 torch on simulated low light, PSNR in dB. Raises PeerError where it is low."""
        darkest = list(low_light_crops(network.photon_unit))[-1]
        gain = np.array([darkest.photon_gain], np.float32)
        with torch.no_grad():
            image = torch.from_numpy(darkest.image)
            original = image.flip(-1)  # two images: none may pass for the other
            expected = network(image, torch.from_numpy(gain), original).numpy()
        found = agreement_db(self(darkest.image, gain, original.numpy()), expected)
        if not found >= self.peer.least_db:  # NaN, too
            raise PeerError(f"it agrees with FP32 torch to {found:.1f} dB only; {self.peer.least_db:.0f} are needed")
        return found

    def run(self, height: int, width: int) -> float:
        """Seconds of one pass over random planes of this size, which stay with the worker."""
        return float(self._ask("planes", height, width))

    def peak_gib(self) -> float | None:
        """The most memory that the process has held so far; None where a library on a card does not tell."""
        held = self._ask("peak")
        return None if held is None else round(held / 2**30, 2)

    def close(self) -> None:
        """End the process; by force where it is busy."""
        self._pipe.close()
        self._process.join(CLOSE_S)
        self._process.kill()
        self._process.join()

    def _ask(self, *question: Any) -> Any:
        try:
            self._pipe.send(question)
            if not self._pipe.poll(min(self.peer.reply_s, max(self._until - time.monotonic(), 0))):
                self.close()
                if time.monotonic() > self._until:
                    raise AbsentPeerError(NO_TIME)
                raise PeerError(f"it took more than {self.peer.reply_s:.0f} s for one answer")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:  # OSError also where it was closed before
            self._process.join()
            raise PeerError(f"its process ended (exit {self._process.exitcode}); no memory left is likely") from error
        if isinstance(answer, Exception):
            raise PeerError(" ".join(str(answer).split())[:200]) from answer
        return answer


@contextlib.contextmanager
def peers_at_work(
    names: Sequence[str], graph: Path, network: Network, *, until: float = math.inf
) -> Iterator[tuple[dict[str, Worker], dict[str, Any]]]:
    """Every peer of `names` that can be here and is verified, and for all of them the agreement or the reason.

    until: on the monotonic clock, when all answers must have come.
    """
    workers: dict[str, Worker] = {}
    found: dict[str, Any] = {}
    try:
        for name in names:
            worker = None
            try:
                worker = Worker(name, graph, until=until)
                found[name] = {"agreement_db": round(worker.verify(network), 1)}
                workers[name] = worker
            except PeerError as error:
                found[name] = {"left_out": str(error), "absent": isinstance(error, AbsentPeerError)}
                if worker is not None:
                    worker.close()
        yield workers, found
    finally:
        for worker in workers.values():
            worker.close()


def _serve(name: str, graph: Path, pipe: Connection) -> None:
    """A worker's life: build, answer, until the other side is gone."""
    run: Run | None = None
    passes: dict[tuple[int, int], Callable[[], Any]] = {}
    while True:
        try:
            kind, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            run = run or PEERS[name].build(load_checkpoint(CHECKPOINT), graph)
            if kind == "arrays":
                pipe.send(np.array(run(*arguments)))
            elif kind == "planes":
                height, width = arguments
                if (height, width) not in passes:
                    passes.clear()  # with their planes
                    passes[height, width] = _one_pass(run, height, width)
                    if isinstance(run, OnCard):
                        for _ in range(WARM_UPS):  # kernels are chosen, graphs recorded
                            passes[height, width]()
                        run.forget_peak()
                started = time.perf_counter()
                passes[height, width]()
                pipe.send(time.perf_counter() - started)
            else:
                pipe.send(run.peak_bytes() if isinstance(run, OnCard) else peak_bytes())
        except Exception as error:  # told, not raised: the other side decides
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _one_pass(run: Run, height: int, width: int) -> Callable[[], Any]:
    """Over random planes, which stay where the peer computes."""
    planes = np.random.default_rng(0).random((1, 4, height, width), np.float32)
    gain = np.array([PHOTON_GAIN], np.float32)
    return run.over(planes, gain) if isinstance(run, OnCard) else functools.partial(run, planes, gain, planes)


def _torch(module: Any, *, memory: torch.memory_format = torch.contiguous_format, autocast: Any = None) -> Run:
    module.to(memory_format=memory)

    def run(
        image: NDArray[np.float32], gain: NDArray[np.float32], original: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        planes = torch.from_numpy(image).contiguous(memory_format=memory)
        first = planes if original is image else torch.from_numpy(original).contiguous(memory_format=memory)
        with torch.inference_mode(), torch.autocast("cpu", autocast, enabled=autocast is not None):
            return module(planes, torch.from_numpy(gain), first).float().numpy()

    return run


@contextlib.contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """For a process that starts in the block."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _cores(cores: Sequence[int] | None) -> Iterator[None]:
    """For a process that starts in the block: libraries count the cores they may use when they are loaded."""
    if cores is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
