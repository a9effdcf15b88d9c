"""Everything that needs an NVIDIA card, in one run; what is missing here is named, and what was not checked with it.

python benchmarks/gpu_check.py [--out FOLDER] [--limit SECONDS] [--budget SECONDS] [--without-tuning]
    [--checks NAME ...]

`make gpu-check` prepares the environment first, where pip can. What to ask for where time is short: benchmarks/GPU.md.

Writes FOLDER/<card>.json, after every check, and a page of it beside it; FOLDER is $OUT where that is one, else
benchmarks/results. Exit status 0 when something was checked and nothing failed.
"""

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from gpu_build import BUILD, PROJECT, TOOL_TIMEOUT_S, build_check, built, ready, use_what_was_built
from gpu_machine import CUDA_HOME, OURS, Card, NoCardError, NotCheckedError, first_card, found, program
from processes import Runner, tied

CHECK_TIMEOUT_S = 1200.0
TUNED = "tuned peers at "  # kernels are tried out for minutes
WITHOUT_TUNING = "left out by --without-tuning"
Check = Callable[[], dict[str, Any]]
Keep = Callable[[dict[str, Any]], None]


def main(arguments: list[str] | None = None) -> int:
    """Find, build, check, write."""
    options = _parser().parse_args(arguments)
    if options.only:
        return _only(options)
    try:
        card = first_card()
    except NoCardError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    machine = found()
    print(f"{card.name}, compute capability {card.capability}, CUDA {card.cuda}")
    for name, text in machine.items():
        print(f"  {name:18}{text}")
    # of one folder for all sizes, and for the next run
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(BUILD / "inductor"))
    path = options.out / f"{card.slug}.json"
    with Runner(options.budget) as runner:
        made = run(runner, options, path, card, machine)
        print(f"written: {path}")
        page = subprocess.run([sys.executable, PROJECT / "benchmarks" / "card_page.py", path], check=False)
        print(summary(made) if page.returncode == 0 else f"no page was made\n{summary(made)}")
        return 1 if runner.ended else exit_status(made)


