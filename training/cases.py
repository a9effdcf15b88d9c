"""What a checkpoint is judged on: short exposures with the truth beside them."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exposure.client import rawfile
from exposure.client.inputs import SUFFIXES as RAW_SUFFIXES
from exposure.client.sample import SENSOR as SIMULATED
from exposure.noise import CAMERAS, choose_gain, expose_short
from exposure.noise_fit import fit_noise
from exposure.sensor import Sensor, pack, unpack

from .scenes import DAYLIGHT, read_picture, unprocessed

SID_CROP = 512  # pixels of a plane, at the centre
ELD_LONG, ELD_SHORT = (1, 6, 11, 16), {100: (4, 9, 14), 200: (5, 10, 15)}  # image numbers of each scene
SECONDS = re.compile(r"_(\d+(?:\.\d+)?)s$")  # 00001_00_0.1s
CLIPPED = 0.98  # of white


@dataclass(frozen=True)
class Case:
    """One short exposure and its truth. group: the row of the table it counts for.

    mosaic: [H, W] DN; clean: [4, h, w] signal in [0, 1] of the exposure that is `ratio` times longer.
    crop: row, column, height, width of the planes that are judged, all where None.
    mask: [4, h, w], False where the truth is not known. read_noise: standard deviation in DN, 0 where unknown.
    """

    group: str
    name: str
    mosaic: NDArray[np.uint16]
    sensor: Sensor
    ratio: float
    gain: float
    clean: NDArray[np.float32]
    read_noise: float = 0.0
    crop: tuple[int, int, int, int] | None = None
    mask: NDArray[np.bool_] | None = None


def simulated(
    pictures: Sequence[Path], *, camera: str, iso: float, ratios: Sequence[float], noise: str, shrink: int = 2
) -> Iterator[Case]:
    """Low light simulated on photographs or clean RAW files, shrunk first: sharp, and free of noise and blocks.

    camera: a key of CAMERAS; noise: "P+g" or "P+G+r+u", in the middle of its measured spread. Seeded by the order.
    """
    gain = CAMERAS[camera].gain(iso)
    read_noise = replace(CAMERAS[camera].read_noise(gain, noise), step=0.0)  # the mosaic is rounded to DN here
    deviation = CAMERAS[camera].read_noise(gain).scale  # for who assumes Gaussian noise
    for seed, path in enumerate(pictures):
        clean = _clean(path, shrink)
        shape = (2 * clean.shape[1], 2 * clean.shape[2])
        truth = (unpack(clean, SIMULATED, shape).astype(np.float64) - 800) / SIMULATED.saturation
        for ratio in ratios:
            dn = expose_short(
                truth, ratio=ratio, gain=gain, saturation=SIMULATED.saturation, read_noise=read_noise, seed=seed
            )
            mosaic = np.clip(np.rint(dn + 800), 0, SIMULATED.white).astype(np.uint16)
            yield Case(f"x{ratio:g}", path.name, mosaic, SIMULATED, ratio, gain, clean, deviation)


def refuse(error: ValueError) -> None:
    """What is done about files that cannot be judged, unless the caller prefers to go on without them."""
    raise error


def paired(
    folder: Path, listing: Path | None, *, gain: float | None = None, unusable: Callable[[ValueError], None] = refuse
) -> Iterator[Case]:
    """The SID protocol: pairs of a list file ("short long", paths from `folder`), centre 512x512 of the planes.

    Without a list, every file of short/ with the file of long/ whose name starts with the same five digits. The ratio
    is that of the exposure times in the names, at most 300, as published. unusable: told of each pair that is left out.
    """
    for short, long in _listed(folder, listing) if listing else _by_scene(folder):
        seconds = [SECONDS.search(path.stem) for path in (short, long)]
        if not (seconds[0] and seconds[1]):
            raise ValueError(f"{short.name} and {long.name}: names must end in the exposure time, like 00001_00_0.1s")
        ratio = min(float(seconds[1][1]) / float(seconds[0][1]), 300.0)
        yield from _from_files(f"x{ratio:g}", short, long, ratio, gain, unusable)


def eld(folder: Path, *, gain: float | None = None, unusable: Callable[[ValueError], None] = refuse) -> Iterator[Case]:
    """The ELD protocol: scene-*/IMG_00NN.*, three short exposures of x100 and x200, each with the nearest long one.

    unusable: told of each pair that is left out.
    """
    for scene in sorted(folder.glob("**/scene-*"), key=lambda path: (path.parent, int(path.name.split("-")[-1]))):
        numbered = {int(path.stem[-4:]): path for path in scene.iterdir() if path.stem[-4:].isdigit()}
        for ratio, numbers in ELD_SHORT.items():
            for number in numbers:
                nearest = min(ELD_LONG, key=lambda long, number=number: abs(long - number))  # type: ignore[misc]
                if number in numbered and nearest in numbered:
                    pair = numbered[number], numbered[nearest]
                    yield from _from_files(f"x{ratio}", *pair, float(ratio), gain, unusable)


def bracketed(files: Sequence[Path], *, gain: float | None = None) -> Iterator[Case]:
    """One scene at several real exposures: the longest is the truth, except where it is clipped.

    ISO and f-number count where all files tell theirs.
    """
    shots = [_read(path) for path in files]
    if len(shots) < 2 or not all(shot.exposure_s > 0 for shot in shots):
        raise ValueError("a bracketed series needs two files or more, each with its exposure time")
    by_iso, by_aperture = (all(getattr(shot, name) > 0 for shot in shots) for name in ("iso", "aperture"))

    def exposure(shot: rawfile.RawFile) -> float:
        return shot.exposure_s * (shot.iso if by_iso else 1.0) / (shot.aperture**2 if by_aperture else 1.0)

    shots.sort(key=exposure)
    long = shots[-1]
    for short in shots[:-1]:
        ratio = exposure(long) / exposure(short)
        yield _case(f"x{ratio:.3g}", short, long, ratio, gain, crop=False)


def _from_files(
    group: str, short: Path, long: Path, ratio: float, gain: float | None, unusable: Callable[[ValueError], None]
) -> Iterator[Case]:
    try:
        case = _case(group, _read(short), _read(long), ratio, gain, crop=True)
    except ValueError as error:
        unusable(error)
    else:
        yield case


def _read(path: Path) -> rawfile.RawFile:
    try:
        return rawfile.read(path)
    except rawfile.RawFileError as error:  # which does not name it
        raise ValueError(f"{path}: {error}") from error


def _case(
    group: str, short: rawfile.RawFile, long: rawfile.RawFile, ratio: float, gain: float | None, *, crop: bool
) -> Case:
    if short.mosaic.shape != long.mosaic.shape or short.sensor.cfa != long.sensor.cfa:
        raise ValueError(f"{short.path.name} and {long.path.name} are not of one sensor")
    if gain is None:
        saturation, fit = short.sensor.saturation, functools.partial(fit_noise, short.mosaic, short.sensor)
        gain, _ = choose_gain(short.model, short.iso, short.noise_profile, saturation, fit)
    clean = pack(long.mosaic, long.sensor)
    _, h, w = clean.shape
    side = SID_CROP
    centre = ((h - side) // 2, (w - side) // 2, side, side) if crop and min(h, w) > side else None
    mask = None if crop else np.asarray(clean < CLIPPED)
    return Case(group, short.path.name, short.mosaic, short.sensor, ratio, gain, clean, crop=centre, mask=mask)


def _listed(folder: Path, listing: Path) -> Iterator[tuple[Path, Path]]:
    for number, line in enumerate(listing.read_text().splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2:
            raise ValueError(f"{listing}, line {number}: a pair is two paths, the short exposure first")
        pair = (folder / words[0], folder / words[1])
        if absent := [path for path in pair if not path.is_file()]:
            raise ValueError(f"{listing}, line {number}: {absent[0]} is not there")
        yield pair


def _by_scene(folder: Path) -> Iterator[tuple[Path, Path]]:
    longs = {path.name[:5]: path for path in sorted((folder / "long").glob("*"))}
    for short in sorted((folder / "short").glob("*")):
        if short.name[:5] in longs:
            yield short, longs[short.name[:5]]


def _clean(path: Path, shrink: int) -> NDArray[np.float32]:
    """The packed scene [4, h, w] in a file: a picture unprocessed, a RAW file as its sensor saw it."""
    if path.suffix.lower() in RAW_SUFFIXES:
        shot = _read(path)
        planes = pack(shot.mosaic, shot.sensor)
        h, w = (side // shrink for side in planes.shape[1:])
        means = planes[:, : h * shrink, : w * shrink].reshape(4, h, shrink, w, shrink).mean(axis=(2, 4))
        return np.ascontiguousarray(means)
    picture = read_picture(path).reduce(shrink)
    even = picture.crop((0, 0, picture.width // 2 * 2, picture.height // 2 * 2))
    return unprocessed(np.asarray(even, np.float32) / 255, DAYLIGHT)
