"""benchmarks/README.md and its plots, from the JSON alone; or what changed since another run, beyond its noise.

python benchmarks/report.py [--machine SLUG]
python benchmarks/report.py --compare OLD.json [NEW.json]
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plots
from harness import RESULTS, slug

HERE = Path(__file__).resolve().parent
SCRIPTS = ("kernels", "engine", "server", "end_to_end", "scaling")
LARGE_CHANGE = 1.05  # smaller ones are not worth a line
BEST_RAW_DENOISER_MS_PER_MP = 24  # LightCraft's own figure: 24 MP in 0.582 s, one pass, RTX 4090 Laptop


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", default=slug(), metavar="SLUG", help="whose results (default: this machine's)")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="JSON", help="an old result, and the new one")
    options = parser.parse_args()
    try:
        if options.compare:
            return print_comparison(*options.compare)
        page = write_page(options.machine)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    print(f"written: {page}")
    return 0


def write_page(machine: str) -> Path:
    """The page of one machine's results."""
    found = {script: _read(RESULTS / f"{script}_{machine}.json") for script in SCRIPTS}
    (HERE / "plots").mkdir(exist_ok=True)
    plots.draw(found, HERE / "plots")
    page = HERE / "README.md"
    text = "\n".join((_head(found), kernels(found), engine(found), server(found), end_to_end(found), scaling(found)))
    page.write_text(text)
    return page


def kernels(found: dict[str, Any]) -> str:
    result = found["kernels"]["measured"]
    rows = []
    for kernel, peers in result["geometry"].items():
        for name, peer in peers.items():
            faster = _ratio(peer["kernel_is_faster"]) if "kernel_is_faster" in peer else ""
            rows.append((kernel, name, peer["megapixels_per_s"], _percent(peer["share_of_bandwidth"]), faster))
    drawn = []
    for rate, peers in result["draws"].items():
        speeds = [peers[name]["million_draws_per_s"] for name in ("kernel", "NumPy", "torch")]
        drawn.append((rate, *speeds, *(_ratio(peers[name]["kernel_is_faster"]) for name in ("NumPy", "torch"))))
    return f"""## Kernels

A 12 MP mosaic, equal to the definition bit for bit before it is timed. Bandwidth is what must move, of what the triad
reached in the same run.

{_table(("kernel", "by", "MP/s", "of bandwidth", "kernel is faster, times"), rows)}

Poisson counts, million a second:

{_table(("mean, electrons", "kernel", "NumPy", "torch", "kernel over NumPy", "kernel over torch"), drawn)}
"""


def engine(found: dict[str, Any]) -> str:
    result = found["engine"]["measured"]
    ceilings, parts = result["ceilings"], []
    for name, frame in result["frames"].items():
        rows = []
        for peer, timed in frame["peers"].items():
            if "left_out" in timed:
                rows.append((peer, timed["left_out"], "", "", "", ""))
                continue
            agreement = result["peers"][peer]["agreement_db"]
            over = _ratio(timed["speed_over_baseline"]) if "speed_over_baseline" in timed else ""
            cells = (_seconds(timed["seconds"]), f"{timed['passes_per_s']:.3g}", _percent(timed["share_of_roofline"]))
            rows.append((peer, *cells, timed["peak_gib"], f"{over} · {agreement} dB"))
        title = (
            "network by",
            "seconds a pass",
            "passes/s",
            "of roofline",
            "peak GiB",
            f"over {result['baseline']} · agrees",
        )
        parts.append(
            f"**{name}**, planes {frame['planes'][0]}×{frame['planes'][1]}: {frame['gflop']:g} GFLOP, "
            f"at least {frame['roofline_s']:.3g} s\n\n{_table(title, rows)}"
        )
    absent = [f"{name}: {peer['left_out']}" for name, peer in result["peers"].items() if "left_out" in peer]
    tables, missing = "\n\n".join(parts), "".join(f"- {line}\n" for line in absent)
    return f"""## Engine

One pass of the network, each peer in a process of its own, verified against FP32 torch on simulated low light first.
Ceilings of this machine, the best of {ceilings["looks"]} looks between the rounds: {ceilings["gflops"]:g} GFLOP/s
(FP32, product of matrices) and {ceilings["gbytes_per_s"]:g} GB/s (triad). The roofline takes every plane as moved once and a
multiply-add as two operations; a Winograd convolution does fewer and may pass it.

{tables}

![roofline](plots/roofline.svg)

Not measured here:

{missing}"""


