"""Evaluation: the metrics against their definitions, the protocols on small trees of the published layouts."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from exposure import denoise
from exposure.assets import CHECKPOINT
from exposure.client.command import main
from exposure.client.dng import write_dng
from exposure.client.rawfile import RawFile
from exposure.client.sample import SENSOR as SIMULATED
from exposure.client.triton import Client, ServerError
from exposure.files import sha256
from exposure.noise import CAMERAS, ReadNoise, expose_short
from exposure.quality import SAME_BITS_DB, psnr
from exposure.sensor import Sensor, pack, recorded, unpack
from exposure.training import cases, command, evaluate
from exposure.training.cases import Case
from exposure.training.classical import non_local_means, stabilised, unstabilised
from exposure.training.leaves import dead_leaves
from exposure.training.scenes import DAYLIGHT, unprocessed
from exposure.training.shots import SATURATION

GAIN = 3.0


def scene(side: int = 96) -> NDArray[Any]:
    """Packed, [4, side / 2, side / 2]."""
    return unprocessed(dead_leaves(side, 3), DAYLIGHT)


def mosaic_of(clean: NDArray[Any], ratio: float = 1.0, seed: int | None = None) -> NDArray[Any]:
    """What a sensor reads of a scene; noiseless without a seed."""
    shape = (2 * clean.shape[1], 2 * clean.shape[2])
    if seed is None:
        return unpack(clean / np.float32(ratio), SIMULATED, shape)
    signal = (unpack(clean, SIMULATED, shape) - 800.0) / SIMULATED.saturation
    noise = ReadNoise(6.0)
    dn = expose_short(signal, ratio=ratio, gain=GAIN, saturation=SIMULATED.saturation, read_noise=noise, seed=seed)
    return recorded(dn, SIMULATED)


def case(ratio: float = 50.0, **more: object) -> Case:
    clean = scene()
    noisy = mosaic_of(clean, ratio, seed=1)
    return Case("x50", "leaves", noisy, SIMULATED, ratio, GAIN, clean, read_noise=6.0, **more)  # type: ignore[arg-type]


def test_psnr_is_the_known_one() -> None:
    clean = scene()
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.05, clean.shape), 0, 1).astype(np.float32)
    assert psnr(noisy, clean) == pytest.approx(peak_signal_noise_ratio(clean, noisy, data_range=1.0), abs=1e-4)
    assert evaluate.score(case(), "", 1, clean).blind == SAME_BITS_DB


def test_oracle_forgives_a_wrong_gain_and_blind_does_not() -> None:
    entry = evaluate.score(case(), "dim", 1, 0.8 * scene())
    assert entry.oracle > 60
    assert entry.blind < 35


def test_what_is_masked_or_cropped_away_does_not_count() -> None:
    clean = scene()
    wrong = clean.copy()
    wrong[:, :10] = 0.5
    mask = np.ones(clean.shape, bool)
    mask[:, :10] = False
    assert evaluate.score(case(mask=mask), "", 1, wrong).blind == SAME_BITS_DB
    assert evaluate.score(case(crop=(10, 0, 20, 48)), "", 1, wrong).blind == SAME_BITS_DB
    assert evaluate.score(case(), "", 1, wrong).blind < 40


def test_ssim_is_the_published_one_where_everything_is_judged() -> None:
    """Its windows are cut at the border, which the published mean leaves out."""
    clean = scene()
    wrong = clean.copy()
    wrong[:, :3] = 0.5
    expected = structural_similarity(clean, wrong, data_range=1.0, channel_axis=0)
    assert evaluate.score(case(), "", 1, wrong).ssim == pytest.approx(expected)
    assert evaluate.score(case(mask=np.ones(clean.shape, bool)), "", 1, wrong).ssim < expected - 0.02


def test_scores_are_numbers_that_json_knows(tmp_path: Path) -> None:
    black = replace(case(), clean=np.zeros_like(scene()))
    entry = evaluate.score(black, "", 1, scene())
    assert entry.oracle == SAME_BITS_DB  # with a gain of 0
    evaluate.write([entry], {}, tmp_path / "scores.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        evaluate.write([replace(entry, blind=float("nan"))], {}, tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["oracle"] == SAME_BITS_DB
    with pytest.raises(ValueError, match="leaves: the result of served holds values that are not finite"):
        evaluate.score(case(), "served", 1, np.full_like(scene(), np.nan))
    with pytest.raises(ValueError, match="leaves: its planes are 48x6 pixels here; SSIM needs 7 a side"):
        evaluate.score(case(crop=(0, 0, 6, 48)), "", 1, scene())


@pytest.mark.parametrize(
    "flags", ["--ratios 100 nan", "--shrink 0", "--iso inf", "--passes 1 0", "--ratios -1", "--steps 0"]
)
def test_numbers_that_nothing_is_judged_with_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    Image.fromarray((255 * dead_leaves(64, 1)).astype(np.uint8)).save(tmp_path / "a.png")
    assert main(["evaluate", "photos", str(tmp_path), *flags.split()]) == 1
    flag, *values = flags.split()
    assert f"{flag} is {values[-1]}; it must be positive and finite" in capsys.readouterr().err


def test_stabilised_counts_have_unit_noise_and_come_back() -> None:
    generator, sigma = np.random.default_rng(0), 2.0
    for mean in (3.0, 20.0, 400.0):
        counts = generator.poisson(mean, 200_000) + generator.normal(0, sigma, 200_000)
        stable = stabilised(counts, sigma)
        assert stable.std() == pytest.approx(1.0, abs=0.06)  # the transform is asymptotic: worst at few photons
        assert float(unstabilised(stable.mean(), sigma)) == pytest.approx(mean, rel=0.02, abs=0.1)


def test_the_classical_denoiser_denoises() -> None:
    rows, columns = np.mgrid[0:64, 0:64] / 64
    clean = np.broadcast_to(0.3 * rows + 0.2 * (columns > 0.5), (4, 64, 64)).astype(np.float32)
    dark = Case("", "an edge", mosaic_of(clean, 100, seed=1), SIMULATED, 100.0, GAIN, clean, read_noise=6.0)
    noisy = psnr(pack(dark.mosaic, SIMULATED, dark.ratio), clean)
    assert psnr(non_local_means(dark), clean) > noisy + 9


def test_the_classical_denoiser_of_what_networks_see_knows_nothing_below_black() -> None:
    clean = np.full((4, 64, 64), 0.01, np.float32)
    dark = Case("", "a shadow", mosaic_of(clean, 300, seed=1), SIMULATED, 300.0, GAIN, clean, read_noise=6.0)
    assert non_local_means(dark).mean() == pytest.approx(0.01, rel=0.3)  # 0.2 electrons, in read noise of 2
    assert non_local_means(dark, clipped=True).mean() > 0.02  # half of the noise is gone, the darker one


def test_evaluation_scores_every_method_and_pass(tmp_path: Path) -> None:
    perfect = evaluate.Row("perfect", lambda dark, passes: dark.clean + np.float32(1e-4 * passes), [1, 3])
    scores = list(evaluate.evaluate([case()], [perfect]))
    assert [(entry.method, entry.passes) for entry in scores] == [
        ("noisy input", 0),
        ("non-local means", 0),
        ("non-local means, clipped", 0),
        ("perfect", 1),
        ("perfect", 3),
    ]
    assert scores[3].blind == pytest.approx(80, abs=0.1)
    text = evaluate.table(scores)
    assert "perfect, 3 passes" in text
    evaluate.write(scores, {"checkpoint": "x"}, tmp_path / "scores.json")
    assert len(json.loads((tmp_path / "scores.json").read_text())["scores"]) == 5


def test_every_estimate_of_the_published_evaluation_is_fitted_to_the_truth() -> None:
    """A network that is a third too dark: its second pass sees photons of the right number, and is itself put right."""
    seen: list[torch.Tensor] = []
    clean = np.random.default_rng(0).uniform(0.1, 0.6, (4, 20, 24)).astype(np.float32)

    class Dark:
        photon_unit, multiple = SATURATION, 32

        def __call__(self, x: torch.Tensor, _: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            padded = np.pad(clean, [(0, 0), (0, 12), (0, 8)])
            padded[:, 10:] *= 0.5  # which is not judged
            return torch.from_numpy(0.67 * padded)[None]

    network: Any = Dark()
    physics: dict[str, Any] = {"ratio": 100.0, "gain": 0.01, "saturation": SATURATION, "passes": 2, "noise": "mean"}
    image = torch.from_numpy(clean)[None]
    case = Case("x100", "one", np.zeros((40, 48), np.uint16), SIMULATED, 100, 0.01, clean, crop=(1, 2, 9, 20))
    np.testing.assert_allclose(
        denoise(evaluate.Aligned(network, case), image, **physics)[0, :, :10], clean[:, :10], rtol=1e-5
    )
    np.testing.assert_allclose(seen[1][0, :, :10, :24], clean[:, :10], rtol=1e-5)
    known = np.zeros(clean.shape, bool)
    known[:, 10:] = True  # the rest may come out above white
    bright = denoise(evaluate.Aligned(network, replace(case, crop=None, mask=known)), image, **physics)[0]
    np.testing.assert_allclose(bright[:, 10:], clean[:, 10:], rtol=1e-5)
    assert bright.max() == 1
    seen.clear()
    denoise(network, image, **physics)
    assert seen[1][0, :, :10, :24].mean() < 0.7 * clean.mean()


def test_the_table_tells_blind_oracle_and_ssim() -> None:
    one = evaluate.Score("x100", "a", "method", 1, blind=29.0, oracle=39.0, ssim=0.8)
    scores = [one, replace(one, case="b", blind=31.0, oracle=41.0, ssim=1.0), replace(one, group="x250")]
    (told,) = evaluate.means(scores, "x100")
    assert told[:2] == ("method", 1)
    assert told[2] == pytest.approx((30.0, 40.0, 0.9, 2))
    headings, _, values, *_ = evaluate.table(scores).splitlines()
    assert headings.split()[:4] == ["cases", "blind", "oracle", "SSIM"]
    assert values.split() == ["method,", "1", "pass", "2", "30.00", "dB", "40.00", "dB", "0.900"]


def rounded(shares: Sequence[float | None]) -> list[float | None]:
    return [None if share is None else round(share, 5) for share in shares]


def test_the_bias_tells_lifted_shadows() -> None:
    """Dark tenths doubled, bright ones a tenth too dark; what is rare is not judged."""
    clean = np.full((4, 40, 40), 0.005, np.float32)
    clean[:, 20:], clean[:, 39] = 0.5, 0.05
    image = np.where(clean < 0.1, 2 * clean, 0.9 * clean)
    assert rounded(evaluate.bias(image, clean)) == [1.0, None, None, None, -0.1]
    one = evaluate.Score("x100", "a", "method", 1, 29.0, 39.0, 0.8, bias=(0.1, None, None, None, -0.3))
    scores = [one, replace(one, bias=(0.3, 0.2, None, None, -0.1)), replace(one, group="x250")]
    assert rounded(evaluate.biases(scores, "x100", "method", 1)) == [0.2, 0.2, None, None, -0.2]
    headings, _, values, *_ = evaluate.table(scores).splitlines()
    assert [headings[at - 9 : at].split() for at in range(len(headings), len(headings) - 50, -10)][::-1] == [
        ["0.3-1", "%"],
        ["1-3", "%"],
        ["3-10", "%"],
        ["10-30", "%"],
        ["30-100", "%"],
    ]
    assert values.split()[-6:] == ["+20.0", "%", "+20.0", "%", "-20.0", "%"]
    assert len(values) == len(headings)


def save(path: Path, mosaic: NDArray[Any], seconds: float = 0.0, sensor: Sensor = SIMULATED, **tags: object) -> Path:
    """A DNG under any name, as LibRaw reads files by their content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = {"model": "ILCE-7SM2", "iso": 3200.0, **tags}
    file = RawFile(path=path, mosaic=mosaic, sensor=sensor, exposure_s=seconds, **tags)  # type: ignore[arg-type]
    write_dng(path, file, mosaic, None)
    return path


