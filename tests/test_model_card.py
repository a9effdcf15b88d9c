"""The tables of quality in checkpoints/README.md and README.md are those of the committed scores."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

from exposure.files import sha256
from exposure.training.cases import simulated
from exposure.training.evaluate import Row, Score, biases, definition, evaluate, means

RESULTS = PROJECT / "training" / "results"
FILES = {"default": "unet", "half": "unet_half", "small": "unet_small"}
GROUPS = ("x100", "x250", "x300")
INPUTS = {
    "noisy input": "noisy input",
    "brightened input": "noisy input",
    "non-local means after variance stabilisation": "non-local means",
    "the same of what the networks see (`clipped`)": "non-local means, clipped",
    "the same of the networks' own input, which is clipped at black": "non-local means, clipped",
}
PASSES = {"one pass": 1, "two passes": 2, "three passes, the default": 3}


def results(name: str) -> list[dict[str, Any]]:
    found = json.loads((RESULTS / f"held_out_{name}.json").read_text())
    return found if isinstance(found, list) else [found]


def scores_of(name: str) -> list[dict[str, Any]]:
    """Those at ISO 3200."""
    return next(found["scores"] for found in results(name) if float(found["iso"]) == 3200)


def rows_of(page: Path, columns: int) -> dict[str, list[str]]:
    """First cell and the others, of all rows of so many columns."""
    lines = (line.strip("|\n").split("|") for line in page.open() if line.startswith("|"))
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines if len(cells) == columns + 1}


def figures(scores: list[dict[str, Any]], group: str, method: str, passes: int) -> tuple[float, float]:
    """Mean blind PSNR and SSIM."""
    known = means([Score(**score) for score in scores], group)
    return next((blind, ssim) for name, number, (blind, _, ssim, _) in known if (name, number) == (method, passes))


@pytest.mark.parametrize("name", ["default", "half", "small", "served", "others", "iso", "low"])
def test_scores_are_of_the_shipped_networks(name: str) -> None:
    shipped = PROJECT / "checkpoints" / f"{FILES.get(name, 'unet')}.safetensors"
    for found in results(name):
        assert found["checkpoint_sha256"] == sha256(shipped)
        assert not found["left_out"]


def test_scores_are_made_once_more() -> None:
    """One picture that everybody has: how scenes, noise, the classical denoiser and scores are made did not change."""
    skimage = pytest.importorskip("skimage")
    picture = Path(skimage.__file__).parent / "data" / "astronaut.png"
    (case,) = simulated([picture], camera="SonyA7S2", iso=3200, ratios=[100], noise="P+g", shrink=1)
    rows = [Row("definition", definition(PROJECT / "checkpoints" / "unet.safetensors"), [1])]
    scores = {(score.method, score.passes): score for score in evaluate([case], rows)}
    known = [Score(**score) for score in scores_of("others")]
    known = [score for score in known if (score.case, score.group) == ("astronaut.png", "x100")]
    for then in (score for score in known if (score.method, score.passes) in scores):
        now = scores.pop((then.method, then.passes))
        assert (now.blind, now.oracle) == pytest.approx((then.blind, then.oracle), abs=1e-3)  # dB
        assert now.ssim == pytest.approx(then.ssim, abs=1e-5)
    assert not scores


def test_the_card_says_what_was_scored() -> None:
    rows = rows_of(PROJECT / "checkpoints" / "README.md", 3)
    seen = 0
    for row, cells in rows.items():
        network, _, told = row.partition(", ")
        method, passes = INPUTS.get(row), 0
        if network in FILES and told[:1].isdigit():
            method, passes = "independent draws" if "as published" in told else "definition", int(told[0])
        if method is None:
            continue
        scores = scores_of(network if network in FILES else "default")
        for group, cell in zip(GROUPS, cells, strict=True):
            blind, ssim = figures(scores, group, method, passes)
            assert cell == f"{blind:.2f} / {ssim:.3f}", row
        seen += 1
    assert seen == 11


def test_the_card_says_what_was_scored_elsewhere() -> None:
    """In other light, at small ratios, on pictures that decided nothing."""
    card = PROJECT / "checkpoints" / "README.md"
    by_iso = {
        (found["iso"], score["group"]): found["scores"]
        for name in ("iso", "low")
        for found in results(name)
        for score in found["scores"]
    }
    more_light = [(by_iso[f"{iso}.0", "x100"], "x100") for iso in (100, 200, 400, 800)]
    more_light.append((scores_of("default"), "x100"))
    small = [(by_iso[f"{iso}.0", group], group) for iso in (400, 3200) for group in ("x2", "x5", "x10")]
    others = [(scores_of("others"), group) for group in GROUPS]
    known = {
        ("one pass", 5): (more_light, "definition", 1),
        ("three passes", 5): (more_light, "definition", 3),
        ("three, photons drawn as published", 5): (more_light, "independent draws", 3),
        ("non-local means", 5): (more_light, "non-local means", 0),
        ("their noisy input", 6): (small, "noisy input", 0),
        ("their non-local means", 6): (small, "non-local means", 0),
        ("one pass, small ratio", 6): (small, "definition", 1),
        ("two passes, small ratio", 6): (small, "definition", 2),
        ("three passes, small ratio", 6): (small, "definition", 3),
        ("their noisy input", 3): (others, "noisy input", 0),
        ("their non-local means", 3): (others, "non-local means", 0),
        ("the same of the networks' input", 3): (others, "non-local means, clipped", 0),
        ("one pass of the default", 3): (others, "definition", 1),
        ("two passes of the default", 3): (others, "definition", 2),
        ("three passes of the default", 3): (others, "definition", 3),
    }
    for (row, columns), (cells, method, passes) in known.items():
        told = rows_of(card, columns)[row]
        found = [figures(scores, group, method, passes) for scores, group in cells]
        assert told == [f"{blind:.2f} / {ssim:.3f}" for blind, ssim in found], row


def test_the_card_says_how_far_shadows_are_off() -> None:
    methods = {
        "noisy input": ("noisy input", 0),
        "non-local means": ("non-local means", 0),
        "three passes": ("definition", 3),
    }
    scores = [Score(**score) for score in scores_of("default")]
    rows = rows_of(PROJECT / "checkpoints" / "README.md", 5)
    judged = [row for row in rows if ", ×" in row and row.partition(", ×")[0] in methods]
    assert len(judged) == 6
    for row in judged:
        method, _, ratio = row.partition(", ×")
        off = biases(scores, f"x{ratio}", *methods[method])
        assert rows[row] == [f"{100 * band:+.0f} %" for band in off if band is not None], row
    lifted = [f"{100 * (biases(scores, group, 'definition', 3)[0] or 0):.0f}" for group in ("x100", "x300")]
    assert f"come out {' to '.join(lifted)} % too bright" in (PROJECT / "README.md").read_text()


def test_the_readme_says_what_was_scored() -> None:
    rows = rows_of(PROJECT / "README.md", 3)
    default, served = scores_of("default"), scores_of("served")
    for row, cells in rows.items():
        if row not in INPUTS and row not in PASSES:
            continue
        method, passes = INPUTS.get(row, "definition"), PASSES.get(row, 0)
        for group, cell in zip(GROUPS, cells, strict=True):
            blind, _ = figures(default, group, method, passes)
            assert cell == f"{blind:.1f}", row
            if passes:  # "Served, the same to 0.001 dB"
                assert abs(figures(served, group, "served", passes)[0] - blind) < 0.001
    assert len(rows.keys() & (INPUTS.keys() | PASSES.keys())) == 6


def test_the_card_says_what_was_probed() -> None:
    probed = json.loads((RESULTS / "probes.json").read_text())
    assert probed["checkpoint"] == sha256(PROJECT / "checkpoints" / "unet.safetensors")
    card = PROJECT / "checkpoints" / "README.md"
    rows, hot = rows_of(card, 3), probed["hot_pixels"]
    for charge in ("10", "100", "1000", "10000"):
        told = [hot[ratio][charge] for ratio in ("x10", "x100", "x300")]
        assert rows[f"{charge} DN"] == [f"{dn['in_dn']} → {dn['left_dn']} → {dn['corrected_left_dn']}" for dn in told]
    text = " ".join(card.read_text().split())
    fields = [f"{probed['uniform_fields_dn'][level]['poisson']:.0f}" for level in ("312", "78", "0")]
    assert "312 DN come out as {}, 78 as {}, and 0 as {}".format(*fields) in text
    deviations = [f"{told[noise]:.0f}" for told in probed["between_seeds_dn"].values() for noise in told]
    sentence = (
        "is {} DN, and {} with published draws, at ISO 400 and ×100, {} and {} at ISO 3200, and {} and {} there at"
    )
    assert sentence.format(*deviations) in text
    three, one = (probed["block_means"][passes] for passes in ("passes_3", "passes_1"))
    most = [max(-kept["10"], kept["90"]) for kept in (three, one)]
    assert "keep their mean to {} % after three passes, and to {} % after one".format(*most) in text
    darkest = [f"{-kept['1']:.0f}" for kept in (three, one)]
    assert "is at least {} % too dark ({} % after one pass)".format(*darkest) in text


def test_the_card_says_what_correction_finds() -> None:
    """Shares of hot pixels, by charge and ratio, and what is taken for one."""
    hot = json.loads((RESULTS / "probes.json").read_text())["hot_pixels"]
    x10, x100, x300 = (hot[ratio] for ratio in ("x10", "x100", "x300"))
    text = " ".join((PROJECT / "checkpoints" / "README.md").read_text().split())
    assert min(x100["1000"]["found"], x300["1000"]["found"]) > 0.9965
    shares = [100 * told["found"] for told in (x10["1000"], x10["100"], x100["100"], x300["100"])]
    assert "of 1000 DN, {:.0f} % are found there, and 99.7 % and more in the darker".format(*shares) in text
    assert "of 100 DN {:.0f}, {:.0f} and {:.0f} %".format(*shares[1:]) in text
    sound = x10["0"], x100["0"], x300["0"]
    taken = [1e6 * told["others"] for told in sound]
    assert "{:.0f} of a million sound pixels are taken for defects at ×10, {:.0f} at ×100".format(*taken) in text
    assert taken[2] == 0
    assert "which costs {:.3f}, {:.3f} and {:.3f} dB".format(*(told["corrected_lost_db"] for told in sound)) in text