def server(found: dict[str, Any]) -> str:
    result = found["server"]["measured"]
    waterfall, request, load = result["waterfall"], result["request"], result["load"]
    layers = [(name, _seconds(times), f"{1e3 * times['p95']:.0f}") for name, times in waterfall["seconds"].items()]
    added = [
        (passes, f"{1e3 * t['median']:.0f} ({1e3 * t['least']:.0f} to {1e3 * t['most']:.0f})")
        for passes, t in waterfall["added_to_passes_s"].items()
    ]
    stages = [(name, f"{1e3 * seconds:.0f}") for name, seconds in request["mean_stage_s"].items()]
    callers = []
    for count, level in load["callers"].items():
        times = level["latency_s"]
        cells = [f"{1e3 * times[q]:.0f}" for q in ("median", "p95", "p99")]
        share = _percent(level["requests_per_s"] / level["engine_limit_per_s"])
        callers.append(
            (count, level["requests_per_s"], share, *cells, f"{1e3 * level['mean_queued_s']:.0f}", level["refused"])
        )
    return f"""## Server

What each layer adds, {waterfall["frame_mp"]:g} MP, shared memory unless it says gRPC:

{_table(("layer", "seconds", "p95, ms"), layers)}

Beyond that many passes of the engine alone, in the same round:

{_table(("passes", "ms added, median (least to most)"), added)}

![waterfall](plots/waterfall.svg)

The whole request, {request["frame_mp"]:g} MP, {request["passes"]} passes, {request["transport"]}: the engine's own
passes {_seconds(request["seconds"]["engine"])} s, the request {_seconds(request["seconds"]["request"])} s, **request / engine
{_ratio(request["request_over_engine"])}**; peak memory of the server {request["server_peak_gib"]:g} GiB. Where it goes:

{_table(("part", "ms, mean"), stages)}

Load, {load["frame_mp"]:g} MP and {load["passes"]} pass a request; each caller asks again when it is answered. The
limit is the engine alone, one pass after the other, measured before each step. p99 of {_samples(load)} samples is nearly their
largest.

{_table(("callers", "requests/s", "of the engine's limit", "p50, ms", "p95", "p99", "queued, ms", "refused"), callers)}

![latency against load](plots/load.svg)

The models have no bound on their queue, so nothing is refused above saturation: waiting grows with the callers.
"""


def end_to_end(found: dict[str, Any]) -> str:
    result = found["end_to_end"]["measured"]
    single, batch = result["single"], result["batch"]
    rows = [(name, _seconds(times), f"{single['ms_per_mp'][name]:.0f}") for name, times in single["seconds"].items()]
    stages = [(name, f"{1e3 * seconds:.0f}") for name, seconds in single["stages_s"].items()]
    together = [
        (name, _seconds(times), f"{batch['files_per_hour'][name]:.0f}") for name, times in batch["seconds"].items()
    ]
    return f"""## End to end

A RAW file of {single["frame_mp"]:g} MP to a DNG, {result["passes"]} passes. `engine`: the network's passes alone;
`exposure`: the command, which reads in a process of its own, writes lossless JPEG with a thumbnail and reads the result again;
`published`: the procedure as published (NumPy packing, eager FP32 torch, `torch.poisson`) between the same
reader and writer.

{_table(("by", "seconds", "ms/MP"), rows)}

- file → DNG / engine: **{_ratio(single["file_over_engine"])}**
- published / exposure: **{_ratio(single["published_over_exposure"])}**

The best RAW denoiser with published figures says {BEST_RAW_DENOISER_MS_PER_MP} ms/MP: one pass of another network on an
RTX 4090 Laptop, other hardware than this, so not a comparison.

{_table(("part of one file, one after the other", "ms"), stages)}

Many files, {batch["files"]} of {batch["frame_mp"]:g} MP: in one command, and read, asked for and written
one after the other.

{_table(("", "seconds", "files an hour"), together)}

- throughput of the batch over one at a time: **{_ratio(batch["throughput_ratio"])}**
"""


