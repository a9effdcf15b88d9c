"""What every benchmark shares: interleaved rounds, their statistics, peak memory, the machine's record, JSON."""

import argparse
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import exposure
from exposure.assets import CHECKPOINT
from exposure.files import sha256, write_text

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "torch", "onnxruntime", "openvino", "nvidia-pytriton", "tritonclient", "rawpy")
CAPABILITIES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
LISTED_ROUNDS = 16  # of which the JSON holds every one; of more, the quantiles say it


def interleaved(
    works: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 1, until: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each work in each round: one after the other, so that a drifting machine hits all alike.

    Every round begins with another work, and every other one goes backwards, so that none always follows the same
    neighbour. A work that returns a float has measured itself, in another process. until: on the monotonic clock, after
    which no round but the first begins.
    """
    for _ in range(warm_up):
        for work in works.values():
            work()
    names = list(works)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        if turn and time.monotonic() > until:
            break
        step = -1 if turn % 2 else 1
        for name in (names[(turn + step * place) % len(names)] for place in range(len(names))):
            started = time.perf_counter()
            own = works[name]()
            taken[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return taken


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, p95, p99, extremes and the rounds themselves, in the unit of the values (linear between samples)."""
    median, p95, p99 = (rounded(q) for q in np.percentile(values, (50, 95, 99)))
    listed = {"rounds": [rounded(value) for value in values]} if len(values) <= LISTED_ROUNDS else {}
    extremes = {"least": rounded(min(values)), "most": rounded(max(values))}
    return {"median": median, "p95": p95, "p99": p99, **extremes, "samples": len(values), **listed}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """above / below, round by round: what drift cannot touch."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def rounded(value: float) -> float:
    """Four significant digits: more were never measured."""
    return float(f"{value:.4g}")


def peak_bytes(pid: int | None = None) -> int:
    """The most memory that a process has held so far (VmHWM of proc(5))."""
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def peak_gib(pid: int | None = None) -> float:
    """The same in GiB, for the JSON."""
    return round(peak_bytes(pid) / 2**30, 2)


def processor() -> str:
    """The processor's own name."""
    return _cpuinfo("model name") or platform.machine()


def slug() -> str:
    """A file name for this processor: xeon_2_cores."""
    plain = re.sub(r"\((R|TM)\)|@.*|\b(Intel|AMD|CPU|Processor|\d+-Core)\b", " ", processor())
    return re.sub(r"\W+", "_", plain.strip().lower()) + f"_{os.cpu_count()}_cores"


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    flags = _cpuinfo("flags").split()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "instructions": [name for name in CAPABILITIES if name in flags],
        "memory_gib": rounded(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


class Benchmark:
    """One script's run: its options, its clock, and the JSON that it leaves.

    quick: small sizes and few rounds, to try the script; such a result is printed, and written only with --out.
    megapixels: of the largest frame, for scripts that have a choice.
    """

    def __init__(self, script: str, about: str | None, *, rounds: int, megapixels: Sequence[int] = ()) -> None:
        parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
        parser.add_argument("--rounds", type=int, help=f"default: {rounds}, or 2 with --quick")
        parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
        parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: in benchmarks/results")
        if megapixels:
            most = "of the largest frame (default: %(default)s), smaller where time is short"
            parser.add_argument("--megapixels", type=int, choices=megapixels, default=megapixels[0], help=most)
        options = parser.parse_args()
        self.megapixels: int = getattr(options, "megapixels", 0)
        self.script, self.quick = script, options.quick
        self.rounds: int = options.rounds or (2 if options.quick else rounds)
        self._out: Path | None = options.out
        if self._out is None and not self.quick:
            self._out = RESULTS / f"{script}_{slug()}.json"
        self._started, self._load = time.monotonic(), os.getloadavg()
        self._own_s, self._busy_s = _own_seconds(), _busy_seconds()

    def say(self, what: str) -> None:
        """Progress, on standard error."""
        print(f"{time.monotonic() - self._started:6.1f} s  {self.script}: {what}", file=sys.stderr, flush=True)

    def _taken_by_others(self) -> float:
        """Share of all cores' time since the start that went to processes which are not ours; ours must have ended."""
        others = (_busy_seconds() - self._busy_s) - (_own_seconds() - self._own_s)
        return round(others / (time.monotonic() - self._started) / (os.cpu_count() or 1), 3)

    def finish(self, measured: dict[str, Any]) -> None:
        """Write the result, whole or not at all, and print it."""
        result = {
            "script": self.script,
            "quick": self.quick,
            "machine": machine(),
            "date": datetime.now(tz=UTC).date().isoformat(),
            "command": " ".join(["python", *sys.argv]),
            "versions": _versions(),
            "checkpoint": sha256(CHECKPOINT),
            "load_average": {"before": self._load[0], "after": os.getloadavg()[0]},
            "taken_by_others": self._taken_by_others(),
            "took_s": rounded(time.monotonic() - self._started),
            "measured": measured,
        }
        text = json.dumps(result, indent=1) + "\n"
        print(text)
        if self._out is not None:
            write_text(self._out, text)
            self.say(f"written to {self._out}")


def _own_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _busy_seconds() -> float:
    """CPU time of everything on this machine since it started (proc(5)), and what its host took for other machines."""
    user, nice, system, _idle, _wait, hard, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _versions() -> dict[str, str]:
    found = {"exposure": exposure.__version__}  # what an editable install was told may be older
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
