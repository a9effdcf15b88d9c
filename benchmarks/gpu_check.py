"""Everything that needs an NVIDIA card, in one run; what is missing here is named, and what was not checked with it.

python benchmarks/gpu_check.py [--out FOLDER] [--limit SECONDS] [--checks NAME ...]

`make gpu-check` prepares the environment first, where pip can.

Writes benchmarks/results/<card>.json, and a page of it beside it. Exit status 0 when something was checked and nothing
failed.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from gpu_machine import CUDA_HOME, Card, NoCardError, first_card, found, nvcc, program

PROJECT = Path(__file__).resolve().parents[1]
BUILD = PROJECT / "build" / "gpu_check"
TOOL_TIMEOUT_S = 540.0
CHECK_TIMEOUT_S = 1200.0
Check = Callable[[], dict[str, Any]]


class NotCheckedError(Exception):
    """Something that a check needs is not here; the message says what."""


def main(arguments: list[str] | None = None) -> int:
    """Find, build, check, write."""
    options = _parser().parse_args(arguments)
    if options.only:
        write(options.result, outcome_of(options.only, checks(options.limit)[options.only]))
        return 0
    try:
        card = first_card()
    except NoCardError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    machine = found()
    print(f"{card.name}, compute capability {card.capability}, CUDA {card.cuda}")
    for name, text in machine.items():
        print(f"  {name:18}{text}")
    path = options.out / f"{card.slug}.json"
    results = dict(json.loads(path.read_text())["checks"]) if options.checks and path.exists() else {}
    asked = options.checks or list(checks())
    if "build" not in asked:
        _use_what_was_built(results)
    for name in asked:
        outcome = apart(name, limit_s=options.limit)
        results[name] = outcome | {"date": datetime.now(tz=UTC).date().isoformat(), "machine": machine}
        if name == "build":
            _use_what_was_built(results)
        write(path, report(card, machine, results))
    print(f"written: {path}")
    subprocess.run([sys.executable, PROJECT / "benchmarks" / "card_page.py", path], check=False)
    made = {name: results[name] for name in asked}
    print(not_made(made))
    return exit_status(made)


def checks(limit_s: float = CHECK_TIMEOUT_S) -> dict[str, Check]:
    """In the order in which they run: the later ones rest on the earlier. limit_s: for each."""
    return {
        "build": build_check,
        "kernel parity": parity_check,
        "kernel bandwidth": bandwidth_check,
        "compute-sanitizer": sanitizer_check,
        "torch tensors": _from("gpu_torch", "tensors_check"),
        "denoise": _from("gpu_torch", "denoise_check"),
        "Triton with GPU instances": _from("gpu_server", "server_check"),
        "engines": engines_check,
        "Triton with every model on the card": _from("gpu_server", "deployed_check"),
        "peers at 512²": partial(peers_check, "512²", limit_s),
        "peers at 12 MP": partial(peers_check, "12 MP", limit_s),
    }


def apart(name: str, script: Path = Path(__file__), limit_s: float = CHECK_TIMEOUT_S) -> dict[str, Any]:
    """Run one check in a process of its own: what one does to a card spoils CUDA for the rest of its process."""
    with tempfile.TemporaryDirectory(prefix="exposure_gpu_check_") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, script, "--only", name, "--result", result, "--limit", str(limit_s)]
        sys.stdout.flush()  # what it prints comes after
        process = subprocess.Popen(command, start_new_session=True)  # to be ended with all that it starts
        try:
            status = process.wait(limit_s)
            why = f"its process was ended by signal {-status}" if status < 0 else f"its process ended with {status}"
        except subprocess.TimeoutExpired:
            why = f"it took more than {limit_s:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if result.exists():
            return dict(json.loads(result.read_text()))
    print(f"{'failed':12} {name}: {why}", flush=True)
    return {"outcome": "failed", "why": why}


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
    passed = outcomes.get("kernel parity", "passed") == "passed" and "passed" in outcomes.values()
    return int("failed" in outcomes.values() or not passed)


def not_made(results: dict[str, dict[str, Any]]) -> str:
    """The last line: how many of all checks were not made, and why; each engine is one, and each peer at a size."""
    checks: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        peers = {f"{peer} at {name.partition(' at ')[2]}": told for peer, told in result.get("peers", {}).items()}
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


def build_check() -> dict[str, Any]:
    """The installed CUDA kernels, if as new as their sources; else built now by the project's own CMake file."""
    if _built() and not _outdated():
        return {"kernels": "as installed"}
    if nvcc() is None:
        raise NotCheckedError(f"{_unbuilt()} and no nvcc is on PATH, in CUDACXX or in /usr/local/cuda")
    if program("cmake") is None:
        raise NotCheckedError(f"{_unbuilt()} and no cmake is here to build them with")
    prefix = _prefix()
    backend = "ON" if found()["openvino"] != "not found" else "OFF"
    options = ["-DEXPOSURE_CUDA=ON", f"-DEXPOSURE_BACKEND={backend}"]
    options += [f"-DCMAKE_CUDA_COMPILER={nvcc()}", f"-DPython_EXECUTABLE={sys.executable}"]
    _cmake("-S", PROJECT / "kernels", "-B", BUILD / "cmake", *options)
    _cmake("--build", BUILD / "cmake", "--parallel")
    _cmake("--install", BUILD / "cmake", "--prefix", prefix)
    importlib.invalidate_caches()
    if not _built():
        raise RuntimeError(f"the build left no CUDA kernels in {prefix}")
    return {"kernels": "built now", "backend": backend} | ({"package": str(BUILD)} if prefix == BUILD else {})


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
        return how | {"kernels": kernels.bandwidth(gpu)}