def scaling(found: dict[str, Any]) -> str:
    result = found["scaling"]["measured"]
    sizes, rows = result["megapixels"], []
    for name, size in sizes["sizes"].items():
        if "left_out" in size:
            rows.append((name, size["left_out"], "", ""))
        else:
            rows.append(
                (f"{size['frame_mp']:g}", _seconds(size["seconds"]), f"{size['ms_per_mp']:.0f}", size["peak_gib"])
            )
    fits = [
        (what, f"{fit['exponent']} ± {fit['standard_error']}", fit["r2"]) for what, fit in sizes["exponents"].items()
    ]
    cores = [
        (count, _seconds(times), _ratio(result["cores"]["speedup"][count]) if count != "1" else "1")
        for count, times in result["cores"]["seconds"].items()
    ]
    passes, tiles = result["passes"], result["tiles"]
    timed = [(count, _seconds(times)) for count, times in passes["seconds"].items()]
    cut = [
        (
            count,
            tiles["pixels_sent_over_frame"][count],
            _seconds(times),
            _ratio(tiles["over_whole"][count]) if count in tiles["over_whole"] else "1",
        )
        for count, times in tiles["seconds"].items()
    ]
    return f"""## Scaling

One pass of {result["engine"]}, each size in a process of its own:

{_table(("MP", "seconds", "ms/MP", "peak GiB"), rows)}

{_table(("grows as megapixels to the power", "exponent ± standard error", "r²"), fits)}

![scaling](plots/scaling.svg)

Cores, {result["cores"]["frame_mp"]} MP:

{_table(("cores", "seconds", "speed-up"), cores)}

Passes, request of {passes["frame_mp"]:g} MP: {passes["fit"]["once_s"]:.3g} s once and
{passes["fit"]["each_s"]:.3g} s a pass (r² {passes["fit"]["r2"]:.4f}).

{_table(("passes", "seconds"), timed)}

Tiles, request of {tiles["frame_mp"]:g} MP, one pass; tiles overlap by 448 pixels:

{_table(("tiles", "pixels sent / frame", "seconds", "over whole"), cut)}
"""


def print_comparison(old: Path, new: Path | None = None) -> int:
    """Each series of two results whose ranges do not touch: a change that no round of either run would have hidden."""
    before = _read(old)
    path = new or RESULTS / f"{before['script']}_{slug()}.json"
    after = _read(path)
    if before["script"] != after["script"] or before["quick"] != after["quick"]:
        raise ValueError(f"{old} and {path} are not results of the same script and sizes")
    if before["machine"]["processor"] != after["machine"]["processor"]:
        print("The machines differ.")
    was, is_now = dict(_series(before["measured"])), dict(_series(after["measured"]))
    changes = []
    for name in was.keys() & is_now.keys():
        a, b = was[name], is_now[name]
        change = b["median"] / a["median"]
        if (b["least"] > a["most"] or b["most"] < a["least"]) and max(change, 1 / change) > LARGE_CHANGE:
            changes.append((name, a["median"], b["median"], f"× {change:.2f}"))
    compared = len(was.keys() & is_now.keys())
    print(f"{compared} series compared, {len(changes)} changed beyond the range of their rounds")
    print(_table(("series", "before", "now", "change"), sorted(changes)))
    for name in sorted(was.keys() ^ is_now.keys()):
        print(f"only in {'the old' if name in was else 'the new'}: {name}")
    return 0


def _series(tree: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every summary in a result, by its path."""
    if isinstance(tree, dict):
        if {"median", "least", "most"} <= tree.keys():
            yield name, tree
        else:
            for key, branch in tree.items():
                yield from _series(branch, f"{name} / {key}" if name else key)


def _head(found: dict[str, Any]) -> str:
    first, rows = found["engine"], []
    machine = first["machine"]
    for result in found.values():
        load = result["load_average"]
        cells = (f"{result['took_s']:.0f}", f"{load['before']:.1f} → {load['after']:.1f}", result["date"])
        rows.append((f"`{result['command']}`", *cells))
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    return f"""# What it costs

Generated by `python benchmarks/report.py` from `benchmarks/results/*.json`; `make bench` measures again, in about 10
minutes. Everything is verified before it is timed. Peers take turns in every round, and ratios are taken round by
round, so that drift of the machine cancels: `1.03 (1.01 to 1.08)` is the median, the least and the most of the rounds.
A peak is the most memory that a process held. `python benchmarks/report.py --compare OLD.json` says what changed beyond the rounds' range.

{machine["processor"]}, {machine["cores"]} cores, {", ".join(machine["instructions"])}, {machine["memory_gib"]:g} GiB;
{machine["system"]}; {versions}.

{_table(("command", "took, s", "load average", "date"), rows)}

The load average before a script counts what ran just before it, other scripts included; figures of a busy machine are
slower than its own, their ratios less so. Cards are not in these tables: `make gpu-check` writes `results/<card>.json`.
"""


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there; `make bench` writes it") from error
    if "measured" not in result:
        raise ValueError(f"{path} is not a result of these benchmarks")
    return result


def _table(title: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [title, ("---",) * len(title), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _ratio(series: dict[str, Any]) -> str:
    return f"{series['median']:.3g} ({series['least']:.3g} to {series['most']:.3g})"


def _seconds(series: dict[str, Any]) -> str:
    return f"{series['median']:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _samples(load: dict[str, Any]) -> int:
    return next(iter(load["callers"].values()))["latency_s"]["samples"]


if __name__ == "__main__":
    sys.exit(main())
