"""`make gpu-check` where no card is: what it says, what it writes, how it judges. The checks themselves need a card."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PROJECT, is_gone
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exposure.assets import MODEL_REPOSITORY

sys.path.insert(0, str(PROJECT / "benchmarks"))
import card_page
import ceilings
import engine
import gpu_benchmark
import gpu_build
import gpu_check
import gpu_engine
import gpu_kernels
import gpu_machine
import gpu_server
import peers
from gpu_machine import Card, NoCardError, NotCheckedError, first_card, found
from processes import ENDED, NO_TIME, WRITE_S, Runner

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
    arguments = ["--out", str(tmp_path)] if script == "gpu_check.py" else []
    command = [sys.executable, str(PROJECT / "benchmarks" / script), *arguments]
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
        raise NotCheckedError("no torch")

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
    assert gpu_check.exit_status({"build": PASSED}) == 0
    assert gpu_check.exit_status({"build": PASSED, "denoise": MISSING}) == 1  # built for what then was not checked


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
    monkeypatch.setattr(gpu_check, "built", lambda: False)
    monkeypatch.setattr(gpu_build, "built", lambda: False)
    monkeypatch.setattr(gpu_build, "nvcc", lambda: None)
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
    outcome = Runner(script=script).apart("a", limit_s)
    assert outcome == ({"outcome": "failed", "why": why} if why else PASSED)


def test_a_check_runs_in_a_process_of_its_own() -> None:
    """The real script; nothing is built where the kernels are, and nothing is compared where no card is."""
    outcome = Runner().apart("torch tensors", 600)
    if has_card():
        pytest.skip("a card is here: run make gpu-check")
    assert outcome["outcome"] == "not checked"


def test_what_was_not_checked_is_counted() -> None:
    results = {"a": PASSED, "b": MISSING | {"why": "no torch"}}
    assert gpu_check.not_made({"a": PASSED}) == "0 of 1 checks not made"
    assert gpu_check.not_made(results) == "1 of 2 checks not made: b (no torch)"
    engines = {"c": PASSED | {"engines": {"d": PASSED, "e": MISSING | {"why": "no onnx"}}}}
    assert gpu_check.not_made(results | engines) == "2 of 4 checks not made: b (no torch); e (no onnx)"


def test_engines_that_were_not_reached_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the time is up, or one ends the process: what was kept names them all."""

    def ends(target: str, *_: Any) -> dict[str, Any]:
        raise SystemExit(target)

    monkeypatch.setattr(gpu_engine, "_missing", lambda _: "")
    monkeypatch.setattr(gpu_engine, "_check_torch", lambda *_: dict(PASSED))
    monkeypatch.setattr(gpu_engine, "_check", ends)
    kept: list[dict[str, Any]] = []
    with pytest.raises(SystemExit, match=r"tensorrt$"):  # of those two the one that is less likely to
        gpu_engine.check_engines(Path(), (96, 64), lambda so_far: kept.append(gpu_check._of_engines(dict(so_far))))
    assert [so_far["outcome"] for so_far in kept] == ["not checked", "passed"]
    why = "the check ended before it was done"
    assert gpu_check.not_made({"engines": kept[0]}).startswith("3 of 3 checks not made: ")
    assert gpu_check.not_made({"engines": kept[1]}) == (
        f"2 of 3 checks not made: tensorrt engine on this card ({why}); tensorrt-rtx engine on this card ({why})"
    )


@pytest.mark.parametrize(
    ("said", "status", "found"),
    [
        ("Error: Device not supported. ========= ERROR SUMMARY: 1 error", 9, "not checked"),
        ("Error: Device not supported. ========= ERROR SUMMARY: 0 errors", 0, "not checked"),
        ("Error: this driver is not supported", 1, "not checked"),
        ("Invalid __global__ read of size 4 ========= ERROR SUMMARY: 1 error", 9, "failed"),
        ("ERROR SUMMARY: 0 errors", 0, "passed"),
    ],
)
def test_a_device_that_the_sanitizer_does_not_support_is_no_fault_of_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, status: int, found: str
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '========= {said}'\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check, "program", lambda _: str(tool))
    monkeypatch.setattr(gpu_check, "_kernels", lambda: (SimpleNamespace(close=lambda: None), None))
    check = gpu_check.checks(until=time.monotonic() + 60)["compute-sanitizer"]
    assert gpu_check.outcome_of("compute-sanitizer", check)["outcome"] == found


