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


def measured() -> dict[str, Any]:
    """Ceilings, who was verified, and for each size seconds, share of the roofline, and speed over torch.compile.

    The roofline takes planes as FP16; a peer in FP32 moves twice as much.
    """
    if not torch.cuda.is_available():
        raise NotCheckedError("torch sees no NVIDIA card here")
    network, probe, frames = load_checkpoint(CHECKPOINT), Probe("cuda"), {}
    names = [name for name, peer in PEERS.items() if peer.on_card]
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(network, Path(folder))
        with peers_at_work(names, graph, network) as (workers, found):
            for name, sides in SIZES.items():
                timed = measure(workers, probe, sides, ROUNDS)
                frames[name] = described(timed, sides, cost_of_pass(network, *sides, FP16), probe.best, COMPILED)
    return {"ceilings": probe.record(), "baseline": COMPILED, "peers": found, "frames": frames}
