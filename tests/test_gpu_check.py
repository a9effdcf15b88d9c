"""`make gpu-check` where no card is: what it says, what it writes, how it judges. The checks themselves need a card."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exposure.assets import MODEL_REPOSITORY

sys.path.insert(0, str(PROJECT / "benchmarks"))
import card_page
import ceilings
import engine
import gpu_benchmark
import gpu_check
import gpu_kernels
import gpu_server
import peers
from gpu_machine import Card, NoCardError, first_card, found

PASSED, FAILED, MISSING = ({"outcome": outcome} for outcome in ("passed", "failed", "not checked"))


def has_card() -> bool:
    try:
        first_card()
    except NoCardError:
        return False
    return True


@pytest.mark.skipif(has_card(), reason="a card is here: run make gpu-check")
@pytest.mark.parametrize("script", ["gpu_machine.py", "gpu_check.py"])
def test_without_a_card_it_says_so_and_writes_nothing(tmp_path: Path, script: str) -> None:
    arguments = ["--out", tmp_path] if script == "gpu_check.py" else []
    command = [sys.executable, PROJECT / "benchmarks" / script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("gpu-check: ")
    assert result.stderr.endswith("gpu-check needs an NVIDIA card and its driver; nothing was checked\n")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_absent_driver_is_named() -> None:
    with pytest.raises(NoCardError, match=r"libnowhere\.so is not on this machine"):
        first_card("libnowhere.so")


@pytest.mark.parametrize(
    ("name", "slug"),
    [("NVIDIA RTX A5000", "nvidia_rtx_a5000"), ("Tesla V100-SXM2-16GB (x) ", "tesla_v100_sxm2_16gb_x")],
)
def test_the_result_is_named_after_the_card(name: str, slug: str) -> None:
    assert Card(name, "8.6", "13.0").slug == slug


def test_what_is_not_found_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDACXX", "/nowhere/nvcc")
    machine = found()
    assert machine["nvcc"] == machine["driver"] == "not found"
    assert machine["torch"] != "not found"


def test_each_check_has_an_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> dict[str, Any]:
        raise gpu_check.NotCheckedError("no torch")

    def broken() -> dict[str, Any]:
        raise OSError("two\nlines")

    assert gpu_check.outcome_of("a", lambda: {"n": 1}) == {"outcome": "passed", "n": 1}
    assert gpu_check.outcome_of("b", lambda: {"outcome": "failed"}) == FAILED
    assert gpu_check.outcome_of("c", missing) == {"outcome": "not checked", "why": "no torch"}
    assert gpu_check.outcome_of("d", broken) == {"outcome": "failed", "why": "OSError: two lines"}
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "passed       a",
        "failed       b",
        "not checked  c: no torch",
        "failed       d: OSError: two lines",
    ]


@pytest.mark.parametrize(
    ("parity", "other", "status"),
    [(PASSED, PASSED, 0), (PASSED, MISSING, 0), (PASSED, FAILED, 1), (FAILED, PASSED, 1), (MISSING, MISSING, 1)],
)
def test_the_exit_status(parity: dict[str, Any], other: dict[str, Any], status: int) -> None:
    assert gpu_check.exit_status({"kernel parity": parity, "denoise": other}) == status


def test_the_report_is_whole(tmp_path: Path) -> None:
    card = Card("NVIDIA H100", "9.0", "13.0")
    gpu_check.write(tmp_path / "new" / "card.json", gpu_check.report(card, {"nvcc": "13.0"}, {"kernel parity": PASSED}))
    written = json.loads((tmp_path / "new" / "card.json").read_text())
    assert written["card"] == "NVIDIA H100"
    assert written["machine"]["nvcc"] == "13.0"
    assert written["checks"] == {"kernel parity": PASSED}
    assert {"command", "compute_capability", "cuda"} < written.keys()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["card.json"]


@pytest.mark.skipif(has_card(), reason="a card is here: engines are built on it, with or without kernels")
def test_every_check_is_reported_where_the_kernels_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_built", lambda: False)
    monkeypatch.setattr(gpu_check, "nvcc", lambda: None)
    monkeypatch.setattr(gpu_check, "program", lambda _: "/usr/bin/true")
    outcomes = {name: gpu_check.outcome_of(name, check) for name, check in gpu_check.checks().items()}
    assert {outcome["outcome"] for outcome in outcomes.values()} == {"not checked"}
    assert gpu_check.exit_status(outcomes) == 1


@pytest.mark.parametrize(
    ("body", "limit_s", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 60.0, "its process was ended by signal 11"),
        ("sys.exit(3)", 60.0, "its process ended with 3"),
        ("time.sleep(600)", 0.5, "it took more than 0 s"),
        ("open(sys.argv[4], 'w').write('{\"outcome\": \"passed\"}'); os.abort()", 60.0, None),  # after it had finished
    ],
)
def test_a_check_that_breaks_its_process_breaks_no_other(
    tmp_path: Path, body: str, limit_s: float, why: str | None
) -> None:
    script = tmp_path / "check.py"
    script.write_text(f"import os, signal, sys, time\n{body}\n")
    outcome = gpu_check.apart("a", script, limit_s)
    assert outcome == ({"outcome": "failed", "why": why} if why else PASSED)


def test_a_check_runs_in_a_process_of_its_own() -> None:
    """The real script; nothing is built where the kernels are, and nothing is compared where no card is."""
    outcome = gpu_check.apart("torch tensors")
    if has_card():
        pytest.skip("a card is here: run make gpu-check")
    assert outcome["outcome"] == "not checked"


def test_what_was_not_checked_is_counted() -> None:
    results = {"a": PASSED, "b": MISSING | {"why": "no torch"}}
    assert gpu_check.not_made({"a": PASSED}) == "0 of 1 checks not made"
    assert gpu_check.not_made(results) == "1 of 2 checks not made: b (no torch)"
    engines = {"c": PASSED | {"engines": {"d": PASSED, "e": MISSING | {"why": "no onnx"}}}}
    assert gpu_check.not_made(results | engines) == "2 of 4 checks not made: b (no torch); e (no onnx)"


def test_timing_counts_every_launch() -> None:
    class Clock:
        """Of a card on which every launch takes a millisecond."""

        launches = 0

        def mark(self) -> int:
            return self.launches

        def wait(self) -> None: ...

        def seconds_between(self, first: int, second: int) -> float:
            return (second - first) / 1e3

        def run(self, buffers: int) -> None:
            assert buffers < gpu_kernels.BUFFER_SETS
            self.launches += 1

    clock = Clock()
    speed = gpu_kernels._speed(clock, 10**6, clock.run)  # type: ignore[arg-type]
    assert speed == {"median_us": 1000, "least_us": 1000, "most_us": 1000, "gb_per_s": 1}


def test_what_is_built_is_seen_by_what_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server and its Python model, too: they get the environment, not this process's path."""
    seen = []

    def apart(name: str, limit_s: float) -> dict[str, Any]:
        assert limit_s == 1200
        seen.append(os.environ["PYTHONPATH"])
        return PASSED | ({"package": "/built"} if name == "build" else {})

    monkeypatch.setenv("PYTHONPATH", "/before")
    monkeypatch.setattr(gpu_check, "first_card", lambda: Card("A card", "8.6", "13.0"))
    monkeypatch.setattr(gpu_check, "checks", lambda: dict.fromkeys(("build", "kernel parity")))
    monkeypatch.setattr(gpu_check, "apart", apart)
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert seen == ["/before", f"/built{os.pathsep}/before"]
    assert capsys.readouterr().out.endswith("0 of 2 checks not made\n")
    assert json.loads((tmp_path / "a_card.json").read_text())["checks"]["kernel parity"].items() >= PASSED.items()


