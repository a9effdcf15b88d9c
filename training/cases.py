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
from exposure.noise import CALIBRATED_LEVELS, CAMERAS, choose_gain, expose_short
from exposure.noise_fit import fit_noise
from exposure.sensor import Sensor, pack, recorded, unpack

from .scenes import DAYLIGHT, is_of, listed, read_picture, unprocessed

SID_CROP, SID_MOST = 512, 300.0  # pixels of a plane, at the centre; ratio
ELD_LONG, ELD_SHORT = (1, 6, 11, 16), {100: (4, 9, 14), 200: (5, 10, 15)}  # image numbers, by nominal ratio
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
    deviation = CAMERAS[camera].read_noise(gain).scale  # for methods that assume Gaussian noise
    black = SIMULATED.black[0]  # the same at every cell position
    for seed, path in enumerate(pictures):
        clean = clean_planes(path, shrink)
        shape = (2 * clean.shape[1], 2 * clean.shape[2])
        truth = (unpack(clean, SIMULATED, shape).astype(np.float64) - black) / SIMULATED.saturation
        for ratio in ratios:
            dn = expose_short(
                truth, ratio=ratio, gain=gain, saturation=SIMULATED.saturation, read_noise=read_noise, seed=seed
            )
            yield Case(f"x{ratio:g}", path.name, recorded(dn, SIMULATED), SIMULATED, ratio, gain, clean, deviation)


def refuse(error: ValueError) -> None:
    """What is done about files that cannot be judged, unless the caller prefers to go on without them."""
    raise error


def paired(
    folder: Path, listing: Path | None, *, gain: float | None = None, unusable: Callable[[ValueError], None] = refuse
) -> Iterator[Case]:
    """The SID protocol: pairs of a list file ("short long"), centre 512x512 of the planes.

    The list gives paths from `folder`, or of files whose names are found in its short/ and long/. Without a list, every
    file of short/ with the file of long/ whose name starts with the same five digits. The ratio is that of the exposure
    times in the names, at most 300, as published. gain: of files that do not tell theirs. unusable: told of each pair
    that is left out.
    """
    _refuse_absent(folder)
    for short, long in _listed_pairs(folder, listing) if listing else _by_scene(folder, unusable):
        yield from _usable(functools.partial(_sid_case, short, long, gain), unusable)


def eld(folder: Path, *, gain: float | None = None, unusable: Callable[[ValueError], None] = refuse) -> Iterator[Case]:
    """The ELD protocol: scene-*/IMG_00NN.*, three short exposures of x100 and x200, each with the nearest long one.

    Whole frames; the ratio is that of ISO and exposure time, x100 and x200 are names of groups. gain, unusable: as of
    `paired`.
    """
    _refuse_absent(folder)
    scenes = [path for path in folder.glob("**/scene-*") if re.fullmatch(r"scene-\d+", path.name) and path.is_dir()]
    for scene in sorted(scenes, key=lambda path: (path.parent, int(path.name.split("-")[-1]))):
        for nominal, numbers in ELD_SHORT.items():
            for number in numbers:
                yield from _usable(functools.partial(_eld_case, f"x{nominal}", scene, number, gain), unusable)


