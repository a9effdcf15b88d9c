"""The sections of benchmarks/README.md, one for each script's JSON."""

from typing import Any

from tables import percent, ratio, seconds, table

from exposure.kernels.unet import KEPT_PIXELS
from exposure.quality import SAME_BITS_DB
from exposure.tiles import MARGIN

BEST_RAW_DENOISER_MS_PER_MP = 24  # LightCraft's own figure: 24 MP in 0.582 s, one pass, RTX 4090 Laptop


def kernels(found: dict[str, Any]) -> str:
    result, cores = found["kernels"]["measured"], found["kernels"]["machine"]["cores"]
    rows = []
    for kernel, peers in result["geometry"].items():
        for name, peer in peers.items():
            faster = ratio(peer["kernel_is_faster"]) if "kernel_is_faster" in peer else ""
            rows.append((kernel, name, peer["megapixels_per_s"], percent(peer["share_of_bandwidth"]), faster))
    drawn = []
    for rate, peers in result["draws"].items():
        speeds = [peers[name]["million_draws_per_s"] for name in ("kernel", "NumPy", "torch")]
        drawn.append((rate, *speeds, *(ratio(peers[name]["kernel_is_faster"]) for name in ("NumPy", "torch"))))
    return f"""## Kernels

A mosaic of {result["frame_mp"]:g} MP, equal to the definition bit for bit before it is timed. Bandwidth is what must
move, of what the triad reached in the same run. The kernels use all {cores} cores; NumPy and torch's Poisson draws
use one, whatever the machine has.

{table(("kernel", "by", "MP/s", "of bandwidth", "kernel is faster, times"), rows)}

Poisson counts, million a second:

{table(("mean, electrons", "kernel", "NumPy", "torch", "kernel over NumPy", "kernel over torch"), drawn)}
"""


def engine(found: dict[str, Any]) -> str:
    result = found["engine"]["measured"]
    ceilings, base = result["ceilings"], result["baseline"]
    agreements = {name: peer["agreement_db"] for name, peer in result["peers"].items() if "agreement_db" in peer}
    parts = [frame_table(name, frame, agreements, base) for name, frame in result["frames"].items()]
    absent = [f"{name}: {peer['left_out']}" for name, peer in result["peers"].items() if "left_out" in peer]
    tables, missing = "\n\n".join(parts), "".join(f"- {line}\n" for line in absent)
    return f"""## Engine

One pass of the network, each peer in a process of its own, verified against FP32 torch on simulated low light first.
Torch's peers take turns, then the others, each time with {base} among them, to which they are compared; glibc is told
to keep memory that torch frees, without which eager torch spends long on new pages ([end to end](#end-to-end)).
Ceilings of this machine, the best of {ceilings["looks"]} looks between the rounds: {ceilings["gflops"]:g} GFLOP/s
(FP32, product of matrices{_bf16(ceilings)}) and {ceilings["gbytes_per_s"]:g} GB/s (triad). The roofline takes every
plane as moved once and a multiply-add as two operations of FP32; a Winograd convolution does fewer and may pass it, and
so may BF16 and INT8 (inner levels only; why it is not offered: `export/README.md`). Of a peer on a card, the peak is
the card's memory that tensors held.

{tables}

![roofline](plots/roofline.svg)
{_layers(result)}
Not measured here:

{missing}"""


def frame_table(name: str, frame: dict[str, Any], agreements: dict[str, float], base: str) -> str:
    """One frame size, every peer that was timed, or why one was not."""
    rows: list[tuple[Any, ...]] = []
    for peer, timed in frame["peers"].items():
        if "left_out" in timed:
            rows.append((peer, timed["left_out"], "", "", "", "", ""))
            continue
        agreed = "same bits" if agreements[peer] >= SAME_BITS_DB else f"{agreements[peer]} dB"
        over = ratio(timed["speed_over_baseline"]) if "speed_over_baseline" in timed else ""
        share = percent(timed["share_of_roofline"]) if "share_of_roofline" in timed else ""
        if "share_of_bf16" in timed:
            share += f" ({percent(timed['share_of_bf16'])} of BF16's)"
        cells = (seconds(timed["seconds"]), f"{timed['passes_per_s']:.3g}", share)
        rows.append((peer, *cells, "" if timed["peak_gib"] is None else timed["peak_gib"], over, agreed))
    title = ("network by", "seconds", "passes/s", "of roofline", "peak GiB", f"faster than {base}", "agrees")
    return (
        f"**{name}**, planes {frame['planes'][0]}×{frame['planes'][1]}: {frame['gflop']:g} GFLOP, "
        f"at least {frame['roofline_s']:.3g} s\n\n{table(title, rows)}"
    )


def _bf16(ceilings: dict[str, Any]) -> str:
    return f"; {ceilings['bf16_gflops']:g} in BF16" if "bf16_gflops" in ceilings else ""


