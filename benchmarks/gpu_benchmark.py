"""One pass on a card by every means at hand, in turn, beside the card's own ceilings and beside torch in FP16.

Two checks of each size: the peers that are ready at once, and those that tune themselves for minutes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ceilings import Probe, cost_of_pass
from engine import described, measure, planes_of
from frames import FRAMES
from gpu_machine import NotCheckedError, clock_under_load
from peers import GRAPHED, HALF, PEERS
from workers import NO_TIME, peers_at_work

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT

ROUNDS = 10
RESERVE_S = 25.0  # of what is allowed: peers are ended, and what was found is written
ROUND_S = 10.0  # before that, when no other round begins
SIZES = {"512²": (512, 512), "12 MP": planes_of(FRAMES[12])}
FP16 = 2  # bytes
BASELINE = HALF  # of every ratio, which is of one run: what a user of torch would write
BESIDE = (HALF, GRAPHED)  # the fastest of those that do not tune, among those that do
NO_MEMORY = ("out of memory", "failed to allocate memory")  # as torch and TensorRT say it; as ONNX Runtime does
Keep = Callable[[dict[str, Any]], None]


def measured(size: str, until: float) -> dict[str, Any]:
    """Ceilings, who was verified, and seconds, share of the roofline, and speed over `BASELINE` at one of `SIZES`.

    The roofline takes planes as FP16; a peer in FP32 moves twice as much. A peer that is not here, or for which no time
    is left, is not checked; one that ends, or computes something else, has failed. until: on the monotonic clock, when
    all must be over.
    """
    until -= RESERVE_S
    names = [name for name, peer in PEERS.items() if peer.on_card and not peer.tunes]
    _require(names)
    record = Record(size, names)
    with _at_work(names, record, until) as (workers, found):
        record.add(found, measure(workers, record.probe, record.sides, ROUNDS, until - ROUND_S) if workers else None)
    return record.result()


def tuned(size: str, until: float, keep: Keep) -> dict[str, Any]:
    """The same of those that tune: each alone, then timed in turn with those of `BESIDE`, within its share of the time.

    keep: takes the result so far, whenever another is to be waited for.
    """
    until -= RESERVE_S
    names = [name for name, peer in PEERS.items() if peer.on_card and peer.tunes]
    here = _require(names)
    record = Record(size, names)
    with _at_work(BESIDE, record, until) as (beside, found):
        record.add(found)
        for name in names:
            record.add({name: {"left_out": PEERS[name].absent() or NO_TIME, "absent": True}})
        for turn, name in enumerate(here):
            keep(record.result())
            mine = time.monotonic() + (until - time.monotonic()) / (len(here) - turn)
            with _at_work([name], record, mine) as (worker, told):
                workers = beside | worker
                record.add(
                    told, measure(workers, record.probe, record.sides, ROUNDS, mine - ROUND_S) if worker else None
                )
            beside = {name: worker for name, worker in beside.items() if name in workers}  # who still answers
    return record.result()


class Record:
    """What is found at one size. names: the peers that it is about; others are beside them."""

    def __init__(self, size: str, names: Sequence[str]) -> None:
        self.network, self.sides, self._names = load_checkpoint(CHECKPOINT), SIZES[size], names
        self.probe = Probe("cuda")
        self._clock = clock_under_load(self.probe.run)
        self._cost = cost_of_pass(self.network, *self.sides, FP16)
        self._found: dict[str, Any] = {}
        self._groups: list[dict[str, Any]] = []

    def add(self, told: dict[str, Any], timed: dict[str, Any] | None = None) -> None:
        """told: of `peers_at_work`. timed: of `measure`, of peers in turn."""
        self._found |= told
        self._groups += [timed] if timed else []

    def result(self) -> dict[str, Any]:
        """passed where something that it is about was timed and nothing failed."""
        unable = dict.fromkeys(self._found, NO_TIME)
        for group in self._groups:
            unable |= group["unable"]
        timed = {name for group in self._groups for name in group["seconds"]}
        peers = {name: _outcome(told, None if name in timed else unable[name]) for name, told in self._found.items()}
        common = {"ceilings": self.probe.record(), "sm_clock_mhz": self._clock, "baseline": BASELINE, "peers": peers}
        if self._groups:
            common["frame"] = self._frame()
        if any(peer["outcome"] == "failed" for peer in peers.values()):
            return {"outcome": "failed"} | common
        if timed.intersection(self._names):
            return {"outcome": "passed"} | common
        why = "; ".join(f"{name}: {peers[name]['why']}" for name in self._names)
        return {"outcome": "not checked", "why": f"nothing was timed: {why}"} | common

    def _frame(self) -> dict[str, Any]:
        """Every peer's figures, of the first group in which it was timed."""
        frame: dict[str, Any] = {}
        for group in self._groups:
            found = described(group, self.sides, self._cost, self.probe.best, BASELINE)
            known = {name: peer for name, peer in frame.get("peers", {}).items() if "seconds" in peer}
            beside = {name: peer["seconds"] for name, peer in found["peers"].items() if name in known}
            for name, peer in found["peers"].items():
                if beside and "seconds" in peer and name not in known:
                    peer["in_turn_with"] = beside  # of whom the page shows an earlier group's figures
            frame = found | {"peers": found["peers"] | known}
        return frame


def _require(names: Sequence[str]) -> list[str]:
    """Those that can be here. Raises NotCheckedError where none can."""
    if not torch.cuda.is_available():
        raise NotCheckedError("torch sees no NVIDIA card here")
    reasons = {name: PEERS[name].absent() for name in names}
    if all(reasons.values()):
        raise NotCheckedError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return [name for name, reason in reasons.items() if reason is None]


@contextmanager
def _at_work(names: Sequence[str], record: Record, until: float) -> Iterator[Any]:
    """Peers on a card make such graphs as they need themselves, beside the one that is named: most need none."""
    with (
        tempfile.TemporaryDirectory() as folder,
        peers_at_work(names, Path(folder) / "network.onnx", record.network, sides=record.sides, until=until) as at_work,
    ):
        yield at_work


def _outcome(told: dict[str, Any], unable: str | None) -> dict[str, Any]:
    """unable: why a peer that was verified could not be timed. Where memory is short, the card is small: no failure."""
    why = told.get("left_out") or unable
    if not why:
        return told | {"outcome": "passed"}
    lacks = told.get("absent") or why == NO_TIME or any(said in why.lower() for said in NO_MEMORY)
    known = {} if "left_out" in told else told
    return known | {"outcome": "not checked" if lacks else "failed", "why": why}
