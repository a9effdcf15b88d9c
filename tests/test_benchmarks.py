"""What the benchmarks rest on: fair rounds, peers that compute the same, a page with nothing that was not measured."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exposure import __version__, denoise, load_checkpoint, pack, unpack
from exposure.assets import CHECKPOINT
from exposure.client.sample import SENSOR
from exposure.export.graph import agreement, onnx_from_network, onnx_runner

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import ceilings  # noqa: E402
import engine  # noqa: E402
import harness  # noqa: E402
import int8  # noqa: E402
import peers  # noqa: E402
import published  # noqa: E402
import report  # noqa: E402
import workers  # noqa: E402
from comparison import comparison  # noqa: E402
from frames import GAIN, RATIO, dark_mosaic  # noqa: E402

GMAC_AT_512 = 49.03  # counted by hand from the widths and 12 inputs


def test_peers_take_turns_and_follow_different_neighbours() -> None:
    for names, turns in (("ab", "ab ba"), ("abc", "abc bac cab"), ("abcd", "abcd badc cdab dcba")):
        calls: list[str] = []
        works = {name: lambda name=name: calls.append(name) for name in names}  # noqa: B023
        taken = harness.interleaved(works, len(turns.split()), warm_up=0)
        assert "".join(calls) == turns.replace(" ", "")
        assert all(len(seconds) == len(turns.split()) for seconds in taken.values())


def test_rounds_that_were_made_stay_when_time_is_up() -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    taken = harness.interleaved(works, 3, warm_up=0, until=0)
    assert "".join(calls) == "ab"  # the first is made in any case
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 1, "b": 1}


def test_a_drift_of_the_machine_cancels_in_ratios() -> None:
    drift = [1.0, 1.4, 0.7, 2.1]
    found = harness.ratio([3 * d for d in drift], [2 * d for d in drift])
    assert found["least"] == found["median"] == found["most"] == 1.5


def test_the_cost_of_a_pass_is_the_networks() -> None:
    cost = ceilings.cost_of_pass(load_checkpoint(CHECKPOINT), 512, 512)
    assert cost.flops / 2e9 == pytest.approx(GMAC_AT_512, rel=1e-3)


def test_the_published_procedure_computes_the_definition() -> None:
    network, mosaic = load_checkpoint(CHECKPOINT), dark_mosaic(100, 134)  # planes that need padding
    ours = denoise(
        network,
        torch.from_numpy(pack(mosaic, SENSOR, RATIO))[None],
        ratio=RATIO,
        gain=GAIN,
        saturation=SENSOR.saturation,
        noise="mean",
    )
    theirs = published.denoise(network, mosaic, SENSOR, ratio=RATIO, gain=GAIN, passes=3, draw=False)
    difference = np.abs(unpack(ours[0].numpy(), SENSOR, mosaic.shape).astype(int) - theirs)
    assert difference.max() <= 1  # DN: a rounding


def test_int8_inside_is_near_the_network_and_keeps_the_full_size_level(tmp_path: Path) -> None:
    network = load_checkpoint(CHECKPOINT.with_name("unet_small.safetensors"))
    onnx_from_network(network, tmp_path / "f32.onnx")
    graph = int8.quantised(network, tmp_path / "f32.onnx")
    convolutions = [node for node in onnx.load(graph).graph.node if node.op_type.startswith("Conv")]
    wide = [node.input[1].split(".")[-2] for node in convolutions if node.input[1].endswith(".weight")]
    assert sorted(wide) == sorted(int8.FULL_SIZE)
    assert len(convolutions) == 23
    assert agreement(network, onnx_runner(graph), 45, "INT8") < 80  # dB: INT8 indeed, or it were better


@pytest.mark.parametrize("late", [False, True])
def test_a_peer_that_dies_while_it_is_timed_costs_itself(tmp_path: Path, late: bool) -> None:
    """late: after its last pass, before it tells its memory."""
    graph = tmp_path / "f32.onnx"
    onnx_from_network(load_checkpoint(CHECKPOINT.with_name("unet_small.safetensors")), graph)
    dying, living = (workers.Worker(peers.OURS, graph) for _ in range(2))
    probe = ceilings.Probe()
    look, told = probe.run, dying.peak_gib

    def run() -> None:
        dying._process.kill()
        look()

    def peak_gib() -> float | None:
        dying._process.kill()
        return told()

    if late:
        dying.peak_gib = peak_gib  # type: ignore[method-assign]
    else:
        probe.run = run  # type: ignore[method-assign]
    try:
        measured = engine.measure({"dying": dying, "living": living}, probe, (64, 64), 3)
    finally:
        living.close()
    assert list(measured["unable"]) == ["dying"]
    assert list(measured["seconds"]) == list(measured["peaks"]) == ["living"]
    assert len(measured["seconds"]["living"]) == 3


def test_the_page_says_what_was_measured() -> None:
    machines = [path.stem.removeprefix("engine_") for path in harness.RESULTS.glob("engine_*.json")]
    found = [report.results(machine) for machine in machines]
    current = [results for results in found if results["engine"]["versions"]["exposure"] == __version__]
    assert (BENCHMARKS / "README.md").read_text() in [report.page(results) for results in current]


def test_the_readme_says_what_was_measured() -> None:
    """Its table of speed, cell by cell."""
    lines = (BENCHMARKS.parent / "README.md").read_text().splitlines()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]] for line in lines if len(cells := line.split("|")) == 5
    }
    for column, machine in enumerate(("epyc_2_cores", "xeon_2_cores")):
        found = {script: result["measured"] for script, result in report.results(machine).items()}
        request, single = found["server"]["request"], found["end_to_end"]["single"]
        said = {name: cells[column] for name, cells in rows.items()}
        for name, seconds in {
            "the engine's own three passes, in one process": request["seconds"]["engine"],
            "the whole request, through shared memory": request["seconds"]["request"],
            "RAW file to DNG by the command": single["seconds"]["exposure"],
            "RAW file to DNG by the published procedure, in PyTorch, FP32": single["seconds"]["published"],
        }.items():
            assert said[name] == f"{seconds['median']:.1f} s", name
        stages = [f"{request['mean_stage_s'][stage]:.2f} s" for stage in ("pack", "expose", "unpack")]
        assert said["of which pack, expose (twice), unpack; means"] == ", ".join(stages)
        assert said["peak memory of the server"] == f"{request['server_peak_gib']:.1f} GiB"
        for name, ratio, digits in (
            ("request / engine, in the same round", request["request_over_engine"], 2),
            ("command / engine, in the same round", single["file_over_engine"], 2),
            ("published procedure / command, in the same round", single["published_over_exposure"], 1),
            ("the same, of a process that keeps freed memory", single.get("kept_over_exposure"), 1),
        ):
            if ratio is None:  # an older version did not measure it
                assert said[name] == "–"
                continue
            median, least, most = (f"{ratio[which]:.{digits}f}" for which in ("median", "least", "most"))
            assert said[name] == f"{median} ({least} to {most})", name


def test_a_comparison_names_what_changed_beyond_its_rounds() -> None:
    series: dict[str, Any] = {"median": 2.0, "least": 1.9, "most": 2.2, "samples": 5}
    few = {**series, "samples": 2}
    old = {
        "script": "engine",
        "quick": False,
        "machine": {"processor": "one"},
        "load_average": {"before": 0.0},
        "measured": {"slower": series, "same": dict(series), "few": few},
    }
    new: dict[str, Any] = copy.deepcopy(old)
    assert "2 series compared, 0 changed" in comparison(old, new)
    new["measured"]["slower"] |= {"median": 3.0, "least": 2.8, "most": 3.3}
    new["measured"]["same"] |= {"median": 2.15, "least": 2.1, "most": 2.3}  # the ranges touch
    new["measured"]["few"] |= {"median": 9.0, "least": 8.0, "most": 9.5}
    told = comparison(old, new)
    assert "1 changed" in told
    assert "| slower | 2.0 | 3.0 | × 1.50 |" in told
    with pytest.raises(ValueError, match="compare one with its like"):
        comparison(old, {**new, "script": "server"})


def test_a_missing_result_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.json").write_text(json.dumps({}))
    for file, reason in (("gone.json", "is not there"), ("empty.json", "is not a result of these benchmarks")):
        monkeypatch.setattr(sys, "argv", ["report.py", "--compare", str(tmp_path / file)])
        assert report.main() == 1
        assert reason in capsys.readouterr().err
