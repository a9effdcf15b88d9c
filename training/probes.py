"""What PSNR on photographs does not ask of a network: uniform fields, defective pixels, other seeds, a real file.

python -m exposure.training.probes --photos PICTURES --raw FILE.dng [--checkpoint FILE] [--out FILE.json]

Simulated: Sony A7S2, P+g; figures in DN of a white that is 15583 above black.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exposure.assets import CHECKPOINT
from exposure.client import rawfile
from exposure.client.recipe import Recipe
from exposure.client.sample import SENSOR as SIMULATED
from exposure.defects import find_defects
from exposure.files import sha256, write_text
from exposure.noise import CAMERAS, expose_short
from exposure.quality import agreement_db
from exposure.sensor import pack, recorded

from .cases import clean_planes
from .command import HELD_OUT
from .scenes import listed
from .shots import SATURATION, brightened

Planes = NDArray[np.float32]
Loop = Callable[..., Planes]
"""`loop_of`: [4, h, w] brightened to [4, h, w] clean, as `exposure.denoise` takes its other arguments."""

CAMERA, ISO, PASSES = CAMERAS["SonyA7S2"], 3200.0, 3
SIDE = 256  # of the planes of a scene
FIELDS, FIELD_RATIO = (0.0, 78.0, 312.0), 300.0  # DN of the clean field
CHARGES = (0.0, 10.0, 100.0, 1000.0, 10000.0)  # DN of the dark file
DEFECT_RATIOS, DEFECTIVE = (10.0, 100.0, 300.0), 3e-4
DRAWS = ("poisson", "independent")  # of photons: as served, as published
SEEDS, SEEN_AT = 6, ((400.0, 100.0), (3200.0, 100.0), (3200.0, 300.0))  # ISO and ratio
REAL_RATIO, BLOCK, CLIPPED, LEAST = 8.0, 16, 0.98, 0.003  # pixels of a plane on a side; signal
PERCENTILES = (1, 10, 50, 90, 99)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask all, and write the answers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder that holds the pictures of --only")
    parser.add_argument("--only", type=Path, default=HELD_OUT, help="list of pictures (default: the held-out ones)")
    parser.add_argument("--raw", type=Path, required=True, help="a real dark RAW file, to be brightened 8 times")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, help="also written here")
    given = parser.parse_args(arguments)
    loop, scenes = loop_of(given.checkpoint), [scene(given.photos / name) for name in listed(given.only)]
    answers = {
        "checkpoint": sha256(given.checkpoint),
        "uniform_fields_dn": uniform_fields(loop),
        "hot_pixels": hot_pixels(loop, scenes),
        "between_seeds_dn": between_seeds(loop, scenes[0]),
        "block_means": block_means(loop, given.raw),
    }
    text = json.dumps(answers, indent=1)
    print(text)
    if given.out:
        write_text(given.out, text + "\n")


def loop_of(checkpoint: Path) -> Loop:
    """The loop of `exposure.denoise` with this network."""
    import torch

    from exposure.denoise import denoise
    from exposure.networks import load_checkpoint

    network = load_checkpoint(checkpoint)
    return lambda image, **physics: denoise(network, torch.from_numpy(image)[None], **physics)[0].numpy()


def scene(picture: Path) -> Planes:
    """The clean middle of a photograph, [4, h, w], shrunk to half first: sharp, and free of noise and blocks."""
    planes = clean_planes(picture, shrink=2)
    top, left = (max(side - SIDE, 0) // 2 for side in planes.shape[1:])
    return planes[:, top : top + SIDE, left : left + SIDE]


def shot(clean: Planes, ratio: float, iso: float = ISO) -> tuple[Planes, dict[str, Any]]:
    """What a network sees of it, and the arguments of the loop."""
    physics = physics_of(ratio, iso)
    return brightened(clean, ratio, physics["gain"], CAMERA.read_noise(physics["gain"]), 0), physics


def physics_of(ratio: float, iso: float = ISO) -> dict[str, Any]:
    """The arguments of the loop."""
    return {"ratio": ratio, "gain": CAMERA.gain(iso), "saturation": SATURATION, "passes": PASSES}


def uniform_fields(loop: Loop) -> dict[str, dict[str, float]]:
    """Means of what becomes of uniform fields, in DN: of two seeds, photons drawn as served and as published."""
    found: dict[str, dict[str, float]] = {}
    for level in FIELDS:
        image, physics = shot(np.full((4, SIDE, SIDE), level / SATURATION, np.float32), FIELD_RATIO)
        for noise in DRAWS:
            results = [loop(image, **physics, seed=seed, noise=noise) for seed in (0, 1)]
            found.setdefault(f"{level:g}", {})[noise] = round(float(np.mean(results)) * SATURATION, 2)
    return found


def hot_pixels(loop: Loop, scenes: Sequence[Planes]) -> dict[str, dict[str, dict[str, float]]]:
    """Pixels, 3 in 10000, with a charge of their own, by ratio and charge.

    in_dn: mean of what they add to the brightened file, which is clipped at white; left_dn: to the result, at their
    place; lost_db: PSNR of all pixels, mean of the scenes. The same of files that were corrected before, and the shares
    of these pixels, and of all others, that were called defective.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for ratio in DEFECT_RATIOS:
        files = [as_file(clean, ratio) for clean in scenes]
        sound = [loop(pack(file, SIMULATED, ratio), **physics_of(ratio)) for file in files]
        for charge in CHARGES:
            told = [_with_hot(loop, *scene, ratio, charge) for scene in zip(scenes, files, sound, strict=True)]
            means = {name: float(np.mean([one[name] for one in told])) for name in told[0]}
            found.setdefault(f"x{ratio:g}", {})[f"{charge:g}"] = {
                name: round(mean * SATURATION) if name.endswith("_dn") else round(mean, 7 if name == "others" else 3)
                for name, mean in means.items()
            }
    return found


