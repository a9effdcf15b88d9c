"""One pass on a card by every means at hand, in turn, beside the card's own ceilings and beside torch.compile."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from ceilings import Probe, cost_of_pass
from engine import described, graph_of, measure, planes_of
from frames import FRAMES
from gpu_check import NotCheckedError
from peers import COMPILED, PEERS, peers_at_work

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT

ROUNDS = 10
SIZES = {"512²": (512, 512), "12 MP": planes_of(FRAMES[12])}
FP16 = 2  # bytes


def measured(size: str) -> dict[str, Any]:
    """Ceilings, who was verified, and seconds, share of the roofline, and speed over torch.compile at one of `SIZES`.

    The roofline takes planes as FP16; a peer in FP32 moves twice as much. A peer that is not here is not checked; one
    that computes something else has failed.
    """
    if not torch.cuda.is_available():
        raise NotCheckedError("torch sees no NVIDIA card here")
    network, probe, sides = load_checkpoint(CHECKPOINT), Probe("cuda"), SIZES[size]
    names = [name for name, peer in PEERS.items() if peer.on_card]
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(network, Path(folder))
        with peers_at_work(names, graph, network) as (workers, found):
            timed = measure(workers, probe, sides, ROUNDS)
    frame = described(timed, sides, cost_of_pass(network, *sides, FP16), probe.best, COMPILED)
    peers = {name: _outcome(told, timed["unable"].get(name)) for name, told in found.items()}
    failed = any(peer["outcome"] == "failed" for peer in peers.values())
    result = {"ceilings": probe.record(), "baseline": COMPILED, "peers": peers, "frame": frame}
    return {"outcome": "failed" if failed else "passed"} | result


def _outcome(told: dict[str, Any], unable: str | None) -> dict[str, Any]:
    """unable: why a peer that was verified could not be timed, as where the card's memory is short."""
    if "left_out" in told:
        return {"outcome": "failed" if told["wrong"] else "not checked", "why": told["left_out"]}
    return told | ({"outcome": "not checked", "why": unable} if unable else {"outcome": "passed"})
