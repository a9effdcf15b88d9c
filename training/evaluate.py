"""What a checkpoint, an engine or a number of passes is worth: PSNR and SSIM in RAW space, blind and oracle."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exposure.files import write_text
from exposure.quality import SSIM_WINDOW, agreement_db, ssim
from exposure.sensor import pack

from .cases import Case, refuse
from .classical import non_local_means

if TYPE_CHECKING:
    from exposure.client.triton import Client
    from exposure.networks import Network

Denoiser = Callable[[Case, int], NDArray[np.float32]]
BANDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the truth's signal: each from one to the next
LEAST_PIXELS = 1000  # of a band; the mean of fewer tells nothing


@dataclass(frozen=True)
class Row:
    """What is judged beside the input and the classical denoiser. passes: the numbers of network evaluations."""

    name: str
    denoiser: Denoiser
    passes: Sequence[int]


@dataclass(frozen=True)
class Score:
    """One method on one case. blind: PSNR in dB as delivered; oracle: after a gain fitted to the truth.

    Where nothing differs, both are SAME_BITS_DB. bias: by how much of itself the mean is off in each of `BANDS`, None
    where a case has no such pixels.
    """

    group: str
    case: str
    method: str
    passes: int
    blind: float
    oracle: float
    ssim: float
    bias: tuple[float | None, ...] = ()


def definition(checkpoint: Path, noise: str = "poisson", *, aligned: bool = False) -> Denoiser:
    """The loop of `exposure.denoise`, in FP32, on a card too; noise: of its photons.

    aligned: every estimate is brought nearest to the truth before photons are drawn from it, as published evaluations
    do; deployed, nobody can.
    """
    import torch

    from exposure.denoise import denoise
    from exposure.networks import load_checkpoint

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # it has 10 bits of FP32's 23
    network = load_checkpoint(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def run(case: Case, passes: int) -> NDArray[np.float32]:
        image = torch.from_numpy(pack(case.mosaic, case.sensor, case.ratio))[None].to(device)
        physics: dict[str, Any] = {"ratio": case.ratio, "gain": case.gain, "saturation": case.sensor.saturation}
        loop = Aligned(network, case) if aligned else network
        result = denoise(loop, image, **physics, passes=passes, noise=noise)
        return result[0].cpu().numpy()

    return run


class Aligned:
    """A network that knows the truth of a case: it multiplies each estimate by `oracle_gain`, of what is judged."""

    def __init__(self, network: "Network", case: Case) -> None:
        self.photon_unit, self.multiple = network.photon_unit, network.multiple
        self._network, self._case = network, case

    def __call__(self, *inputs: Any) -> Any:
        estimate = self._network(*inputs).clip(0, 1)
        image, clean, mask = _judged(self._case, estimate[0].cpu().numpy())
        return (estimate * oracle_gain(image[mask], clean[mask])).clip(0, 1)


def served(client: "Client", checkpoint: str) -> Denoiser:
    """The engine of a running server: what is deployed.

    checkpoint: SHA-256 of the one that it is compared with. Raises ValueError where the server runs another: their
    difference would not be that of the deployment.
    """
    from exposure.client.recipe import finer

    told = client.checkpoint()
    if told != checkpoint:
        raise ValueError(f"the server runs checkpoint {told[:12]}..., and --checkpoint is {checkpoint[:12]}...")

    def run(case: Case, passes: int) -> NDArray[np.float32]:
        mosaic, sensor, gain = finer(case.mosaic, case.sensor, case.gain)  # as `exposure denoise` asks
        return pack(client.denoise(mosaic, sensor, ratio=case.ratio, gain=gain, passes=passes), sensor)

    return run


def diffused(checkpoint: Path) -> Denoiser:
    """The conditional diffusion baseline, sampled with DDIM in as many steps as passes are asked for."""
    import torch

    from .diffusion import load_diffusion, sample

    network = load_diffusion(checkpoint)

    def run(case: Case, passes: int) -> NDArray[np.float32]:
        return sample(network, torch.from_numpy(pack(case.mosaic, case.sensor, case.ratio))[None], passes)[0].numpy()

    return run


def evaluate(
    cases: Iterable[Case], rows: Sequence[Row], unusable: Callable[[ValueError], None] = refuse
) -> Iterator[Score]:
    """Score the brightened input, the classical denoiser (of the file, and of what networks see of it) and every given
    one, at each of its numbers of passes; a case that cannot be judged is told to `unusable`, whole.
    """
    for case in cases:
        try:
            yield from _scores(case, rows)
        except ValueError as error:
            unusable(error)


def _scores(case: Case, rows: Sequence[Row]) -> list[Score]:
    scores = [score(case, "noisy input", 0, pack(case.mosaic, case.sensor, case.ratio))]
    if case.read_noise:
        scores.append(score(case, "non-local means", 0, non_local_means(case)))
        scores.append(score(case, "non-local means, clipped", 0, non_local_means(case, clipped=True)))
    for row in rows:
        scores += [score(case, row.name, number, row.denoiser(case, number)) for number in row.passes]
    return scores


def score(case: Case, method: str, passes: int, image: NDArray[np.float32]) -> Score:
    """Judge one result [4, h, w] in [0, 1]. Raises ValueError for what has no finite score."""
    image, clean, mask = _judged(case, image)
    h, w = clean.shape[1:]
    if min(h, w) < SSIM_WINDOW:
        raise ValueError(f"{case.name}: its planes are {w}x{h} pixels here; SSIM needs {SSIM_WINDOW} a side")
    if not np.isfinite(image).all():
        raise ValueError(f"{case.name}: the result of {method} holds values that are not finite numbers")
    aligned = np.clip(image * oracle_gain(image[mask], clean[mask]), 0, 1)
    return Score(
        case.group,
        case.name,
        method,
        passes,
        blind=agreement_db(image[mask], clean[mask]),
        oracle=agreement_db(aligned[mask], clean[mask]),
        ssim=ssim(image, clean, None if case.mask is None else mask),
        bias=bias(image[mask], clean[mask]),
    )


def _judged(
    case: Case, image: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """What counts of a result, padded or not, and of the truth, [4, h, w]; and where that is known."""
    row, column, h, w = case.crop or (0, 0, *case.clean.shape[1:])
    part = (slice(None), slice(row, row + h), slice(column, column + w))
    clean = case.clean[part]
    return image[part], clean, np.ones(clean.shape, bool) if case.mask is None else case.mask[part]


def bias(image: NDArray[np.float32], clean: NDArray[np.float32]) -> tuple[float | None, ...]:
    """(mean of the image - mean of the truth) / mean of the truth, where the truth is in each of `BANDS`.

    PSNR counts what is bright; this tells whether shadows are lifted or crushed, and colours with them.
    """
    found: list[float | None] = []
    for dark, bright in itertools.pairwise(BANDS):
        inside = (clean >= dark) & (clean < bright)
        truth = float(np.mean(clean[inside], dtype=np.float64)) if inside.sum() >= LEAST_PIXELS else 0.0
        found.append(float(np.mean(image[inside], dtype=np.float64)) / truth - 1 if truth else None)
    return tuple(found)


def oracle_gain(image: NDArray[np.float32], clean: NDArray[np.float32]) -> float:
    """The factor that brings a result nearest to the truth, fitted where the truth is below white.

    Published tables align results so (the illuminance correction of ELD); deployed, nobody knows it.
    """
    below = clean < 1
    power = float(np.sum(image[below] ** 2, dtype=np.float64))
    return float(np.sum(image[below] * clean[below], dtype=np.float64)) / power if power else 1.0


def table(scores: Sequence[Score]) -> str:
    """Means by group and method: PSNR blind, PSNR oracle, SSIM, and the bias in each of `BANDS`."""
    bands = " ".join(f"{f'{100 * dark:g}-{100 * bright:g} %':>9}" for dark, bright in itertools.pairwise(BANDS))
    lines = [f"{'':30} {'cases':>5}  {'blind':>8} {'oracle':>8} {'SSIM':>6}  bias at {bands}"]
    for group in groups(scores):
        lines.append(group)
        for method, passes, (blind, oracle, similar, cases) in means(scores, group):
            figures = f"{cases:5.0f}  {blind:5.2f} dB {oracle:5.2f} dB {similar:6.3f}"
            off = " ".join(
                f"{'' if one is None else f'{100 * one:+.1f} %':>9}" for one in biases(scores, group, method, passes)
            )
            lines.append(f"  {label(method, passes):28} {figures}  {'':7} {off}".rstrip())
    return "\n".join(lines)


def groups(scores: Sequence[Score]) -> list[str]:
    """Their exposure ratios, x100, the least first."""
    return sorted({entry.group for entry in scores}, key=lambda group: float(group.removeprefix("x")))


def label(method: str, passes: int) -> str:
    """A method and its number of passes in words; 0 where it has none."""
    return f"{method}, {passes} pass{'es' if passes > 1 else ''}" if passes else method


def means(scores: Sequence[Score], group: str) -> list[tuple[str, int, tuple[float, float, float, int]]]:
    """Of each method and number of passes in a group: mean blind and oracle PSNR, SSIM, and the count."""
    rows = []
    entries = [entry for entry in scores if entry.group == group]
    for method, passes in dict.fromkeys((entry.method, entry.passes) for entry in entries):
        part = [entry for entry in entries if (entry.method, entry.passes) == (method, passes)]
        blind, oracle, similar = (
            float(np.mean([getattr(entry, name) for entry in part])) for name in ("blind", "oracle", "ssim")
        )
        rows.append((method, passes, (blind, oracle, similar, len(part))))
    return rows


def biases(scores: Sequence[Score], group: str, method: str, passes: int) -> list[float | None]:
    """The mean bias of a method in each band, over the cases that have one."""
    part = [entry.bias for entry in scores if (entry.group, entry.method, entry.passes) == (group, method, passes)]
    bands = [[one for one in band if one is not None] for band in itertools.zip_longest(*part)]
    return [float(np.mean(band)) if band else None for band in bands]


def write(scores: Sequence[Score], about: dict[str, object], path: Path) -> None:
    """All scores and what they were measured with, as JSON; replaces `path` in one step."""
    text = json.dumps({**about, "scores": [asdict(entry) for entry in scores]}, indent=1, allow_nan=False)
    write_text(path, text + "\n")
