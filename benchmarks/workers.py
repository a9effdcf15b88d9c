"""Peers at work, each in a process of its own: asked, verified, timed, ended."""

import contextlib
import functools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_machine import NotCheckedError
from gpu_peers import OnCard, Sides, clocked, warmed
from harness import peak_bytes
from numpy.typing import NDArray
from peers import PEERS, Run
from processes import die_with_parent

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT
from exposure.export.scene import low_light_crops
from exposure.networks import Network
from exposure.quality import agreement_db

CLOSE_S = 5.0
TIMING_S = 20.0  # what a peer that tunes must leave for its rounds, of the time that is left
NO_TIME = "no time was left for it"
PHOTON_GAIN = 0.5  # a middle one, for timing


class PeerError(RuntimeError):
    """A peer that cannot be measured here; the message says why."""


class AbsentPeerError(PeerError):
    """A peer that cannot be here, or for which no time is left."""


class Worker:
    """A peer at work. Raises PeerError, one sentence, when it fails or takes longer than its `reply_s`.

    until: on the monotonic clock, when it must have answered whatever it is asked. A peer that does not tune takes half
    of what is left at most: the others want their answers, too.
    """

    def __init__(self, name: str, graph: Path, cores: Sequence[int] | None = None, *, until: float = math.inf) -> None:
        self.name, self.peer, self._until = name, PEERS[name], until
        reason = self.peer.absent() or (NO_TIME if time.monotonic() > until else None)
        if reason:
            raise AbsentPeerError(reason)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(name, graph, theirs, os.getpid()), daemon=True)
        with environment(self.peer.environment), _cores(cores):
            self._process.start()
        theirs.close()

    def __call__(self, *arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output; for verification."""
        return self._ask("arrays", *arrays, reserve_s=TIMING_S if self.peer.tunes else 0.0)

    def verify(self, network: Network, sides: Sides | None = None) -> float:
        """Agreement with eager FP32 torch on simulated low light, PSNR in dB. Raises PeerError where it is low.

        sides: of the planes, over which the scene is repeated where it is smaller; else its own.
        """
        darkest = list(low_light_crops(network.photon_unit))[-1]
        gain = np.array([darkest.photon_gain], np.float32)
        with torch.no_grad():
            image = torch.from_numpy(darkest.image if sides is None else _repeated(darkest.image, sides))
            original = image.flip(-1)  # two images: none may pass for the other
            expected = network(image, torch.from_numpy(gain), original).numpy()
        found = agreement_db(self(image.numpy(), gain, original.numpy()), expected)
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

    def hang_up(self) -> None:
        """It ends when it has nothing to do; `close` waits for that."""
        self._pipe.close()

    def close(self, patience_s: float = CLOSE_S) -> None:
        """End the process; by force where it is busy."""
        self.hang_up()
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()

    def _ask(self, *question: Any, reserve_s: float = 0.0) -> Any:
        left_s = max(self._until - time.monotonic() - reserve_s, 0) / (1 if self.peer.tunes else 2)
        try:
            self._pipe.send(question)
            if not self._pipe.poll(min(self.peer.reply_s, left_s)):
                self.close(patience_s=0)
                if left_s < self.peer.reply_s:
                    raise AbsentPeerError(NO_TIME)
                raise PeerError(f"it took more than {self.peer.reply_s:.0f} s for one answer")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:  # OSError also where it was closed before
            self._process.join()
            raise PeerError(f"its process ended (exit {self._process.exitcode}); no memory left is likely") from error
        if isinstance(answer, Exception):
            raise (AbsentPeerError if isinstance(answer, NotCheckedError) else PeerError)(_brief(answer)) from answer
        return answer


@contextlib.contextmanager
def peers_at_work(
    names: Sequence[str], graph: Path, network: Network, *, sides: Sides | None = None, until: float = math.inf
) -> Iterator[tuple[dict[str, Worker], dict[str, Any]]]:
    """Every peer of `names` that can be here and is verified, and for all of them the agreement or the reason.

    They start together, for that takes long, and are verified in turn. sides: of the planes of those that tune, so that
    they do it once. until: on the monotonic clock, when all answers must have come.
    """
    started: dict[str, Worker] = {}
    workers: dict[str, Worker] = {}
    found: dict[str, Any] = {}
    try:
        for name in names:
            try:
                started[name] = Worker(name, graph, until=until)
                found[name] = {}
            except PeerError as error:
                found[name] = _left_out(error)
        for name, worker in started.items():
            try:
                agreement = worker.verify(network, sides if worker.peer.tunes else None)
                found[name] = {"agreement_db": round(agreement, 1)}
                workers[name] = worker
            except PeerError as error:
                found[name] = _left_out(error)
                worker.close()
        yield workers, found
    finally:
        close_all(started.values())


def close_all(workers: Iterable[Worker]) -> None:
    """Together: a busy one costs its patience once."""
    for worker in workers:
        worker.hang_up()
    until = time.monotonic() + CLOSE_S
    for worker in workers:
        worker.close(max(until - time.monotonic(), 0))


def _brief(error: Exception) -> str:
    """One line: its beginning, and its end, where ONNX Runtime says that memory is short."""
    said = " ".join(str(error).split())
    return said if len(said) <= 300 else f"{said[:200]} … {said[-97:]}"


def _left_out(error: PeerError) -> dict[str, Any]:
    return {"left_out": str(error), "absent": isinstance(error, AbsentPeerError)}


def _repeated(image: NDArray[np.float32], sides: Sides) -> NDArray[np.float32]:
    times = [-(-side // own) for side, own in zip(sides, image.shape[2:], strict=True)]
    return np.ascontiguousarray(np.tile(image, times)[..., : sides[0], : sides[1]])


def _serve(name: str, graph: Path, pipe: Connection, parent: int) -> None:
    """A worker's life: build, answer, until the other side is gone."""
    die_with_parent(parent)  # also where it is busy
    run: Run | None = None
    passes: dict[Sides, Callable[[], float]] = {}
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
                sides = (arguments[0], arguments[1])
                if sides not in passes:
                    passes.clear()  # with their planes
                    passes[sides] = _pass(run, *sides)
                pipe.send(passes[sides]())
            else:
                pipe.send(run.peak_bytes() if isinstance(run, OnCard) else peak_bytes())
        except NotCheckedError as error:
            pipe.send(error)
        except Exception as error:  # told, not raised: the other side decides
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _pass(run: Run, height: int, width: int) -> Callable[[], float]:
    """Seconds of a pass over random planes, which stay where the peer computes; on a card, of many passes' mean."""
    planes = np.random.default_rng(0).random((1, 4, height, width), np.float32)
    gain = np.array([PHOTON_GAIN], np.float32)
    if isinstance(run, OnCard):
        passes = run.over(planes, gain)
        count = warmed(passes)
        run.forget_peak()
        return functools.partial(clocked, passes, count)

    def one_pass() -> float:
        started = time.perf_counter()
        run(planes, gain, planes)
        return time.perf_counter() - started

    return one_pass


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
