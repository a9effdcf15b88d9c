"""From a RAW file to a DNG: where the time goes, one file and many, against the procedure as it was published.

python benchmarks/end_to_end.py [--rounds 3] [--megapixels 12] [--quick] [--out FILE.json]
"""

import contextlib
import functools
import io
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import published
from frames import FRAMES, GAIN, RATIO, SENSOR, dark_mosaic
from harness import Benchmark, interleaved, peak_gib, ratio, rounded, summary
from numpy.typing import NDArray
from peers import ENGINE_FOLDER, TUNED_MALLOC
from workers import environment

from exposure import load_checkpoint, pack, unroll
from exposure.assets import CHECKPOINT
from exposure.client import command, output, rawfile
from exposure.client.dng import write_dng
from exposure.client.rawfile import RawFile
from exposure.client.recipe import Recipe
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import Answer, Client
from exposure.defects import find_defects
from exposure.export.arithmetic import installed_engine
from exposure.export.gate import ALLOWANCES
from exposure.kernels.library import threads
from exposure.kernels.manifest import read_manifest
from exposure.networks import Network
from exposure.noise import noise_profile

PASSES = 3
BATCH = 12  # files, for the command starts processes that read, once
ANY_PORTS = ServerOptions(grpc_port=0, http_port=0, metrics_port=0)
_folders = itertools.count()


def main() -> None:
    """Verify, then time in turn: the engine's passes, our command, the published procedure."""
    benchmark = Benchmark("end_to_end", __doc__, rounds=3, megapixels=(12, 6, 3))
    network = load_checkpoint(CHECKPOINT)
    with (
        tempfile.TemporaryDirectory(prefix="exposure_benchmark_") as scratch,
        running_server(ANY_PORTS) as server,
        running_server(replace(ANY_PORTS, instances=threads())) as divided,
        Client(server.address) as client,
    ):
        folder = Path(scratch)
        verify(client, network)
        benchmark.say("verified")
        one = write_raw(folder / "night.dng", dark_mosaic(*FRAMES[1 if benchmark.quick else benchmark.megapixels]))
        single = single_file(client, server.address, network, one, folder, benchmark.rounds)
        benchmark.say("single file timed")
        mosaic = dark_mosaic(*((256, 256) if benchmark.quick else FRAMES[1]))
        many = [write_raw(folder / f"night_{number}.dng", mosaic + np.uint16(number)) for number in range(BATCH)]
        servers = {"together": server.address, "together, an instance for each core": divided.address}
        batch = batch_of_files(client, servers, many, folder, benchmark.rounds + 1)
        result = {"passes": PASSES, "single": single, "batch": batch}
        result["server_peak_gib"] = peak_gib(server.process.pid)
    benchmark.finish(result)


def single_file(
    client: Client, address: str, network: Network, path: Path, folder: Path, rounds: int
) -> dict[str, Any]:
    """Our command in turn with the engine's own passes, and, in fewer rounds, with the published procedure, which takes
    many times as long; then our stages one by one.
    """
    file = rawfile.read(path)
    engine_passes = _engine_passes(file.mosaic)
    ours = _command(address, [path], folder)
    # All warm: engines compile themselves for the size, torch makes its plans.
    beside_engine = interleaved({"engine": engine_passes, "exposure": ours}, 3 * rounds)
    works: dict[str, Callable[[], Any]] = {
        "exposure": ours,
        "published": lambda: published_file(network, path, folder / "published.dng"),
    }
    with elsewhere(TUNED_MALLOC) as run:
        works["published, memory kept"] = functools.partial(run, published_there, path, folder / "kept.dng")
        beside_published = interleaved(works, rounds)
    seconds = beside_published | beside_engine
    megapixels = file.mosaic.size / 1e6
    return {
        "frame_mp": rounded(megapixels),
        "seconds": {name: summary(taken) for name, taken in seconds.items()},
        "ms_per_mp": {name: rounded(1e3 * float(np.median(taken)) / megapixels) for name, taken in seconds.items()},
        "file_over_engine": ratio(beside_engine["exposure"], beside_engine["engine"]),
        "published_over_exposure": ratio(beside_published["published"], beside_published["exposure"]),
        "kept_over_exposure": ratio(beside_published["published, memory kept"], beside_published["exposure"]),
        "stages_s": stages(client, path, folder, rounds),
    }