def _layers(result: dict[str, Any]) -> str:
    """Where one pass of our kernels goes."""
    found = result["layers"]
    if not found:
        return ""
    rows = [(kind, f"{1e3 * s:.4g}", f"{100 * found['share'][kind]:.1f} %") for kind, s in found["seconds"].items()]
    height, width = found["planes"]
    return f"""
One pass by our kernels, planes {height}×{width} ({found["sum_s"]:.3g} s in all; activations, pooling, the last 1x1
convolution and blend are part of the convolutions that they follow, and nothing is concatenated):

{table(("layers", "ms", "share"), rows)}

Folding the photon planes into the first convolution's weights would save a third of that one, 0.6 % of a pass's
arithmetic, and make weights an input; padding sides to multiples of 16 costs {_padding(height, width)} at most here.
Neither is changed.
"""


def _padding(height: int, width: int) -> str:
    return f"{100 * (1 - (height - 15) * (width - 15) / (height * width)):.1f} %"


def server(found: dict[str, Any]) -> str:
    result = found["server"]["measured"]
    waterfall, request, load = result["waterfall"], result["request"], result["load"]
    layers = [
        (name, seconds(times), f"{1e3 * times['least']:.0f} to {1e3 * times['most']:.0f}")
        for name, times in waterfall["seconds"].items()
    ]
    added = [
        (passes, f"{1e3 * t['median']:.0f} ({1e3 * t['least']:.0f} to {1e3 * t['most']:.0f})")
        for passes, t in waterfall["added_to_passes_s"].items()
    ]
    stages = [(name, f"{1e3 * seconds:.0f}") for name, seconds in request["mean_stage_s"].items()]
    callers = []
    for count, level in load["callers"].items():
        share = percent(level["requests_per_s"] / level["engine_limit_per_s"])
        callers.append((count, level["requests_per_s"], share, *_waits(level)))
    full = load["full"]
    beyond = [(kind, full[kind]["requests_per_s"], *_waits(full[kind])) for kind in ("who wait", "who give up")]
    return f"""## Server

What each layer adds, {waterfall["frame_mp"]:g} MP, shared memory unless it says gRPC:

{table(("layer", "seconds", "ms, least to most"), layers)}

Beyond that many passes of the engine alone, in the same round:

{table(("passes", "ms added, median (least to most)"), added)}

![waterfall](plots/waterfall.svg)

The whole request, {request["frame_mp"]:g} MP, {request["passes"]} passes, {request["transport"]}: the engine's own
passes {seconds(request["seconds"]["engine"])} s, the request {seconds(request["seconds"]["request"])} s,
**request / engine {ratio(request["request_over_engine"])}**; peak memory of the server
{request["server_peak_gib"]:g} GiB. Where it goes:

{table(("part", "ms, mean"), stages)}

Load, {load["frame_mp"]:g} MP and {load["passes"]} pass a request; each caller asks again when it is answered. The
limit is the engine alone, one pass after the other, measured before and after each step (the machine
drifts in between). p99 of {_samples(load)} samples
is nearly their largest.

{table(("callers", "requests/s", "of the engine's limit", "p50, ms", "p95", "p99", "queued, ms", "refused"), callers)}

![latency against load](plots/load.svg)

A server holds so many pixels at once and refuses more (`exposure serve --in-flight`, 128 MP by default). The same load
from {full["callers"]} callers at a server that holds {full["megapixels_in_flight"]} MP, with our client's patience and
without:

{table(("callers", "requests/s", "p50, ms", "p95", "p99", "queued, ms", "refused"), beyond)}
"""


def _waits(level: dict[str, Any]) -> tuple[object, ...]:
    """What callers of the server wait for an answer, in ms; how many were refused one."""
    latencies = (f"{1e3 * level['latency_s'][q]:.0f}" for q in ("median", "p95", "p99"))
    return (*latencies, f"{1e3 * level['mean_queued_s']:.0f}", level["refused"])


