"""What `make demo` shows: one dark RAW file, denoised by the server, held against the truth."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exposure.quality import psnr, ssim
from exposure.sensor import pack

from . import output, rawfile
from .recipe import Recipe
from .sample import make_sample, refuse_others
from .stopwatch import Stopwatch
from .triton import Answer, Client

PASSES = 3


def run(client: Client, folder: Path) -> None:
    """Make a sample in `folder`, denoise it, write the pictures, print PSNR, SSIM and the time of each stage.

    Raises ValueError rather than replace files that are of no demo.
    """
    watch = Stopwatch()
    dng, pair = folder / "sample_exposed.dng", folder / "before_after.png"
    refuse_others(dng)
    if pair.exists() and not dng.exists():
        raise ValueError(f"{pair} exists, and {dng.name} of the same demo does not; give another --out")
    sample = make_sample(folder)
    with watch.timed("read the RAW file"):
        file = rawfile.read(sample.dark)
    recipe = Recipe(ratio=sample.ratio, passes=PASSES)
    choice = recipe.choose(file)

    def request() -> Answer:
        return client.answer(**recipe.request(file, choice))

    request()  # the engine compiles itself for a new frame size
    with watch.request(f"request, {PASSES} passes", client):
        answer = request()
    exposed = recipe.finish(file, answer, choice)
    with watch.timed("write the DNG"):
        output.write(dng, file, exposed)
    with watch.timed("develop and write the picture"):
        output.write_preview(pair, file, exposed, sample.ratio)

    clean = pack(rawfile.read(sample.clean).mosaic, file.sensor)
    noisy = quality(pack(file.mosaic, file.sensor, sample.ratio), clean)
    denoised = quality(pack(exposed.mosaic, exposed.sensor), clean)
    height, width = file.mosaic.shape
    print(f"{sample.dark}: {width}x{height}, {choice}")
    print("              PSNR     SSIM   (RAW space, against the noiseless long exposure)")
    print(f"  brightened  {noisy[0]:5.2f} dB {noisy[1]:.3f}")
    print(f"  denoised    {denoised[0]:5.2f} dB {denoised[1]:.3f}")
    for what, spent in watch.seconds.items():
        print(f"  {what:30} {1000 * spent:8.1f} ms")
    print(f"RAW file:       {dng}\nbefore | after: {pair}")


def quality(image: NDArray[np.float32], clean: NDArray[np.float32]) -> tuple[float, float]:
    """PSNR in dB and SSIM of packed images, [4, h, w] in [0, 1]."""
    return psnr(image, clean), ssim(image, clean)