def stages(client: Client, path: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """The same by hand, each part timed; medians."""
    taken = [_stages_once(client, path, folder) for _ in range(rounds)]
    return {name: rounded(float(np.median([once[name] for once in taken]))) for name in taken[0]}


def _stages_once(client: Client, path: Path, folder: Path) -> dict[str, float]:
    before = client.stage_seconds()
    started = time.perf_counter()
    file = rawfile.read(path)
    read = time.perf_counter()
    find_defects(file.mosaic, file.sensor, GAIN)
    searched = time.perf_counter()
    mosaic = client.denoise(file.mosaic, file.sensor, ratio=RATIO, gain=GAIN, passes=PASSES)
    answered = time.perf_counter()
    write_result(folder / "stages.dng", file, mosaic)
    ended = time.perf_counter()
    write_dng(folder / "encoded.dng", file, mosaic)
    encoded = time.perf_counter() - ended
    again = time.perf_counter()
    rawfile.read_once(folder / "encoded.dng", own=True)
    decoded = time.perf_counter() - again
    after = client.stage_seconds()
    models = {name: after[name] - before[name] for name in after}
    models["Triton, transport, client"] = answered - searched - sum(models.values())
    written = {"encode and write": encoded, "read again": decoded, "thumbnail": ended - answered - encoded - decoded}
    return {"read, twice": read - started, "find defective pixels": searched - read} | models | written


def batch_of_files(
    client: Client, servers: dict[str, str], paths: list[Path], folder: Path, rounds: int
) -> dict[str, Any]:
    """Many files in one command; with a command for each, in this process; and read, asked for and written in turn.

    The last does without what a command does besides: hashes, a reader that may crash, the table of what is done.
    """

    def in_turn() -> None:
        for path in paths:
            file = rawfile.read(path)
            mosaic = client.denoise(file.mosaic, file.sensor, ratio=RATIO, gain=GAIN, passes=PASSES)
            write_result(folder / "in_turn.dng", file, mosaic)

    alone = [_command(servers["together"], [path], folder) for path in paths]
    works: dict[str, Callable[[], object]] = {
        name: _command(address, paths, folder) for name, address in servers.items()
    }
    works |= {"a command for each file": lambda: [run() for run in alone], "in turn, by hand": in_turn}
    seconds = interleaved(works, rounds)
    megapixels = sum(rawfile.read(path).mosaic.size for path in paths) / 1e6
    return {
        "files": len(paths),
        "frame_mp": rounded(megapixels / len(paths)),
        "seconds": {name: summary(taken) for name, taken in seconds.items()},
        "ms_per_mp": {name: rounded(1e3 * float(np.median(t)) / megapixels) for name, t in seconds.items()},
        "files_per_hour": {name: rounded(3600 * len(paths) / float(np.median(t))) for name, t in seconds.items()},
        "throughput_ratio": {
            name: {other: ratio(seconds[other], seconds[name]) for other in works if other not in servers}
            for name in servers
        },
    }


def published_file(network: Network, source: Path, target: Path) -> None:
    """The published procedure between the same reader and writer."""
    file = rawfile.read(source)
    write_result(
        target, file, published.denoise(network, file.mosaic, file.sensor, ratio=RATIO, gain=GAIN, passes=PASSES)
    )


@contextlib.contextmanager
def elsewhere(variables: Mapping[str, str]) -> Iterator[Callable[..., Any]]:
    """Runs functions in a process of its own, which has these environment variables."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with environment(variables):
            pool.submit(os.getpid).result()  # now the process is there; those that others start have no such variables
        yield lambda *work: pool.submit(*work).result()


@functools.cache
def network_there() -> Network:
    """Of the process that asks, read once."""
    return load_checkpoint(CHECKPOINT)


def published_there(source: Path, target: Path) -> None:
    published_file(network_there(), source, target)


def verify(client: Client, network: Network) -> None:
    """One pass has no noise: both ways must give the same mosaic, but for the engine's precision."""
    mosaic = dark_mosaic(250, 382)
    ours = client.denoise(mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=1).astype(int)
    theirs = published.denoise(network, mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=1)
    precision = read_manifest(ENGINE_FOLDER).precision
    # both are rounded to whole DN
    share, allowed = (100, 2.0) if precision == "f32" else (99.9, 1 + ALLOWANCES[precision].most_dn)
    if np.percentile(np.abs(ours - theirs), share) > allowed:
        sys.exit("the server does not compute what the published procedure computes: nothing was timed")


def write_raw(path: Path, mosaic: NDArray[np.uint16]) -> Path:
    """A RAW file of this mosaic, that says how noisy it is."""
    profile = noise_profile(GAIN, 6, SENSOR.saturation)
    write_dng(path, RawFile(path, mosaic, SENSOR, make="exposure", model="benchmark", iso=3200), mosaic, profile)
    return path


def write_result(path: Path, file: RawFile, mosaic: NDArray[np.uint16]) -> None:
    """As the command writes it: lossless, with a thumbnail, read again and compared."""
    recipe = Recipe(ratio=RATIO, gain=GAIN, keep_defects=True)  # the published procedure does not look for them
    output.write(path, file, recipe.finish(file, Answer(mosaic, file.sensor), recipe.choose(file)))


def _command(address: str, paths: list[Path], folder: Path) -> Callable[[], None]:
    """`exposure denoise FILES`, into a new folder each time."""

    def run() -> None:
        out = folder / f"out_{next(_folders)}"
        flags = ["--ratio", str(RATIO), "--gain", str(GAIN), "--passes", str(PASSES), "--server", address]
        with contextlib.redirect_stdout(io.StringIO()):
            if command.main(["denoise", *map(str, paths), *flags, "--out", str(out)]):
                sys.exit("exposure denoise failed: nothing was timed")
        shutil.rmtree(out)

    return run


def _engine_passes(mosaic: NDArray[np.uint16]) -> Callable[[], None]:
    """The network's passes over this mosaic, in this process."""
    manifest, engine = read_manifest(ENGINE_FOLDER), installed_engine(ENGINE_FOLDER)
    image = pack(mosaic, SENSOR, RATIO, multiple=manifest.multiple)[None]
    step = unroll(RATIO, GAIN, SENSOR.saturation, 1, photon_unit=manifest.photon_unit)[0]
    photon_gain = np.array([step.photon_gain], np.float32)

    def run() -> None:
        for _ in range(PASSES):
            engine(image, photon_gain, image)

    return run


if __name__ == "__main__":
    main()
