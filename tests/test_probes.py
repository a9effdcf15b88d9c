"""What the probes say of loops whose answers are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CFAS
from numpy.typing import NDArray
from PIL import Image

from exposure import Sensor
from exposure.assets import CHECKPOINT
from exposure.client.dng import write_dng
from exposure.client.rawfile import RawFile
from exposure.files import sha256
from exposure.training import probes
from exposure.training.shots import SATURATION


def unchanged(image: NDArray[Any], **_: Any) -> NDArray[Any]:
    return image


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SIDE", 64)
    monkeypatch.setattr(probes, "DEFECTIVE", 1e-2)


def clean(level: float) -> NDArray[Any]:
    return np.full((4, 64, 64), level, np.float32)


@pytest.mark.usefixtures("small")
def test_a_loop_that_does_nothing_leaves_every_defect() -> None:
    found = probes.hot_pixels(unchanged, [clean(0.05), clean(0.1)])
    assert set(found) == {"x10", "x100", "x300"}
    for by_charge in found.values():
        assert by_charge["0"] == dict.fromkeys(by_charge["0"], 0)
        answers = [by_charge[charge] for charge in ("10", "100", "1000", "10000")]
        assert all(answer["left_dn"] == answer["in_dn"] > 0 for answer in answers)
        assert all(answer["lost_db"] > 0 for answer in answers)
        assert by_charge["10"]["corrected_left_dn"] == by_charge["10"]["in_dn"]  # of no more charge than noise
        for strong in answers[2:]:
            assert strong["found"] > 0.8  # the others have another beside them
            assert abs(strong["corrected_left_dn"]) < 0.2 * strong["in_dn"]
    assert found["x10"]["100"]["in_dn"] == pytest.approx(1000, abs=10)  # no white clips it; black clips noise


@pytest.mark.usefixtures("small")
def test_a_loop_that_knows_the_truth_leaves_none() -> None:
    found = probes.hot_pixels(lambda *_, **__: clean(0.05), [clean(0.05)])
    assert {answer["left_dn"] for by_charge in found.values() for answer in by_charge.values()} == {0}
    assert {answer["corrected_lost_db"] for by_charge in found.values() for answer in by_charge.values()} == {0}
    assert {answer["lost_db"] for by_charge in found.values() for answer in by_charge.values()} == {0}


@pytest.mark.usefixtures("small")
def test_seeds_and_fields_of_known_answers() -> None:
    def lifted(image: NDArray[Any], *, seed: int, noise: str, **_: Any) -> NDArray[Any]:
        scale = {"poisson": 0.001, "independent": 0.002}[noise]
        return image * 0 + 0.25 + scale * np.random.default_rng(seed).standard_normal(image.shape).astype(np.float32)

    fields = probes.uniform_fields(lifted)
    assert set(fields) == {"0", "78", "312"}
    assert fields["312"]["poisson"] == pytest.approx(0.25 * SATURATION, abs=1)
    deviations = probes.between_seeds(lifted, clean(0.1))
    for told in deviations.values():
        assert told["poisson"] == pytest.approx(0.001 * SATURATION * 0.95, rel=0.05)  # c4 of six: 0.952
        assert told["independent"] == pytest.approx(2 * told["poisson"], abs=0.2)


def dark_file(path: Path) -> Path:
    sensor = Sensor((128, 128, 128, 128), 4095, CFAS["RGGB"])
    mosaic = np.random.default_rng(0).normal(328, 15, (256, 256)).astype(np.uint16)
    mosaic[:64, :64] = 4000  # blocks that clip
    write_dng(path, RawFile(path, mosaic, sensor), mosaic, (1e-3, 1e-6))
    return path


def test_a_loop_that_darkens_is_found_out(tmp_path: Path) -> None:
    darkened = lambda image, *, passes, **_: image * np.float32(1 - passes / 10)  # noqa: E731
    found = probes.block_means(darkened, dark_file(tmp_path / "dark.dng"))
    assert found["blocks"] == 4 * (64 - 4)
    for passes in (1, 2, 3):
        assert set(found[f"passes_{passes}"].values()) == {-10.0 * passes}


@pytest.mark.usefixtures("small")
def test_all_is_asked_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "loop_of", lambda _: unchanged)
    pixels = np.random.default_rng(0).integers(0, 256, (170, 150, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    assert probes.scene(tmp_path / "one.png").shape == (4, 42, 37)  # what there is of it
    listing, raw, out = tmp_path / "list.txt", dark_file(tmp_path / "dark.dng"), tmp_path / "probes.json"
    listing.write_text("one.png\n")
    probes.main([*("--photos", str(tmp_path)), *("--only", str(listing)), *("--raw", str(raw)), *("--out", str(out))])
    answers = json.loads(out.read_text())
    assert answers["checkpoint"] == sha256(CHECKPOINT)
    assert all(answers[name] for name in ("uniform_fields_dn", "hot_pixels", "between_seeds_dn", "block_means"))


def test_a_real_file_keeps_its_light(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped network: after one pass nine of ten blocks are within 3 % of their mean, and 49 of 50 within 10 %."""
    monkeypatch.setattr(probes, "PASSES", 1)
    told = probes.block_means(probes.loop_of(CHECKPOINT), data / "raw" / "blackmagic_dark_GBRG_12bit.dng")["passes_1"]
    assert -3 < told["10"] < told["90"] < 3
    assert -10 < told["1"] < told["99"] < 10