class Clock:
    """Of a card on which every launch takes a millisecond."""

    def __init__(self) -> None:
        self.launched: list[str] = []

    def mark(self) -> int:
        return len(self.launched)

    def wait(self) -> None: ...

    def release(self) -> None: ...

    def seconds_between(self, first: int, second: int) -> float:
        return (second - first) / 1e3

    def upload(self, array: Any) -> Any:
        return array

    def empty(self, shape: Any, _: Any) -> Any:
        return shape

    def copy(self, *_: Any) -> None:
        self.launched.append("copy")

    def run(self, kernel: str, *_: Any) -> None:
        self.launched.append(kernel)


def test_kernels_take_turns_on_a_card_that_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "FRAME", (320, 480))
    monkeypatch.setattr(gpu_kernels, "clock_under_load", lambda work: (work(), 1980)[1])
    clock = Clock()
    found = gpu_kernels.bandwidth(clock)  # type: ignore[arg-type]
    assert found["sm_clock_mhz"] == 1980
    assert {speed["median_us"] for speed in found["kernels"].values()} == {1000}
    turns = clock.launched[:: gpu_kernels.LAUNCHES]
    round_of_all = ["copy", "pack", "pack", "unpack", "expose"]
    assert turns[:6] == ["copy", *round_of_all]  # what warms the clocks, and each once
    assert turns[6:16] == [*round_of_all, "pack", "copy", "expose", "unpack", "pack"]


def test_clocks_are_read_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nsleep 0.2\n[ "$1" = --id=0000:3B:00.0 ] && echo 1980\n')
    smi.chmod(0o755)
    monkeypatch.setattr(gpu_machine, "program", lambda _: str(smi))
    monkeypatch.setattr(gpu_machine, "id_of_first_card", lambda: "0000:3B:00.0")
    works: list[float] = []
    began = time.monotonic()

    def work() -> None:
        works.append(0)
        time.sleep(0.01)

    assert gpu_machine.clock_under_load(work, load_s=0.1) == 1980
    assert time.monotonic() - began >= 0.25  # until it has answered
    assert len(works) > 10
    smi.write_text("#!/bin/sh\necho '[Not Supported]'\n")
    assert gpu_machine.clock_under_load(lambda: None, load_s=0.1) is None
    monkeypatch.setattr(gpu_machine, "program", lambda _: None)
    assert gpu_machine.clock_under_load(lambda: None, load_s=0.1) is None


def test_the_clock_is_of_the_card_that_cuda_counts_first(tmp_path: Path) -> None:
    """By its address: nvidia-smi may count another first."""
    source = tmp_path / "driver.c"
    source.write_text(
        "#include <string.h>\n"
        "int cuInit(unsigned flags) { return (int)flags; }\n"
        "int cuDeviceGet(int* device, int ordinal) { return *device = ordinal + 7, 0; }\n"
        "#ifndef OLD\n"
        "int cuDeviceGetPCIBusId(char* id, int size, int device) {\n"
        '    return strncpy(id, device == 7 ? "0000:3B:00.0" : "", (size_t)size), 0;\n'
        "}\n"
        "#endif\n"
    )
    for flag, address in (("-DNEW", "0000:3B:00.0"), ("-DOLD", "0")):
        library = tmp_path / f"driver{flag}.so"
        subprocess.run(["gcc", "-shared", "-fPIC", flag, str(source), "-o", str(library)], check=True)
        assert gpu_machine.id_of_first_card(str(library)) == address
    assert gpu_machine.id_of_first_card("libnowhere.so") == "0"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not exist; what a run tells those that follow is undone."""
    monkeypatch.setattr(gpu_check, "first_card", lambda: Card("A card", "8.6", "13.0"))
    for name in ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "/before")


def outcomes(path: Path) -> dict[str, tuple[str, str]]:
    checks = json.loads((path / "a_card.json").read_text())["checks"]
    return {name: (check["outcome"], check.get("why", "")) for name, check in checks.items()}


@pytest.mark.usefixtures("card")
def test_what_is_built_is_seen_by_what_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server and its Python model, too: they get the environment, not this process's path."""
    seen = []

    def apart(_: Runner, name: str, limit_s: float) -> dict[str, Any]:
        assert limit_s == 1200
        seen.append((os.environ["PYTHONPATH"], os.environ["TORCHINDUCTOR_CACHE_DIR"]))
        return PASSED | ({"package": "/built"} if name == "build" else {})

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(gpu_check, "checks", lambda: dict.fromkeys(("build", "kernel parity")))
    monkeypatch.setattr(Runner, "apart", apart)
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    kernels_of_torch = str(PROJECT / "build" / "gpu_check" / "inductor")
    assert seen == [("/before", kernels_of_torch), (f"/built{os.pathsep}/before", kernels_of_torch)]
    assert capsys.readouterr().out.endswith(
        "  passed       build\n  passed       kernel parity\n0 of 2 checks not made\n"
    )
    assert outcomes(tmp_path)["kernel parity"] == ("passed", "")