def end_to_end(found: dict[str, Any]) -> str:
    result = found["end_to_end"]["measured"]
    single, batch = result["single"], result["batch"]
    rows = [
        (name, seconds(times), times["samples"], f"{single['ms_per_mp'][name]:.0f}")
        for name, times in single["seconds"].items()
    ]
    stages = [(name, f"{1e3 * seconds:.0f}") for name, seconds in single["stages_s"].items()]
    kept = ""
    if "kept_over_exposure" in single:
        kept = f"; with memory kept **{ratio(single['kept_over_exposure'])}**"
    gains = [(name, *(ratio(of) for of in over.values())) for name, over in batch["throughput_ratio"].items()]
    others = next(iter(batch["throughput_ratio"].values()))
    together = [
        (name, seconds(times), f"{batch['ms_per_mp'][name]:.0f}", f"{batch['files_per_hour'][name]:.0f}")
        for name, times in batch["seconds"].items()
    ]
    return f"""## End to end

A RAW file of {single["frame_mp"]:g} MP to a DNG, {result["passes"]} passes. `engine`: the network's passes alone;
`exposure`: the command, which reads in two processes at once, writes lossless JPEG with a thumbnail and reads the
result again; `published`: the procedure as published (NumPy packing, eager FP32 torch with glibc as it comes,
`torch.poisson`) between the same reader and writer; `published, memory kept`: the same in a process whose glibc keeps
what torch frees, as our server's does.

{table(("by", "seconds", "rounds", "ms/MP"), rows)}

- file → DNG / engine, in turn: **{ratio(single["file_over_engine"])}**
- published / exposure, in turn: **{ratio(single["published_over_exposure"])}**{kept}

LightCraft, the best RAW denoiser with published figures, says {BEST_RAW_DENOISER_MS_PER_MP} ms/MP: one pass of
another network on an RTX 4090 Laptop, other hardware than this, so not a comparison.

{table(("part of one file, one after the other", "ms, median"), stages)}

Many files, {batch["files"]} of {batch["frame_mp"]:g} MP: together in one command; with a command for each (Python's
start not counted); and read, asked for and written in turn through the Python interface, without what a command does
besides (hashes, a reader that may crash, the table of what is done).

{table(("", "seconds", "ms/MP", "files an hour"), together)}

{table(("throughput over", *others), gains)}

Files in one command are read and written while others are with the server. One instance of the engine has every core,
also those that reading and writing take. With an instance for each core (`exposure serve --instances`), a request has
one core.
"""


def scaling(found: dict[str, Any]) -> str:
    result = found["scaling"]["measured"]
    sizes, rows = result["megapixels"], []
    for name, size in sizes["sizes"].items():
        if "left_out" in size:
            rows.append((name, size["left_out"], "", ""))
        else:
            rows.append(
                (f"{size['frame_mp']:g}", seconds(size["seconds"]), f"{size['ms_per_mp']:.0f}", size["peak_gib"])
            )
    fits = [
        (what, f"{fit['exponent']} ± {fit['standard_error']}", fit["r2"]) for what, fit in sizes["exponents"].items()
    ]
    cores = [
        (
            count,
            seconds(times),
            ratio(result["cores"]["speedup"][count]) if count != "1" else "1",
            result["cores"]["peak_gib"][count],
        )
        for count, times in result["cores"]["seconds"].items()
    ]
    passes, tiles, largest = result["passes"], result["tiles"], result["largest"]
    timed = [(count, seconds(times), passes["server_peak_gib"][count]) for count, times in passes["seconds"].items()]
    cut = [
        (
            count,
            tiles["pixels_sent_over_frame"][count],
            seconds(times),
            ratio(tiles["over_whole"][count]) if count in tiles["over_whole"] else "1",
            tiles["server_peak_gib"][count],
        )
        for count, times in tiles["seconds"].items()
    ]
    return f"""## Scaling

One pass of {result["engine"]}, each size in a process of its own:

{table(("MP", "seconds", "ms/MP", "peak GiB"), rows)}

{table(("grows as megapixels to the power", "exponent ± standard error", "r²"), fits)}

Time is linear where the exponent is 1.
Memory is {sizes["memory"]["once_gib"]:.2g} GiB and {sizes["memory"]["gib_per_mp"]:.2g} GiB for each megapixel
(r² {sizes["memory"]["r2"]:.4f}), so its exponent is below 1. Our kernels keep the memory of frames up to
{4 * KEPT_PIXELS / 1e6:.0f} MP, or of a server's usual frame where that is larger, for the next pass; others ask for new
pages in each, which is why they take longer per megapixel.

![scaling](plots/scaling.svg)

Cores, {result["cores"]["frame_mp"]} MP:

{table(("cores", "seconds", "speed-up", "peak GiB"), cores)}

From here on by the server, with the engine for this processor. Passes, request of {passes["frame_mp"]:g} MP:
{passes["fit"]["once_s"]:.3g} s once and {passes["fit"]["each_s"]:.3g} s a pass (r² {passes["fit"]["r2"]:.4f}).

{table(("passes", "seconds", "server's peak GiB so far"), timed)}

Tiles, request of {tiles["frame_mp"]:g} MP, one pass; tiles overlap by {2 * MARGIN} pixels:

{table(("tiles", "pixels sent / frame", "seconds", "over whole", "server's peak GiB by then"), cut)}

The largest frame, {largest["frame_mp"]:g} MP in {largest["tiles"]} tiles, one pass: {largest["seconds"]:.3g} s; the
server then has held {largest["server_peak_gib"]:g} GiB at most.
"""


def _samples(load: dict[str, Any]) -> int:
    return next(iter(load["callers"].values()))["latency_s"]["samples"]