def sanitizer_check() -> dict[str, Any]:
    tool = program("compute-sanitizer")
    if tool is None:
        raise NotCheckedError(f"compute-sanitizer is not on PATH and not in {CUDA_HOME / 'bin'}")
    _kernels()[0].close()
    tools = {}
    for kind in ("memcheck", "initcheck"):
        script = PROJECT / "benchmarks" / "gpu_kernels.py"
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, script]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
        said = " ".join((result.stdout + result.stderr).split())
        if "not supported" in said and "ERROR SUMMARY" not in said:
            raise NotCheckedError(f"compute-sanitizer does not support this device here: {said[-200:]}")
        if result.returncode:
            raise RuntimeError(f"{kind} found something (exit {result.returncode}): {said[-600:]}")
        tools[kind] = "clean"
    return tools


def engines_check() -> dict[str, Any]:
    """Engines of the shipped checkpoint, built on the card, held against FP32 torch and timed."""
    try:
        from gpu_engine import check_engines

        from exposure.assets import CHECKPOINT
    except ModuleNotFoundError as error:
        raise NotCheckedError(f"{error.name} is not here") from error
    engines = check_engines(CHECKPOINT, (4240, 2832))
    outcomes = {result["outcome"] for result in engines.values()}
    if outcomes == {"not checked"}:
        raise NotCheckedError("; ".join(f"{name}: {result['why']}" for name, result in engines.items()))
    return {"outcome": "failed" if "failed" in outcomes else "passed", "engines": engines}


def peers_check(size: str, limit_s: float) -> dict[str, Any]:
    """The network by every means that a card offers, in turn, under the card's own ceilings."""
    try:
        from gpu_benchmark import measured
    except ModuleNotFoundError as error:
        raise NotCheckedError(f"{error.name} is not here") from error
    return measured(size, limit_s)


def _from(module: str, name: str) -> Check:
    """A check of another file, which is imported when the kernels are there."""

    def check() -> dict[str, Any]:
        if not _built():
            raise NotCheckedError("the CUDA kernels are not built")
        return getattr(importlib.import_module(module), name)()

    return check


def _kernels() -> tuple[Any, Any]:
    if not _built():
        raise NotCheckedError("the CUDA kernels are not built")
    from gpu_device import Gpu

    from exposure.kernels.library import cuda_library

    return Gpu(cuda_library()), importlib.import_module("gpu_kernels")


def _built() -> bool:
    try:
        library = importlib.import_module("exposure.kernels.library")
        return all(library.built(name) for name in (library.NAME, library.CUDA))
    except (ImportError, OSError):
        return False


def _outdated() -> bool:
    """Whether a source is newer than what was built of it, as after an update that found no nvcc."""
    library = importlib.import_module("exposure.kernels.library")
    built = min(library.built(name).stat().st_mtime for name in (library.NAME, library.CUDA))
    sources = [PROJECT / "kernels" / "CMakeLists.txt", *(PROJECT / "kernels" / "csrc").iterdir()]
    return any(source.stat().st_mtime > built for source in sources)


def _unbuilt() -> str:
    return f"the CUDA kernels are {'older than their sources' if _built() else 'not built'}"


def _prefix() -> Path:
    """Where to install what is built: beside the installed CPU kernels; else a package put together in build/."""
    try:
        library = importlib.import_module("exposure.kernels.library")
        return Path(library.built(library.NAME)).parents[2]
    except (ImportError, OSError):
        return package_in_build()


def package_in_build() -> Path:
    """The layout that the installed package has, of links to the sources, for an environment that pip cannot reach."""
    package = BUILD / "exposure"
    kernels = package / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    links = {package / source.name: source for source in (PROJECT / "exposure").iterdir()}
    links |= {package / name: PROJECT / name for name in ("client", "export", "training")}
    links |= {kernels / source.name: source for source in (PROJECT / "kernels").glob("*.py")}
    for link, source in links.items():
        if not link.is_symlink() and source.name != "__pycache__":
            link.symlink_to(source)
    for name in [name for name in sys.modules if name.partition(".")[0] == "exposure"]:
        del sys.modules[name]
    sys.path.insert(0, str(BUILD))
    return BUILD


def _use_what_was_built(results: dict[str, Any]) -> None:
    """In all that follows, and in the processes it starts."""
    if package := results.get("build", {}).get("package"):
        os.environ["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])


def _cmake(*arguments: Any) -> None:
    command = [program("cmake"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    if result.returncode:
        raise RuntimeError(f"cmake {arguments[0]} failed: {' '.join(result.stderr.split())[-600:]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument(
        "--checks", nargs="+", choices=list(checks()), metavar="NAME", help="only these, beside what was found before"
    )
    parser.add_argument("--limit", type=float, default=CHECK_TIMEOUT_S, metavar="SECONDS", help="for each check")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one check, in this process
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # where to
    return parser


if __name__ == "__main__":
    # the files beside this one import it by name: let them find this very module, and its NotCheckedError
    sys.modules["gpu_check"] = sys.modules["__main__"]
    sys.exit(main())