def as_file(clean: Planes, ratio: float) -> NDArray[np.uint16]:
    """The mosaic that a camera writes of a scene exposed too short."""
    gain = CAMERA.gain(ISO)
    dn = expose_short(clean, ratio=ratio, gain=gain, saturation=SATURATION, read_noise=CAMERA.read_noise(gain))
    mosaic = np.empty((2 * dn.shape[1], 2 * dn.shape[2]))
    for plane, (row, column) in zip(dn, SIMULATED.planes, strict=True):
        mosaic[row::2, column::2] = plane
    return recorded(mosaic, SIMULATED)


def _with_hot(
    loop: Loop, clean: Planes, file: NDArray[np.uint16], sound: Planes, ratio: float, charge: float
) -> dict[str, float]:
    """What `hot_pixels` tells of one scene; signal, not DN. sound: the result without them."""
    hot = np.random.default_rng(7).random(file.shape) < DEFECTIVE
    planes = np.stack([hot[row::2, column::2] for row, column in SIMULATED.planes])
    heated = np.where(hot, np.minimum(file + charge, SIMULATED.white), file).astype(np.uint16)
    corrected = find_defects(heated, SIMULATED, CAMERA.gain(ISO)).corrected(heated)
    changed, before = corrected != heated, pack(file, SIMULATED, ratio)
    told = {"in_dn": float((pack(heated, SIMULATED, ratio) - before)[planes].mean())}
    for prefix, mosaic in (("", heated), ("corrected_", corrected)):
        after = loop(pack(mosaic, SIMULATED, ratio), **physics_of(ratio))
        told[f"{prefix}left_dn"] = float((after - sound)[planes].mean())
        told[f"{prefix}lost_db"] = agreement_db(sound, clean) - agreement_db(after, clean)
    return told | {"found": float(changed[hot].mean()), "others": float(changed[~hot].mean())}


def between_seeds(loop: Loop, clean: Planes) -> dict[str, dict[str, float]]:
    """How far results of other seeds differ: standard deviation in DN, photons drawn as served and as published."""
    found: dict[str, dict[str, float]] = {}
    for iso, ratio in SEEN_AT:
        image, physics = shot(clean, ratio, iso)
        for noise in DRAWS:
            results = [loop(image, **physics, seed=seed, noise=noise) for seed in range(SEEDS)]
            deviation = float(np.std(results, axis=0, ddof=1).mean()) * SATURATION
            found.setdefault(f"ISO {iso:g}, x{ratio:g}", {})[noise] = round(deviation, 1)
    return found


def block_means(loop: Loop, path: Path) -> dict[str, Any]:
    """Whether a real file's light is kept: means of blocks after 1, 2 and 3 passes, over those of the brightened file.

    Of blocks without a clipped pixel, and bright enough that clipping at black has not lifted them. Deviations in %, at
    some percentiles of all blocks.
    """
    file = rawfile.read(path)
    gain = Recipe(ratio=REAL_RATIO).choose(file).gain
    image = pack(file.mosaic, file.sensor, REAL_RATIO)
    before = _blocks(image)
    told = (_blocks((image < CLIPPED).astype(np.float32)) == 1) & (before > LEAST)
    found: dict[str, Any] = {"file": path.name, "ratio": REAL_RATIO, "blocks": int(told.sum())}
    for passes in range(1, PASSES + 1):
        result = loop(image, ratio=REAL_RATIO, gain=gain, saturation=file.sensor.saturation, passes=passes)
        off = 100 * (_blocks(result)[told] / before[told] - 1)
        found[f"passes_{passes}"] = {f"{p}": round(float(np.percentile(off, p)), 1) for p in PERCENTILES}
    return found


def _blocks(planes: Planes) -> Planes:
    """Means of [4, h, w] in blocks: [4, h // 16, w // 16]."""
    rows, columns = (side // BLOCK for side in planes.shape[1:])
    cut = planes[:, : rows * BLOCK, : columns * BLOCK]
    return cut.reshape(4, rows, BLOCK, columns, BLOCK).mean(axis=(2, 4))


if __name__ == "__main__":
    main()
