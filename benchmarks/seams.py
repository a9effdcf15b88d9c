"""What a seam of tiles costs: a dark RAW file sent in tiles, against the whole frame, in DN of 14 bits.

python benchmarks/seams.py [--out FILE.json]    the file lies in raw/ of $EXPOSURE_DATA, or of ../shared
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Benchmark, rounded
from numpy.typing import NDArray

from exposure.assets import CHECKPOINT, MODEL_REPOSITORY
from exposure.client import rawfile
from exposure.client.recipe import Choice, Recipe
from exposure.client.server import ServerOptions, running_server
from exposure.client.triton import Client
from exposure.export.build_engine import build
from exposure.export.precision import WHITE_DN
from exposure.export.recipes import Settings
from exposure.kernels.manifest import read_manifest
from exposure.tiles import Tile, plan_tiles

DATA = Path(os.environ.get("EXPOSURE_DATA", Path(__file__).resolve().parents[2] / "shared"))
NAME = "blackmagic_dark_GBRG_12bit.dng"
RATIO, TILE_PIXELS, PASSES = 8.0, 700_000, (1, 2, 3)
NEAR = 16  # pixels on either side of a seam


def main() -> None:
    """Both engines of the shipped network: the installed one, and FP32."""
    benchmark = Benchmark("seams", __doc__, rounds=1)
    file = rawfile.read(DATA / "raw" / NAME)
    height, width = file.mosaic.shape
    choice, plan = Recipe(ratio=RATIO).choose(file), plan_tiles((height, width), TILE_PIXELS)
    installed = read_manifest(MODEL_REPOSITORY / "denoiser" / "1" / "openvino").precision
    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="exposure_benchmark_") as scratch:
        repositories = {installed: MODEL_REPOSITORY}
        if installed != "f32":
            repositories["f32"] = _in_fp32(Path(scratch))
        for precision, repository in repositories.items():
            engines[precision] = differences(repository, file, choice, plan)
            benchmark.say(f"{precision} compared")
    frame = {"file": NAME, "frame_mp": rounded(file.mosaic.size / 1e6), "ratio": RATIO, "tiles": len(plan)}
    benchmark.finish(frame | {"near_pixels": NEAR, "engines": engines})


def differences(repository: Path, file: rawfile.RawFile, choice: Choice, plan: Sequence[Tile]) -> dict[str, Any]:
    """For each number of passes: tiles less whole frame, near seams and elsewhere."""
    options = ServerOptions(repository, grpc_port=0, http_port=0, metrics_port=0)
    near, found = seams(file.mosaic.shape, plan), {}
    with (
        running_server(options) as server,
        Client(server.address) as whole,
        Client(server.address, tile_pixels=TILE_PIXELS) as tiled,
    ):
        for passes in PASSES:
            physics: dict[str, Any] = {"ratio": choice.ratio, "gain": choice.gain, "passes": passes}
            parts, frame = (client.denoise(file.mosaic, file.sensor, **physics) for client in (tiled, whole))
            change = (parts.astype(float) - frame) * (WHITE_DN / file.sensor.saturation)
            size = np.abs(change)
            found[str(passes)] = {
                "largest": rounded(size.max()),
                "mean_at_seams": rounded(size[near].mean()),
                "mean_elsewhere": rounded(size[~near].mean()),
                "above_1_dn_at_seams": rounded((size[near] > 1).mean()),
                "above_1_dn_elsewhere": rounded((size[~near] > 1).mean()),
                "step_at_seams": rounded(change[near].mean()),
            }
    return found


def seams(shape: tuple[int, ...], plan: Sequence[Tile]) -> NDArray[np.bool_]:
    """The pixels near an edge at which one tile's kept part follows another's."""
    near = np.zeros(shape, bool)
    for tile in plan:
        rows, columns = tile.kept_rows, tile.kept_columns
        for edge in {rows.start, rows.stop} - {0, shape[0]}:
            near[max(0, edge - NEAR) : edge + NEAR, columns] = True
        for edge in {columns.start, columns.stop} - {0, shape[1]}:
            near[rows, max(0, edge - NEAR) : edge + NEAR] = True
    return near


def _in_fp32(scratch: Path) -> Path:
    """A repository whose engine is FP32."""
    engines = shutil.ignore_patterns("openvino", "tensorrt*")
    repository = Path(shutil.copytree(MODEL_REPOSITORY, scratch / "model_repository", ignore=engines))
    build(CHECKPOINT, "openvino", repository, Settings(fp32=True, frames=((1920, 1080),)))
    return repository


if __name__ == "__main__":
    main()