def _refuse_absent(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")


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
        case = _case(f"x{ratio:.3g}", short, long, ratio, _gain(short, gain))
        mask = case.clean < CLIPPED
        if not mask.any():
            raise ValueError(f"{long.path}: all of the longest exposure is clipped, so it tells nothing of the truth")
        yield replace(case, mask=mask)


def _usable(make: Callable[[], Case], unusable: Callable[[ValueError], None]) -> Iterator[Case]:
    """One case, or none and word of it."""
    try:
        case = make()
    except ValueError as error:
        unusable(error)
    else:
        yield case


def _sid_case(short: Path, long: Path, gain: float | None) -> Case:
    ratio = min(_seconds(long) / _seconds(short), SID_MOST)
    case = _published_case(f"x{ratio:g}", _read(short), _read(long), ratio, gain)
    h, w = case.clean.shape[1:]
    if min(h, w) <= SID_CROP:
        return case
    return replace(case, crop=((h - SID_CROP) // 2, (w - SID_CROP) // 2, SID_CROP, SID_CROP))


def _eld_case(group: str, scene: Path, number: int, gain: float | None) -> Case:
    raws = [path for path in scene.iterdir() if is_of(path, RAW_SUFFIXES)]  # JPEGs may lie beside them
    numbered = {int(path.stem[-4:]): path for path in raws if path.stem[-4:].isdigit()}
    pair = number, min(ELD_LONG, key=lambda long: abs(long - number))
    if missing := [wanted for wanted in pair if wanted not in numbered]:
        raise ValueError(f"{scene}: it has no image {missing[0]}, and {pair[0]} is judged against {pair[1]}")
    shots = [_read(numbered[wanted]) for wanted in pair]
    for shot in shots:
        if not shot.iso * shot.exposure_s > 0:
            raise ValueError(f"{shot.path}: it does not tell its ISO and exposure time, of which the ratio is made")
    light = [shot.iso * shot.exposure_s for shot in shots]
    # camera, scene and file: other scenes have files of the same name
    case = _published_case(group, shots[0], shots[1], light[1] / light[0], gain)
    return replace(case, name="/".join(shots[0].path.parts[-3:]))


def _read(path: Path) -> rawfile.RawFile:
    try:
        return rawfile.read(path)
    except rawfile.RawFileError as error:  # which does not name it
        raise ValueError(f"{path}: {error}") from error


def _published_case(
    group: str, short: rawfile.RawFile, long: rawfile.RawFile, ratio: float, gain: float | None
) -> Case:
    """A case with the signal of published figures, which ends at the highest number of 14 bits for every camera.

    White is only the unit of signal: electrons are K times fewer than DN whatever it is, so the loop stays exact.
    """
    known = _gain(short, gain)  # before, for the estimate looks for pixels that clip at the camera's own white
    return _case(group, _to_full_white(short), _to_full_white(long), ratio, known)


def _to_full_white(shot: rawfile.RawFile) -> rawfile.RawFile:
    low, high = CALIBRATED_LEVELS
    if shot.sensor.saturation < low or shot.sensor.white >= high:
        return shot
    return replace(shot, sensor=replace(shot.sensor, white=high - 1))


def _case(group: str, short: rawfile.RawFile, long: rawfile.RawFile, ratio: float, gain: float) -> Case:
    if short.mosaic.shape != long.mosaic.shape or short.sensor.cfa != long.sensor.cfa:
        raise ValueError(f"{short.path.name} and {long.path.name} are not of one sensor")
    if ratio < 1:
        raise ValueError(f"{short.path.name} is exposed longer than {long.path.name}, which is to be its truth")
    clean = pack(long.mosaic, long.sensor)
    return Case(group, short.path.name, short.mosaic, short.sensor, ratio, gain, clean)


def _gain(shot: rawfile.RawFile, given: float | None) -> float:
    """What the file tells; where it does not, the one given; and an estimate from its noise where none is given."""
    fit = functools.partial(fit_noise, shot.mosaic, shot.sensor) if given is None else None
    try:
        return choose_gain(shot.model, shot.iso, shot.noise_profile, shot.sensor.saturation, fit)[0]
    except ValueError:
        if given is None:
            raise
        return given


def _seconds(path: Path) -> float:
    found = SECONDS.search(path.stem)
    if not (found and float(found[1]) > 0):
        raise ValueError(f"{path}: the name must end in the exposure time, like 00001_00_0.1s")
    return float(found[1])


def _listed_pairs(folder: Path, listing: Path) -> Iterator[tuple[Path, Path]]:
    for line in listed(listing):
        words = line.split()
        if len(words) < 2:
            raise ValueError(f'{listing}: "{line}" is no pair; a line is two files, the short exposure first')
        yield _located(folder, "short", words[0]), _located(folder, "long", words[1])


def _located(folder: Path, side: str, word: str) -> Path:
    """A file of a list, which gives a path from `folder`, from a folder above it, or the name alone."""
    written = folder / word
    return written if written.is_file() else folder / side / written.name


def _by_scene(folder: Path, unusable: Callable[[ValueError], None]) -> Iterator[tuple[Path, Path]]:
    shorts, longs = (
        [path for path in sorted((folder / side).glob("*")) if is_of(path, RAW_SUFFIXES)] for side in ("short", "long")
    )
    truths = {path.name[:5]: path for path in longs}
    for short in shorts:
        if short.name[:5] in truths:
            yield short, truths[short.name[:5]]
        else:
            unusable(ValueError(f"{short}: no file of {folder / 'long'} starts with {short.name[:5]}"))


def clean_planes(path: Path, shrink: int) -> NDArray[np.float32]:
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