def test_some_checks_are_made_anew_beside_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"build": PASSED | {"package": "/built"}, "kernel parity": PASSED, "peers at 512²": {"outcome": "failed"}}
    (tmp_path / "a_card.json").write_text(json.dumps({"checks": found}))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(gpu_check, "first_card", lambda: Card("A card", "8.6", "13.0"))
    seen: dict[str, Any] = {}

    def apart(name: str, limit_s: float) -> dict[str, Any]:
        seen[name] = (limit_s, os.environ["PYTHONPATH"])
        return PASSED

    monkeypatch.setattr(gpu_check, "apart", apart)
    assert gpu_check.main(["--out", str(tmp_path), "--checks", "peers at 512²"]) == 0
    checks = json.loads((tmp_path / "a_card.json").read_text())["checks"]
    assert checks["kernel parity"] == PASSED
    assert checks["peers at 512²"].items() >= PASSED.items()
    assert seen == {"peers at 512²": (1200, "/built")}


def test_models_move_to_the_card_that_is_checked(tmp_path: Path) -> None:
    for leaf in gpu_server.ON_CARD:
        shutil.copytree(MODEL_REPOSITORY / leaf, tmp_path / leaf)
    for config in gpu_server._on_card(tmp_path).glob("*/configs/cpu.pbtxt"):
        (group,) = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig()).instance_group
        assert (group.kind, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, [0])


