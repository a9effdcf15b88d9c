"""How fast one pass of the network is, by every means that computes the same, and how far each is from the roofline.

python benchmarks/engine.py [--rounds 2] [--megapixels 12] [--quick] [--out FILE.json]
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ceilings import Ceilings, Cost, Probe, cost_of_pass
from frames import FRAMES
from harness import Benchmark, interleaved, ratio, rounded, summary
from layers import layers
from peers import OURS, PEERS, PUBLISHED
from workers import PeerError, Worker, peers_at_work

from exposure import load_checkpoint
from exposure.assets import CHECKPOINT
from exposure.networks import Network
from exposure.sensor import plane_side

SMALL_ROUNDS = 4  # times as many where a pass takes a tenth
# All at once hold 25 GiB at 12 MP, each of these half of it.
GROUPS = (
    [name for name in PEERS if name.startswith("torch")],
    [PUBLISHED, *(name for name in PEERS if not name.startswith("torch"))],
)


def main() -> None:
    """Verify, then time in turn: torch's peers first, then the others, each time with the published way among them."""
    benchmark = Benchmark("engine", __doc__, rounds=2, megapixels=(12, 6, 3))
    network = load_checkpoint(CHECKPOINT)
    # first, while nothing else holds memory
    where = None if PEERS[OURS].absent() else layers(network, _frames(benchmark)[-1][1])
    benchmark.say("layers timed")
    probe = Probe()
    found: dict[str, Any] = {}
    timed: dict[str, list[Any]] = {name: [] for name, _, _ in _frames(benchmark)}
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(network, Path(folder))
        for names in GROUPS:
            with peers_at_work(names, graph, network) as (workers, told):
                benchmark.say(f"verified: {', '.join(workers)}")
                found |= _news(told, found)
                for name, sides, rounds in _frames(benchmark):
                    timed[name].append(measure(workers, probe, sides, rounds))
                    benchmark.say(f"{name} timed")
    frames: dict[str, Any] = {}
    for name, sides, _ in _frames(benchmark):
        cost = cost_of_pass(network, *sides)
        for group in timed[name]:
            frame = described(group, sides, cost, probe.best)
            known = frames.setdefault(name, frame)["peers"]
            known |= _news(frame["peers"], known)
    measured = {"baseline": PUBLISHED, "ours": OURS, "frames": frames, "peers": found, "layers": where}
    benchmark.finish({"ceilings": probe.record(), **measured})


def _news(told: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What is told of peers of whom nothing is known, or only why they were left out."""
    return {name: peer for name, peer in told.items() if "left_out" in known.get(name, {"left_out": ""})}


def measure(
    workers: dict[str, Worker], probe: Probe, sides: tuple[int, int], rounds: int, until: float = math.inf
) -> dict[str, Any]:
    """Seconds of each peer in each round, its memory, and who could not; the ceilings looked at in every round.

    until: on the monotonic clock, when no other round begins.
    """
    unable: dict[str, str] = {}

    def asked(name: str, question: Callable[[Worker], Any]) -> Any:
        if name in unable:
            return None
        try:
            return question(workers[name])
        except PeerError as error:
            unable[name] = str(error)
            workers.pop(name).close()  # the next size is larger
            return None

    def one_pass(name: str) -> Any:
        return asked(name, lambda worker: worker.run(*sides))

    for name in list(workers):
        one_pass(name)  # its warm-up; engines compile themselves for the size
    works: dict[str, Callable[[], Any]] = {name: partial(one_pass, name) for name in workers}
    seconds = interleaved({**works, "": probe.run}, rounds, warm_up=0, until=until)
    # where memory is short, one may end here too
    peaks = {name: asked(name, lambda worker: worker.peak_gib()) for name in list(workers)}
    return {
        "seconds": {name: seconds[name] for name in workers},
        "peaks": {name: peaks[name] for name in workers},
        "unable": unable,
    }


def described(
    timed: dict[str, Any], sides: tuple[int, int], cost: Cost, ceilings: Ceilings, baseline: str = PUBLISHED
) -> dict[str, Any]:
    """One frame size for the JSON: each peer beside the roofline and beside the baseline."""
    seconds: dict[str, Sequence[float]] = timed["seconds"]
    limit = ceilings.seconds(cost)
    peers: dict[str, Any] = dict.fromkeys(timed["unable"])
    for name, taken in seconds.items():
        times = summary(taken)
        peers[name] = {
            "seconds": times,
            "passes_per_s": rounded(1 / times["median"]),
            "gflops": rounded(cost.flops / times["median"] / 1e9),
            "peak_gib": timed["peaks"][name],
        }
        if PEERS[name].on_card == ceilings.on_card:
            peers[name]["share_of_roofline"] = round(limit / times["median"], 3)
        if PEERS[name].bf16 and ceilings.bf16_flops:
            peers[name]["share_of_bf16"] = round(cost.flops / ceilings.bf16_flops / times["median"], 3)
        if baseline in seconds:
            peers[name]["speed_over_baseline"] = ratio(seconds[baseline], taken)
    for name, reason in timed["unable"].items():
        peers[name] = {"left_out": reason}
    return {
        "planes": list(sides),
        "gflop": rounded(cost.flops / 1e9),
        "traffic_gbyte": rounded(cost.traffic / 1e9),
        "flop_per_byte": rounded(cost.flops / cost.traffic),
        "roofline_s": rounded(limit),
        "peers": peers,
    }


def planes_of(mosaic: tuple[int, int], multiple: int = 16) -> tuple[int, int]:
    """Sides of the padded planes of a mosaic."""
    height, width = (plane_side(side, multiple) for side in mosaic)
    return height, width


def graph_of(network: Network, folder: Path) -> Path:
    from exposure.export.graph import onnx_from_network  # torch's peers on a card need no ONNX

    onnx_from_network(network, folder / "network.onnx")
    return folder / "network.onnx"


def _frames(benchmark: Benchmark) -> list[tuple[str, tuple[int, int], int]]:
    if benchmark.quick:
        return [("128²", (128, 128), benchmark.rounds)]
    return [
        ("512²", (512, 512), SMALL_ROUNDS * benchmark.rounds),
        (f"{benchmark.megapixels} MP", planes_of(FRAMES[benchmark.megapixels]), benchmark.rounds),
    ]


if __name__ == "__main__":
    main()