def run(
    runner: Runner, options: argparse.Namespace, path: Path, card: Card, machine: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Make the checks that are asked for; each outcome is written beside those that were found before."""
    results = earlier(path, machine)
    asked = options.checks or list(checks())
    if "build" not in asked:
        use_what_was_built()
        asked = asked if ready() else ["build", *asked]
    made: dict[str, dict[str, Any]] = {}
    for name in asked:
        left_out = WITHOUT_TUNING if options.without_tuning and name.startswith(TUNED) else runner.hindrance()
        outcome = {"outcome": "not checked", "why": left_out} if left_out else runner.apart(name, options.limit)
        made[name] = outcome | {"date": datetime.now(tz=UTC).date().isoformat(), "machine": machine}
        anew = outcome["outcome"] != "not checked" or (name == "build" and not left_out)
        if anew or results.get(name, outcome)["outcome"] == "not checked":  # else what was found before stays
            results[name] = made[name]
        if name == "build":
            use_what_was_built(outcome.get("package"))
        write(path, report(card, machine, results))
    return made


def earlier(path: Path, machine: dict[str, str]) -> dict[str, Any]:
    """What was found before on this card, each with its date and machine, but of this version of the project only."""
    written = json.loads(path.read_text())["checks"] if path.exists() else {}
    return {name: check for name, check in written.items() if check.get("machine", {}).get(OURS) == machine.get(OURS)}


def checks(until: float = math.inf, keep: Keep = lambda _: None) -> dict[str, Check]:
    """In the order in which they run: the later ones rest on the earlier, or are worth less for their time.

    until: on the monotonic clock, when one must have ended. keep: takes what a long one has found so far.
    """
    return {
        "build": build_check,
        "kernel parity": parity_check,
        "kernel bandwidth": bandwidth_check,
        "torch tensors": _from("gpu_torch", "tensors_check"),
        "denoise": _from("gpu_torch", "denoise_check"),
        "engines": partial(engines_check, keep),
        "Triton with GPU instances": _from("gpu_server", "server_check"),
        "Triton with every model on the card": _from("gpu_server", "deployed_check"),
        "peers at 512²": partial(peers_check, "512²", until),
        "peers at 12 MP": partial(peers_check, "12 MP", until),
        "compute-sanitizer": partial(sanitizer_check, until),
        f"{TUNED}512²": partial(peers_check, "512²", until, keep),
        f"{TUNED}12 MP": partial(peers_check, "12 MP", until, keep),
    }


def outcome_of(name: str, check: Check) -> dict[str, Any]:
    """Run one check; its result, with an `outcome` of passed, failed or not checked. An exception is a failure."""
    try:
        result = {"outcome": "passed"} | check()
    except NotCheckedError as error:
        result = {"outcome": "not checked", "why": str(error)}
    except Exception as error:  # one check's failure must not hide the others'
        result = {"outcome": "failed", "why": " ".join(f"{type(error).__name__}: {error}".split())}
    print(f"{result['outcome']:12} {name}" + (f": {result['why']}" if "why" in result else ""), flush=True)
    return result


def exit_status(results: dict[str, dict[str, Any]]) -> int:
    """0 when nothing failed and something passed: the comparison of the kernels, where it was among the checks."""
    outcomes = {name: result["outcome"] for name, result in results.items()}
    asked = {name: outcome for name, outcome in outcomes.items() if name != "build"} or outcomes
    passed = outcomes.get("kernel parity", "passed") == "passed" and "passed" in asked.values()
    return int("failed" in outcomes.values() or not passed)


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The last lines: every outcome once more, below what libraries print meanwhile, and what was not made."""
    lines = [f"  {result['outcome']:12} {name}" for name, result in results.items()]
    return "\n".join([*lines, not_made(results)])


def not_made(results: dict[str, dict[str, Any]]) -> str:
    """How many of all checks were not made, and why; each engine is one, and each peer at a size."""
    checks: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        peers = {f"{peer} ({name})": told for peer, told in result.get("peers", {}).items()}
        checks |= result.get("engines") or peers or {name: result}
    reasons = [f"{name} ({check['why']})" for name, check in checks.items() if check["outcome"] == "not checked"]
    return f"{len(reasons)} of {len(checks)} checks not made" + (f": {'; '.join(reasons)}" if reasons else "")


def report(card: Card, machine: dict[str, str], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is written: where, when, with what, and each check's outcome."""
    return {
        "card": card.name,
        "compute_capability": card.capability,
        "cuda": card.cuda,
        "machine": {"cores": os.cpu_count(), **machine},
        "command": " ".join(["python", *sys.argv]),
        "checks": results,
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(path)


def parity_check() -> dict[str, Any]:
    gpu, kernels = _kernels()
    with gpu:
        results = kernels.parity(gpu)
    outcome = "passed" if all(result["outcome"] == "passed" for result in results.values()) else "failed"
    return {"outcome": outcome, "kernels": results}


def bandwidth_check() -> dict[str, Any]:
    gpu, kernels = _kernels()
    with gpu:
        if not all(result["outcome"] == "passed" for result in kernels.parity(gpu, whole_frame=False).values()):
            raise RuntimeError("a kernel differs from the CPU's: nothing was timed")
        how = {"frame": "12 MP", "rounds": kernels.ROUNDS, "launches_of_each": kernels.LAUNCHES}
        return how | kernels.bandwidth(gpu)


def sanitizer_check(until: float) -> dict[str, Any]:
    tool = program("compute-sanitizer")
    if tool is None:
        raise NotCheckedError(f"compute-sanitizer is not on PATH and not in {CUDA_HOME / 'bin'}")
    _kernels()[0].close()
    tools: dict[str, Any] = {}
    for kind in ("memcheck", "initcheck"):
        script = PROJECT / "benchmarks" / "gpu_kernels.py"
        command = tied([tool, "--tool", kind, "--error-exitcode", "9", sys.executable, script])
        limit_s = min(TOOL_TIMEOUT_S, until - time.monotonic() - 5)
        with tempfile.TemporaryFile("w+") as output:  # no pipe, which what it started would keep open
            try:
                how: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "timeout": max(limit_s, 0)}
                result = subprocess.run(command, check=False, **how)
            except subprocess.TimeoutExpired:
                return tools | {"outcome": "not checked", "why": f"{kind} was not done after {max(limit_s, 0):.0f} s"}
            output.seek(0)
            said = " ".join(output.read().split())
        # a summary is printed even then, with a number of errors
        if "Device not supported" in said or ("not supported" in said and "ERROR SUMMARY" not in said):
            raise NotCheckedError(f"compute-sanitizer does not support this device here: {said[-200:]}")
        if result.returncode:
            raise RuntimeError(f"{kind} found something (exit {result.returncode}): {said[-600:]}")
        tools[kind] = "clean"
    return tools


def engines_check(keep: Keep) -> dict[str, Any]:
    """Engines of the shipped checkpoint, built on the card, held against FP32 torch and timed. keep: as of `checks`."""
    try:
        from gpu_engine import check_engines

        from exposure.assets import CHECKPOINT
    except ModuleNotFoundError as error:
        raise NotCheckedError(f"{error.name} is not here") from error
    engines = check_engines(CHECKPOINT, (4240, 2832), lambda so_far: keep(_of_engines(so_far)))
    if all(result["outcome"] == "not checked" for result in engines.values()):
        raise NotCheckedError("; ".join(f"{name}: {result['why']}" for name, result in engines.items()))
    return _of_engines(engines)


def _of_engines(engines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    outcomes = {result["outcome"] for result in engines.values()}
    return {
        "outcome": next(kind for kind in ("failed", "passed", "not checked") if kind in outcomes),
        "engines": engines,
    }


def peers_check(size: str, until: float, keep: Keep | None = None) -> dict[str, Any]:
    """The network by every means that a card offers, in turn, under the card's own ceilings.

    keep: of those that tune, which are many minutes' work; else the others.
    """
    try:
        from gpu_benchmark import measured, tuned
    except ModuleNotFoundError as error:
        raise NotCheckedError(f"{error.name} is not here") from error
    return tuned(size, until, keep) if keep else measured(size, until)


def _only(options: argparse.Namespace) -> int:
    """One check, in this process."""

    def keep(result: dict[str, Any]) -> None:
        write(options.result, result | {"unfinished": True})

    check = checks(options.until, keep)[options.only]
    write(options.result, outcome_of(options.only, check))
    return 0


def _from(module: str, name: str) -> Check:
    """A check of another file, which is imported when the kernels are there."""

    def check() -> dict[str, Any]:
        if not built():
            raise NotCheckedError("the CUDA kernels are not built")
        return getattr(importlib.import_module(module), name)()

    return check


def _kernels() -> tuple[Any, Any]:
    if not built():
        raise NotCheckedError("the CUDA kernels are not built")
    from gpu_device import Gpu

    from exposure.kernels.library import cuda_library

    return Gpu(cuda_library()), importlib.import_module("gpu_kernels")


def _default_out() -> Path:
    out = os.environ.get("OUT", "")
    return Path(out) if out and Path(out).is_dir() else PROJECT / "benchmarks" / "results"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=_default_out(), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument(
        "--checks", nargs="+", choices=list(checks()), metavar="NAME", help="only these, beside what was found before"
    )
    parser.add_argument("--limit", type=float, default=CHECK_TIMEOUT_S, metavar="SECONDS", help="for each check")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="SECONDS", help="for all checks together")
    parser.add_argument("--without-tuning", action="store_true", help="no peer that tries kernels out for minutes")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one check, in this process
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # where to
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)  # on the monotonic clock
    return parser


if __name__ == "__main__":
    sys.exit(main())