def test_low_light_is_simulated_on_clean_raw_files_too(tmp_path: Path) -> None:
    save(tmp_path / "clean.dng", mosaic_of(scene()))
    settings: dict[str, Any] = {"camera": "SonyA7S2", "iso": 3200, "ratios": [100], "noise": "P+g"}
    dark = next(cases.simulated([tmp_path / "clean.dng"], **settings, shrink=2))
    halved = scene().reshape(4, scene().shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(dark.clean, halved, atol=1e-4)  # half a DN of 15583
    assert psnr(pack(dark.mosaic, dark.sensor, 100), dark.clean) > 15


@pytest.fixture
def sid(tmp_path: Path) -> Path:
    """Two scenes at x100 and x250 as the data set lays them out."""
    for number, seconds in (("00001", 0.1), ("00002", 0.04)):
        save(tmp_path / f"short/{number}_00_{seconds}s.ARW", mosaic_of(scene(), 10 / seconds, seed=4))
        save(tmp_path / f"long/{number}_00_10s.ARW", mosaic_of(scene()))
    return tmp_path


def test_the_sid_protocol(sid: Path) -> None:
    found = list(cases.paired(sid, None))
    assert [dark.group for dark in found] == ["x100", "x250"]
    assert found[0].gain == pytest.approx(3.0, abs=0.01)
    np.testing.assert_allclose(found[0].clean, scene(), atol=1e-4)  # half a DN of 15583


@pytest.mark.parametrize(
    "line",
    [
        "./short/00002_00_0.04s.ARW ./long/00002_00_10s.ARW",
        "./Sony/short/00002_00_0.04s.ARW ./Sony/long/00002_00_10s.ARW ISO200 F8",
        "00002_00_0.04s.ARW 00002_00_10s.ARW 250",
    ],
)
def test_lists_of_sid_pairs_are_read_as_they_are_published(sid: Path, line: str) -> None:
    (sid / "list.txt").write_text(f"# short, long\r\n\r\n{line}\r\n", newline="")
    assert [dark.name for dark in cases.paired(sid, sid / "list.txt")] == ["00002_00_0.04s.ARW"]


def test_pairs_that_cannot_be_judged_are_told_of(sid: Path) -> None:
    (sid / "list.txt").write_text("00003_00_0.04s.ARW 00003_00_10s.ARW\n00001_00_0.1s.ARW 00001_00_10s.ARW\n")
    told: list[ValueError] = []
    assert [dark.name for dark in cases.paired(sid, sid / "list.txt", unusable=told.append)] == ["00001_00_0.1s.ARW"]
    assert [str(error) for error in told] == [
        f"{sid}/short/00003_00_0.04s.ARW: it cannot be opened (no such file or directory)"
    ]
    (sid / "list.txt").write_text("00001_00_0.1s.ARW\n")
    with pytest.raises(ValueError, match=r'"00001_00_0\.1s\.ARW" is no pair'):
        list(cases.paired(sid, sid / "list.txt"))
    save(sid / "short/00008_00_0.1s.ARW", mosaic_of(scene(), 100))
    list(cases.paired(sid, None, unusable=told.append))
    assert str(told.pop()) == f"{sid}/short/00008_00_0.1s.ARW: no file of {sid}/long starts with 00008"
    (sid / "short/00008_00_0.1s.ARW").unlink()
    save(sid / "short/00007_00.ARW", mosaic_of(scene(), 100))
    save(sid / "long/00007_00_10s.ARW", mosaic_of(scene()))
    (sid / "short/00001_00_0.1s.JPG").touch()
    list(cases.paired(sid, None, unusable=told.append))
    assert "00007_00.ARW: the name must end in the exposure time" in str(told[-1])
    assert len(told) == 2


def test_a_gain_is_used_where_files_do_not_tell_theirs(sid: Path) -> None:
    assert next(cases.paired(sid, None, gain=7.0)).gain == pytest.approx(3.0, abs=0.01)
    save(sid / "short/00001_00_0.1s.ARW", mosaic_of(scene(), 100, seed=4), model="X100")
    assert next(cases.paired(sid, None, gain=7.0)).gain == 7.0
    with pytest.raises(ValueError, match="give --gain"):
        next(cases.paired(sid, None))


def test_the_published_signal_ends_at_the_highest_number_of_14_bits(sid: Path) -> None:
    """The same electrons, in another unit: white of LibRaw's table may be lower."""
    canon = Sensor((2048,) * 4, 13584, SIMULATED.cfa)
    pair = ("short/00001_00_0.1s.ARW", "long/00001_00_10s.ARW")
    for name in pair:
        save(sid / name, unpack(scene() / np.float32(2), canon, (96, 96)), sensor=canon)
    dark = next(cases.paired(sid, None))
    assert dark.sensor == replace(canon, white=16383)
    np.testing.assert_allclose(dark.clean, scene() / 2 * (13584 - 2048) / (16383 - 2048), atol=1e-4)
    of_12_bits = Sensor((256,) * 4, 4095, SIMULATED.cfa)
    for name in pair:
        save(sid / name, unpack(scene(), of_12_bits, (96, 96)), sensor=of_12_bits)
    assert next(cases.paired(sid, None, gain=1.0)).sensor.white == 4095


def test_only_the_centre_of_a_large_frame_is_judged(sid: Path) -> None:
    large = np.full((1100, 1200), 2000, np.uint16)
    large[0, 0] = 2001  # all alike would be missing data
    save(sid / "short/00009_00_0.1s.ARW", large)
    save(sid / "long/00009_00_40s.ARW", large)
    dark = list(cases.paired(sid, None))[-1]
    assert dark.crop == (19, 44, 512, 512)
    assert dark.ratio == 300  # as published: no more


def test_the_eld_protocol(tmp_path: Path) -> None:
    for number in (1, 4, 5, 6, 9, 11):
        long = number in (1, 6, 11)
        path = tmp_path / f"SonyA7S2/scene-2/IMG_{number:04}.ARW"
        save(path, mosaic_of(scene(), 1 if long else 100), 1 if long else 1 / 48, iso=1600.0 if long else 800.0)
        path.with_suffix(".JPG").touch()
        path.with_name(f"._{path.name}").touch()  # as macOS leaves them on other file systems
    (tmp_path / "SonyA7S2/scene-1_old").mkdir()
    (tmp_path / "SonyA7S2/scene-3").touch()  # no folder
    told: list[ValueError] = []
    found = list(cases.eld(tmp_path, unusable=told.append))
    scene_2 = tmp_path / "SonyA7S2/scene-2"
    assert [str(error) for error in told] == [
        f"{scene_2}: it has no image {missing}, and {short} is judged against {long}"
        for missing, short, long in ((14, 14, 16), (10, 10, 11), (15, 15, 16))
    ]
    (scene_2 / "IMG_0006.ARW").rename(tmp_path / "IMG_0006.ARW")
    list(cases.eld(tmp_path, unusable=told.append))
    assert f"{scene_2}: it has no image 6, and 4 is judged against 6" in map(str, told)
    assert [(dark.group, dark.name) for dark in found] == [
        ("x100", "SonyA7S2/scene-2/IMG_0004.ARW"),
        ("x100", "SonyA7S2/scene-2/IMG_0009.ARW"),
        ("x200", "SonyA7S2/scene-2/IMG_0005.ARW"),
    ]
    assert found[0].ratio == pytest.approx(96, rel=1e-3)  # ISO and time; the group has its nominal name
    assert found[0].gain == pytest.approx(CAMERAS["SonyA7S2"].gain(800))


def test_eld_is_judged_whole_and_needs_its_exposures(tmp_path: Path) -> None:
    large = np.full((1100, 1200), 2000, np.uint16)
    large[0, 0] = 2001  # all alike would be missing data
    for number, seconds in ((4, 0.01), (6, 1.0), (9, 0.0), (11, 1.0)):
        save(tmp_path / f"scene-1/IMG_{number:04}.ARW", large, seconds)
    told: list[ValueError] = []
    found = list(cases.eld(tmp_path, unusable=told.append))
    assert [(dark.name[-20:], dark.crop, dark.mask) for dark in found] == [("scene-1/IMG_0004.ARW", None, None)]
    assert [str(error).partition(": ")[2] for error in told if "it has no image" not in str(error)] == [
        "it does not tell its ISO and exposure time, of which the ratio is made"
    ]


def test_a_bracketed_series_is_masked_where_its_truth_is_clipped(tmp_path: Path) -> None:
    bright = np.clip(3 * scene(), 0, 1)
    files = [save(tmp_path / "long.dng", mosaic_of(bright), 8.0)]
    files += [save(tmp_path / f"{ratio}.dng", mosaic_of(bright, ratio), 8.0 / ratio) for ratio in (4, 16)]
    found = list(cases.bracketed(files))
    assert [dark.group for dark in found] == ["x16", "x4"]
    assert found[0].mask is not None
    assert not found[0].mask[bright > 0.99].any()
    with pytest.raises(ValueError, match="two files or more"):
        list(cases.bracketed(files[:1]))
    white = np.full((96, 96), 16383, np.uint16)
    white[::7] = 16300
    with pytest.raises(ValueError, match=r"white\.dng: all of the longest exposure is clipped"):
        list(cases.bracketed([files[1], save(tmp_path / "white.dng", white, 8.0)]))
    (tmp_path / "empty.dng").touch()
    with pytest.raises(ValueError, match=r"empty\.dng: it is empty"):
        list(cases.bracketed([*files, tmp_path / "empty.dng"]))


def test_simulated_light_is_of_the_camera_asked_for(tmp_path: Path) -> None:
    Image.fromarray((255 * dead_leaves(200, 1)).astype(np.uint8)).save(tmp_path / "a.png")
    both = list(cases.simulated([tmp_path / "a.png"], camera="NikonD850", iso=1600, ratios=[100, 300], noise="P+g"))
    assert [dark.group for dark in both] == ["x100", "x300"]
    assert both[0].mosaic.shape == (100, 100)
    camera = CAMERAS["NikonD850"]
    assert both[0].gain == pytest.approx(camera.gain(1600))
    assert both[0].read_noise == pytest.approx(camera.read_noise(camera.gain(1600)).scale)
    for dark in both:
        expected = (unpack(dark.clean, SIMULATED, (100, 100)) - 800.0) / dark.ratio
        error = dark.mosaic - 800.0 - expected
        variance = dark.gain * expected + dark.read_noise**2 + 1 / 12  # photons, electronics, rounding
        # 10,000 squares: 1.4 % of a standard deviation, somewhat more with the tails of few photons
        assert np.mean(error**2 / variance) == pytest.approx(1, abs=0.1)


def test_the_list_that_is_shipped_names_pictures(tmp_path: Path) -> None:
    names = [line for line in command.HELD_OUT.read_text().splitlines() if not line.startswith("#")]
    for name in (*names, "another.jpg"):
        Image.fromarray((255 * dead_leaves(32, 1)).astype(np.uint8)).save(tmp_path / name)
    parser = argparse.ArgumentParser()
    command.add_evaluate(parser)
    options = parser.parse_args(["photos", str(tmp_path), "--only", str(command.HELD_OUT), "--ratios", "100"])
    assert [dark.name for dark in options.cases(options, None)] == sorted(names)


def test_pictures_that_are_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "names.txt").write_text("a.png\nb.png\n")
    assert main(["evaluate", "photos", str(tmp_path), "--only", str(tmp_path / "names.txt")]) == 1
    assert "names b.png, which is not in" in capsys.readouterr().err


