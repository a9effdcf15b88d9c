"""What `make demo` shows: one dark RAW file, denoised by the server, held against the truth."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from exposure.sensor import pack

from . import output, rawfile
from .recipe import Recipe
from .sample import make_sample
from .triton import Client

PASSES = 3
T = TypeVar("T")


def run(client: Client, folder: Path) -> None:
    """Make a sample in `folder`, denoise it, write the pictures, print PSNR, SSIM and the time of each stage."""
    seconds: dict[str, float] = {}
    sample = make_sample(folder)
    file = _timed(seconds, "read the RAW file", lambda: rawfile.read(sample.dark))
    recipe = Recipe(ratio=sample.ratio, passes=PASSES)
    choice = recipe.choose(file)

    def request() -> NDArray[np.uint16]:
        return client.denoise(file.mosaic, file.sensor, ratio=sample.ratio, gain=choice.gain, passes=PASSES)

    request()  # the engine compiles itself for a new frame size
    before = client.stage_seconds()
    result = _timed(seconds, f"request, {PASSES} passes", request)
    for stage, spent in client.stage_seconds().items():
        seconds[f"  of which {stage}"] = spent - before[stage]
    dng, pair = folder / "sample_exposed.dng", folder / "before_after.png"
    _timed(seconds, "write the DNG", lambda: output.write(dng, file, recipe.finish(file, result, choice)))
    _timed(seconds, "develop and write the picture", lambda: output.write_preview(pair, file, result, sample.ratio))

    clean = pack(rawfile.read(sample.clean).mosaic, file.sensor)
    noisy = quality(pack(file.mosaic, file.sensor, sample.ratio), clean)
    denoised = quality(pack(result, file.sensor), clean)
    height, width = file.mosaic.shape
    print(f"{sample.dark}: {width}x{height}, {choice}")
    print("              PSNR     SSIM   (RAW space, against the noiseless long exposure)")
    print(f"  brightened  {noisy[0]:5.2f} dB {noisy[1]:.3f}")
    print(f"  denoised    {denoised[0]:5.2f} dB {denoised[1]:.3f}")
    for what, spent in seconds.items():
        print(f"  {what:30} {1000 * spent:8.1f} ms")
    print(f"RAW file:       {dng}\nbefore | after: {pair}")


def quality(image: NDArray[np.float32], clean: NDArray[np.float32]) -> tuple[float, float]:
    """PSNR in dB and SSIM of packed images, [4, h, w] in [0, 1]."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    psnr = float(peak_signal_noise_ratio(clean, image, data_range=1.0))
    return psnr, float(structural_similarity(clean, image, data_range=1.0, channel_axis=0))


def _timed(seconds: dict[str, float], what: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    seconds[what] = time.perf_counter() - started
    return result