def written_before(path: Path, found: dict[str, Any], version: str = found()["exposure"]) -> None:
    """By a run of this version of the project, or of another."""
    checks = {name: check | {"machine": {"exposure": version}} for name, check in found.items()}
    (path / "a_card.json").write_text(json.dumps({"checks": checks}))


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(("ready", "built"), [(True, []), (False, ["build"])])
def test_kernels_are_built_first_where_they_are_missing_or_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ready: bool, built: list[str]
) -> None:
    seen: list[str] = []

    def apart(_: Runner, name: str, __: float) -> dict[str, Any]:
        seen.append(name)
        return PASSED

    monkeypatch.setattr(Runner, "apart", apart)
    monkeypatch.setattr(gpu_check, "ready", lambda: ready)
    assert gpu_check.main(["--out", str(tmp_path), "--checks", "denoise"]) == 0
    assert seen == [*built, "denoise"]


@pytest.mark.parametrize(("there", "outdated"), [(True, False), (True, True), (False, False)])
def test_kernels_are_ready_that_are_as_new_as_their_sources(
    monkeypatch: pytest.MonkeyPatch, there: bool, outdated: bool
) -> None:
    monkeypatch.setattr(gpu_build, "built", lambda: there)
    monkeypatch.setattr(gpu_build, "_outdated", lambda: outdated)
    assert gpu_build.ready() == (there and not outdated)