def test_a_server_is_judged_against_its_own_checkpoint(client: Client, sid: Path) -> None:
    with pytest.raises(ValueError, match=r"the server runs checkpoint .*, and --checkpoint is 0123456789ab"):
        evaluate.served(client, "0123456789abcdef")
    judged = evaluate.served(client, sha256(CHECKPOINT))
    one = next(cases.paired(sid, None, gain=3.0))
    np.testing.assert_allclose(judged(one, 1), evaluate.definition(CHECKPOINT)(one, 1), atol=2 / 15583)  # of DN


def test_one_command_compares_all_methods(address: str, sid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine that is served, a network trained for one pass, and diffusion at each number of steps."""
    baselines = CHECKPOINT.parent / "baselines"
    flags = ["--server", address, "--passes", "1", "--steps", "1", "2"]
    flags += ["--one-pass", str(baselines / "one_pass.safetensors")]
    flags += ["--diffusion", str(baselines / "diffusion.safetensors"), "--out", str(sid / "all")]
    assert main(["evaluate", "sid", str(sid), *flags]) == 0
    told = capsys.readouterr().out
    for method in ("definition, 1 pass", "served, 1 pass", "trained for one pass, 1 pass", "diffusion, DDIM, 2 passes"):
        assert method in told
    scores = json.loads((sid / "all" / "scores.json").read_text())["scores"]
    blind = {(score["method"], score["passes"], score["case"]): score["blind"] for score in scores}
    for (method, passes, case_), value in blind.items():
        if method == "served":
            assert value == pytest.approx(blind["definition", passes, case_], abs=0.01)


def test_the_command_prints_a_table_and_writes_plots(sid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sid / "evidence"
    rows = ["--independent", "--as-published"]
    assert main(["evaluate", "sid", str(sid), "--passes", "1", "3", *rows, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "definition, 3 passes" in told
    assert "independent draws, 3 passes" in told
    assert "as published, 1 pass" in told
    assert "independent draws, 1 pass" not in told  # the same as the definition's
    assert {path.name for path in out.iterdir()} == {"scores.json", "passes.png", "ratio.png"}
    recorded = json.loads((out / "scores.json").read_text())
    assert len(recorded["checkpoint_sha256"]) == 64
    thrice = {score["method"]: score["blind"] for score in recorded["scores"] if score["passes"] == 3}
    assert thrice["definition"] != thrice["independent draws"]
    (sid / "short/00001_00_0.1s.ARW").write_bytes(b"no file of a camera")
    assert main(["evaluate", "sid", str(sid), "--passes", "1", "--out", str(out)]) == 1  # and the rest is judged
    printed = capsys.readouterr()
    assert "00001_00_0.1s.ARW: " in printed.err
    assert "it is left out" in printed.err
    assert "x250" in printed.out
    assert len(json.loads((out / "scores.json").read_text())["left_out"]) == 1
    assert main(["evaluate", "sid", str(sid), "--passes", "2", "--independent"]) == 1
    assert "--independent changes nothing below 3 passes" in capsys.readouterr().err
    assert main(["evaluate", "eld", str(sid)]) == 1
    assert "no case was found" in capsys.readouterr().err


def test_an_ended_evaluation_tells_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Case] = []

    def ends(_: Path, **__: object) -> evaluate.Denoiser:
        def run(case: Case, passes: int) -> NDArray[Any]:
            if len(judged) == passes:  # the second case
                raise ServerError("no server answers")
            judged.append(case)
            return case.clean

        return run

    monkeypatch.setattr(evaluate, "definition", ends)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    flags = ["--shrink", "1", "--ratios", "50", "100", "--passes", "1", "--out", str(tmp_path / "out")]
    assert main(["evaluate", "photos", str(tmp_path), *flags]) != 0
    recorded = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert recorded["ended_early"]
    assert {score["group"] for score in recorded["scores"]} == {"x50"}