def test_a_card_gets_a_page(tmp_path: Path) -> None:
    """Figures as the checks' own functions make them, of a card that does not exist."""
    speed = {"median_us": 9.1, "least_us": 9.0, "most_us": 9.9, "gb_per_s": 4000.0, "of_copy": 0.93}
    timed = {"seconds": {peers.COMPILED: [0.02, 0.03]}, "peaks": {peers.COMPILED: 1.5}, "unable": {}}
    roof = ceilings.Ceilings(5e14, 4e12, on_card=True)
    frame = engine.described(timed, (512, 512), ceilings.Cost(1e11, 1e9), roof, peers.COMPILED)
    absent = gpu_benchmark._outcome({"left_out": "tensorrt is not installed", "absent": True}, None)
    told = {peers.COMPILED: gpu_benchmark._outcome({"agreement_db": 80.1}, None), "tensorrt, FP16 body": absent}
    peers_at = {"ceilings": {"gflops": 5e5, "gbytes_per_s": 4000.0}, "baseline": peers.COMPILED, "peers": told}
    request = {"median": 0.1, "least": 0.09, "most": 0.12, "mean of the rest": 0.001}
    results = {
        "kernel bandwidth": PASSED | {"frame": "12 MP", "kernels": {"pack": speed}},
        "engines": PASSED | {"engines": {"tensorrt engine on this card": {"outcome": "failed", "why": "it is off"}}},
        "peers at 512²": PASSED | peers_at | {"frame": frame},
        card_page.SERVED: PASSED | {"seconds_per_request_of_3_passes": {"4240x2832": request}},
    }
    results["engines"]["machine"] = {"nvcc": "12.8"}
    assert {card_page.KERNELS, card_page.SERVED, "engines", "peers at 512²"} <= gpu_check.checks().keys()
    path = tmp_path / "card.json"
    gpu_check.write(path, gpu_check.report(Card("A card", "8.6", "13.0"), {"nvcc": "13.0"}, results))
    command = [sys.executable, PROJECT / "benchmarks" / "card_page.py", path]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    page = path.with_suffix(".md").read_text()
    for line in (
        "| pack | 9.1 (9.0 to 9.9) | 4000.0 | 93 % |",
        "| tensorrt engine on this card | failed |  |  | it is off |",
        f"| {peers.COMPILED} | 0.025 | 40 | 1 % | 1.5 | 1 (1 to 1) | 80.1 dB |",
        "- tensorrt, FP16 body: tensorrt is not installed",
        "| 4240x2832 | 100.0 | 90.0 | 120.0 | 1.0 |",
        "- `engines` was checked earlier, with nvcc 12.8",
    ):
        assert line in page