@pytest.mark.usefixtures("card")
def test_a_whole_run_keeps_what_it_did_not_measure_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not reached, left out, or without what it needs: earlier figures of this version stay, of another they go."""
    names = ("build", "kernel parity", "denoise", "engines", "tuned peers at 512²")
    lacks = MISSING | {"why": "no torch"}
    now = {"build": lacks, "kernel parity": FAILED, "denoise": lacks, "engines": PASSED}
    monkeypatch.setattr(gpu_check, "checks", lambda: dict.fromkeys(names))
    monkeypatch.setattr(Runner, "apart", lambda _, name, __: now[name])
    arguments = ["--out", str(tmp_path), "--without-tuning"]
    written_before(tmp_path, dict.fromkeys(names, PASSED) | {"engines": MISSING})
    assert gpu_check.main(arguments) == 1
    told = {name: outcome for name, (outcome, _) in outcomes(tmp_path).items()}
    assert told == dict.fromkeys(names, "passed") | {"build": "not checked", "kernel parity": "failed"}
    written_before(tmp_path, dict.fromkeys(names, PASSED), "0.0.1")
    gpu_check.main(arguments)
    assert outcomes(tmp_path)["denoise"] == ("not checked", "no torch")
    assert outcomes(tmp_path)["tuned peers at 512²"] == ("not checked", "left out by --without-tuning")


@pytest.mark.usefixtures("card")
def test_some_checks_are_made_anew_beside_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written_before(tmp_path, {"build": PASSED, "kernel parity": PASSED, "peers at 512²": FAILED})
    seen: dict[str, Any] = {}

    def apart(_: Runner, name: str, limit_s: float) -> dict[str, Any]:
        seen[name] = (limit_s, os.environ["PYTHONPATH"])
        return PASSED

    monkeypatch.setattr(Runner, "apart", apart)
    monkeypatch.setattr(gpu_check, "ready", lambda: True)
    monkeypatch.setattr(gpu_check, "use_what_was_built", lambda: monkeypatch.setenv("PYTHONPATH", "/built"))
    assert gpu_check.main(["--out", str(tmp_path), "--checks", "peers at 512²"]) == 0
    assert outcomes(tmp_path) == {
        "build": ("passed", ""),
        "kernel parity": ("passed", ""),
        "peers at 512²": ("passed", ""),
    }
    assert seen == {"peers at 512²": (1200, "/built")}
    # and what no time was left for is as it was
    assert gpu_check.main(["--out", str(tmp_path), "--budget", "1", "--checks", "peers at 512²", "denoise"]) == 1
    assert outcomes(tmp_path)["peers at 512²"] == ("passed", "")
    assert outcomes(tmp_path)["denoise"] == ("not checked", NO_TIME)


@pytest.mark.usefixtures("card")
def test_tuning_is_left_out_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Runner, "apart", lambda *_: dict(PASSED))
    assert gpu_check.main(["--out", str(tmp_path), "--without-tuning"]) == 0
    told = {name: why for name, (outcome, why) in outcomes(tmp_path).items() if outcome == "not checked"}
    assert told == dict.fromkeys(("tuned peers at 512²", "tuned peers at 12 MP"), "left out by --without-tuning")


def test_what_is_worth_most_comes_first() -> None:
    names = list(gpu_check.checks())
    assert names[:6] == ["build", "kernel parity", "kernel bandwidth", "torch tensors", "denoise", "engines"]
    assert names[6] == "Triton with GPU instances"
    assert names[-3] == "compute-sanitizer"
    assert all(name.startswith("tuned peers") for name in names[-2:])
    page = (PROJECT / "benchmarks" / "GPU.md").read_text()
    assert [page.index(f"`{name}`") for name in names] == sorted(page.index(f"`{name}`") for name in names)


def test_a_budget_is_for_all_checks_together(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text("import sys, time\nprint(float(sys.argv[6]) - time.monotonic())\ntime.sleep(600)\n")
    began = time.monotonic()
    runner = Runner(WRITE_S + 20, script)
    assert runner.hindrance() is None
    runner._until -= 19  # as if a check had taken them
    assert runner.hindrance() == NO_TIME
    assert runner.apart("a", 600) == MISSING | {"why": "no time was left after 1 s"}
    assert time.monotonic() - began < 5


def test_a_check_is_told_when_it_must_have_ended(tmp_path: Path) -> None:
    """At a point in time: it starts later than its limit is counted from."""
    script = tmp_path / "check.py"
    script.write_text(
        "import json, sys\njson.dump({'outcome': 'passed', 'until': sys.argv[6]}, open(sys.argv[4], 'w'))\n"
    )
    before = time.monotonic()
    until = float(Runner(script=script).apart("a", 60)["until"])
    assert before + 60 <= until <= time.monotonic() + 60


UNFINISHED = """import json, os, sys, time
json.dump({"outcome": "passed", "unfinished": True, "peers": {}}, open(sys.argv[4], "w"))
open(os.environ["STARTED"], "w").write(str(os.getpid()))
time.sleep(600)
"""


def test_what_a_check_had_found_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    script = tmp_path / "check.py"
    script.write_text(UNFINISHED)
    assert Runner(script=script).apart("a", 5) == PASSED | {"peers": {}, "why": "it took more than 5 s"}
    assert Runner(WRITE_S + 5, script).apart("a", 600)["why"] == "no time was left after 5 s"
    script.write_text(UNFINISHED.replace("time.sleep(600)", "os.abort()"))
    crashed = Runner(script=script).apart("a", 60)
    assert crashed == FAILED | {"peers": {}, "why": "its process was ended by signal 6"}


def appeared(path: Path) -> int:
    """The number that a process has written there."""
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_a_check_ends_with_what_started_it(tmp_path: Path, ended_by: signal.Signals) -> None:
    """SIGTERM: and what is known by then is written."""
    check, run = tmp_path / "check.py", tmp_path / "run.py"
    check.write_text(UNFINISHED)
    run.write_text(
        "import sys, functools, pathlib\n"
        f"sys.path.insert(0, {str(PROJECT / 'benchmarks')!r})\n"
        "import gpu_check\n"
        "gpu_check.first_card = lambda: gpu_check.Card('A card', '8.6', '13.0')\n"
        f"gpu_check.Runner = functools.partial(gpu_check.Runner, script=pathlib.Path({str(check)!r}))\n"
        f"sys.exit(gpu_check.main(['--out', {str(tmp_path)!r}]))\n"
    )
    started = tmp_path / "started"
    environment = {**os.environ, "STARTED": str(started)}
    process = subprocess.Popen([sys.executable, run], env=environment, stdout=subprocess.PIPE, text=True)
    check_pid = appeared(started)
    process.send_signal(ended_by)
    said = process.communicate(timeout=60)[0]
    assert is_gone(check_pid)
    if ended_by == signal.SIGTERM:
        assert process.returncode == 1
        assert outcomes(tmp_path)["build"] == ("passed", ENDED)
        assert outcomes(tmp_path)["kernel parity"] == ("not checked", ENDED)
        assert f"kernel parity ({ENDED})" in said.splitlines()[-1]


def test_results_go_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out, folder in ((tmp_path, tmp_path), (tmp_path / "gone", None), ("", None)):
        monkeypatch.setenv("OUT", str(out))
        assert gpu_check._parser().parse_args([]).out == (folder or PROJECT / "benchmarks" / "results")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build folder, as when no kernels are installed."""
    folder = tmp_path / "build"
    monkeypatch.setattr(gpu_build, "BUILD", folder)
    monkeypatch.setattr(gpu_build, "CUDA_LIBRARY", folder / "exposure" / "kernels" / gpu_build.CUDA_LIBRARY.name)
    monkeypatch.setattr(gpu_build, "built", lambda: False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "exposure"}
    for name in modules:  # the package in build/ takes their place; they come back
        monkeypatch.setitem(sys.modules, name, modules[name])
    return folder


