"""One pass on a card by every means at hand, in turn, beside the card's own ceilings and beside torch.compile."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ceilings import Probe, cost_of_pass
from engine import described, graph_of, measure, planes_of
from frames import FRAMES
from gpu_check import NotCheckedError
from peers import COMPILED, NO_TIME, PEERS, peers_at_work

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT

ROUNDS = 10
SHARE_OF_TIME = 0.9  # of what is allowed; then what was found is written
SIZES = {"512²": (512, 512), "12 MP": planes_of(FRAMES[12])}
FP16 = 2  # bytes


def measured(size: str, limit_s: float) -> dict[str, Any]:
    """Ceilings, who was verified, and seconds, share of the roofline, and speed over torch.compile at one of `SIZES`.

    The roofline takes planes as FP16; a peer in FP32 moves twice as much. A peer that is not here, or for which no time
    is left, is not checked; one that ends, or computes something else, has failed. limit_s: for all of it.
    """
    until = time.monotonic() + SHARE_OF_TIME * limit_s
    if not torch.cuda.is_available():
        raise NotCheckedError("torch sees no NVIDIA card here")
    network, probe, sides = load_checkpoint(CHECKPOINT), Probe("cuda"), SIZES[size]
    names = [name for name, peer in PEERS.items() if peer.on_card]
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(network, Path(folder))
        with peers_at_work(names, graph, network, until=until) as (workers, found):
            if not workers and all(told.get("absent") for told in found.values()):
                raise NotCheckedError("; ".join(f"{name}: {told['left_out']}" for name, told in found.items()))
            timed = measure(workers, probe, sides, ROUNDS)
    frame = described(timed, sides, cost_of_pass(network, *sides, FP16), probe.best, COMPILED)
    peers = {name: _outcome(told, timed["unable"].get(name)) for name, told in found.items()}
    failed = any(peer["outcome"] == "failed" for peer in peers.values())
    result = {"ceilings": probe.record(), "baseline": COMPILED, "peers": peers, "frame": frame}
    return {"outcome": "failed" if failed else "passed"} | result


def _outcome(told: dict[str, Any], unable: str | None) -> dict[str, Any]:
    """unable: why a peer that was verified could not be timed; of a small card, because its memory is short."""
    if "left_out" in told:
        return {"outcome": "not checked" if told["absent"] else "failed", "why": told["left_out"]}
    if unable:
        lacks = unable == NO_TIME or "out of memory" in unable.lower()
        return told | {"outcome": "not checked" if lacks else "failed", "why": unable}
    return told | {"outcome": "passed"}