def test_an_earlier_build_is_found_without_its_result(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    gpu_build.use_what_was_built(None)
    assert os.environ["PYTHONPATH"] == ""
    gpu_build.CUDA_LIBRARY.parent.mkdir(parents=True)
    gpu_build.CUDA_LIBRARY.touch()
    gpu_build.use_what_was_built(None)
    assert os.environ["PYTHONPATH"] == str(build)
    assert (build / "exposure" / "kernels" / "library.py").samefile(PROJECT / "kernels" / "library.py")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(gpu_build, "built", lambda: True)  # what is installed goes before
    gpu_build.use_what_was_built(None)
    assert os.environ["PYTHONPATH"] == ""


def test_without_kernels_the_package_is_found_all_the_same(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed and there is no nvcc: engines need none."""
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(gpu_build, "find_spec", lambda _: None)
    gpu_build.use_what_was_built(None)
    assert os.environ["PYTHONPATH"] == str(build)
    assert (build / "exposure" / "kernels" / "library.py").samefile(PROJECT / "kernels" / "library.py")


def test_a_python_without_numpy_has_built_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_build, "find_spec", lambda name: None if name == "numpy" else object())
    monkeypatch.setattr(gpu_build, "_cmake", lambda *_: pytest.fail("it would be built in vain"))
    with pytest.raises(NotCheckedError, match="NumPy is not here"):
        gpu_build.build_check()


def test_links_of_a_tree_that_was_elsewhere_are_repaired(build: Path) -> None:
    (build / "exposure").mkdir(parents=True)
    (build / "exposure" / "client").symlink_to("/nowhere/client")
    gpu_build.package_in_build()
    gpu_build.package_in_build()  # and once more, over its own
    assert (build / "exposure" / "client").samefile(PROJECT / "client")
    assert not any(link.readlink().is_absolute() for link in build.rglob("*") if link.is_symlink())


def test_a_backend_is_built_only_with_openvinos_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries alone suffice to run one."""
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(gpu_machine, "find_spec", lambda _: package)
    assert not gpu_machine.has_openvino_headers()
    commands: list[Any] = []
    monkeypatch.setattr(gpu_build, "_cmake", lambda *arguments: commands.append(arguments))
    monkeypatch.setattr(gpu_build, "_prefix", lambda: tmp_path)
    monkeypatch.setattr(gpu_build, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(gpu_build, "program", lambda name: name)
    monkeypatch.setattr(gpu_build, "built", lambda: bool(commands))
    monkeypatch.setattr(gpu_build, "_outdated", lambda: True)
    assert gpu_build.build_check()["backend"] == "OFF"
    assert "-DEXPOSURE_BACKEND=OFF" in commands[0]
    (tmp_path / "cmake").mkdir()
    assert gpu_machine.has_openvino_headers()
    monkeypatch.setattr(gpu_machine, "find_spec", lambda _: None)
    assert not gpu_machine.has_openvino_headers()


@pytest.mark.parametrize(("index", "told"), [(False, False), (True, False), (False, True)])
def test_make_asks_once_whether_there_is_a_package_index(tmp_path: Path, index: bool, told: bool) -> None:
    """Before it makes an environment and lets pip try again and again. A stand-in for Python says how it was called."""
    python, log = tmp_path / "python", tmp_path / "log"
    fails = "" if index else 'case "$*" in *"index versions"*) exit 1;; esac\n'
    fails += 'case "$*" in "-m venv"*) exit 1;; esac\n'
    python.write_text(f'#!/bin/sh\necho "$*" >>{log}\n{fails}')
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "CMakeLists.txt").touch()
    chosen = f"{'GPU_PYTHON' if told else 'PYTHON'}={python}"
    shutil.copy(PROJECT / "Makefile", tmp_path)
    command = ["make", "-C", str(tmp_path), "gpu-check", chosen, "GPU_CHECK=--limit 5"]
    subprocess.run(command, capture_output=True, check=True)
    calls = log.read_text().splitlines()
    assert calls[0] == "benchmarks/gpu_machine.py"
    assert calls[-1] == "benchmarks/gpu_check.py --limit 5"
    assert ("-m venv .venv" in calls) == index
    assert any("--retries 0 --timeout 5" in call for call in calls) != told


@pytest.mark.parametrize("whole", [True, False])
def test_make_goes_on_with_the_environment_that_is_there(tmp_path: Path, whole: bool) -> None:
    """Without a package index, and however old it is; not with one that pip has left without packages."""
    log = tmp_path / "log"
    for python in (tmp_path / "python", tmp_path / ".venv" / "bin" / "python"):
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f'#!/bin/sh\necho "$0 $*" >>{log}\ncase "$*" in *"index versions"*) exit 1;; esac\n')
        python.chmod(0o755)
    if whole:
        (tmp_path / ".venv" / "installed").touch()
        os.utime(tmp_path / ".venv" / "installed", (0, 0))
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "CMakeLists.txt").touch()
    shutil.copy(PROJECT / "Makefile", tmp_path)
    command = ["make", "-C", str(tmp_path), "gpu-check", f"PYTHON={tmp_path / 'python'}"]
    subprocess.run(command, capture_output=True, check=True)
    chosen = ".venv/bin/python" if whole else str(tmp_path / "python")
    assert log.read_text().splitlines()[-1].rstrip() == f"{chosen} benchmarks/gpu_check.py"


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
    common = {"ceilings": {"gflops": 5e5, "gbytes_per_s": 4000.0}, "sm_clock_mhz": 1980}
    peers_at = common | {"baseline": peers.COMPILED, "peers": told}
    request = {"median": 0.1, "least": 0.09, "most": 0.12, "mean of the rest": 0.001}
    results: dict[str, dict[str, Any]] = {
        "kernel bandwidth": PASSED | {"frame": "12 MP", "sm_clock_mhz": 1980, "kernels": {"pack": speed}},
        "engines": PASSED | {"engines": {"tensorrt engine on this card": {"outcome": "failed", "why": "it is off"}}},
        "peers at 512²": PASSED | peers_at | {"frame": frame},
        "tuned peers at 512²": MISSING | peers_at | {"why": "nothing was timed"},
        card_page.SERVED: PASSED | {"seconds_per_request_of_3_passes": {"4240x2832": request}},
    }
    results["engines"]["machine"] = {"nvcc": "12.8"}
    assert {card_page.KERNELS, card_page.SERVED, "engines", "peers at 512²"} <= gpu_check.checks().keys()
    path = tmp_path / "card.json"
    gpu_check.write(path, gpu_check.report(Card("A card", "8.6", "13.0"), {"nvcc": "13.0"}, results))
    command = [sys.executable, str(PROJECT / "benchmarks" / "card_page.py"), str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    page = path.with_suffix(".md").read_text()
    for line in (
        "## Kernels, 12 MP, at 1980 MHz",
        "## One pass at 512², peers\n\nCeilings of the card: 500000 GFLOP/s in FP16 and 4000 GB/s, at 1980 MHz.",
        "| pack | 9.1 (9.0 to 9.9) | 4000.0 | 93 % |",
        "| tensorrt engine on this card | failed |  |  | it is off |",
        f"| {peers.COMPILED} | 0.025 | 40 | 1 % | 1.5 | 1 (1 to 1) | 80.1 dB |",
        "- tensorrt, FP16 body: tensorrt is not installed",
        "| 4240x2832 | 100.0 | 90.0 | 120.0 | 1.0 |",
        "- `engines` was checked earlier, with nvcc 12.8",
    ):
        assert line in page
