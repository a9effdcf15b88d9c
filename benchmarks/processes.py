"""Processes that end with the one that started them, when their time is up, or when all is told to end."""

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

GPU_CHECK = Path(__file__).with_name("gpu_check.py")
WRITE_S = 10.0  # kept of the budget: what was found is written, and its page
LEAST_S = 5.0  # a check that has less is not begun
NO_TIME, ENDED = "no time was left", "gpu-check was told to end"
# As in client/server.py, which cannot be imported here: run a program that is killed when its parent dies, however that
# happens (prctl 1: PR_SET_PDEATHSIG); the parent may have died before this was said.
DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(command: list[Any]) -> list[str]:
    """The command, of a process that is killed when this one dies."""
    launcher = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid())] if sys.platform == "linux" else []
    return [*launcher, *map(str, command)]


def die_with_parent(parent: int) -> None:
    """The same for this very process, which `parent` has started."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


class Runner:
    """Checks in processes of their own: what one does to a card spoils CUDA for the rest of its process.

    budget_s: for all together, from now on; what is then left is not checked. In a block, SIGTERM ends the check that
    runs, and no other is begun. script: takes --only NAME --result FILE --until TIME, of the monotonic clock.
    """

    def __init__(self, budget_s: float = math.inf, script: Path = GPU_CHECK) -> None:
        self._until, self._script = time.monotonic() + budget_s - WRITE_S, script
        self._process: subprocess.Popen[bytes] | None = None
        self.ended = False

    def __enter__(self) -> "Runner":
        self._before = signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def hindrance(self) -> str | None:
        """Why no other check may begin."""
        if self.ended:
            return ENDED
        return NO_TIME if time.monotonic() > self._until - LEAST_S else None

    def apart(self, name: str, limit_s: float) -> dict[str, Any]:
        """One check; where it did not come to its end, what it had kept until then, and why."""
        allowed_s = min(limit_s, self._until - time.monotonic())
        with tempfile.TemporaryDirectory(prefix="exposure_gpu_check_") as folder:
            path = Path(folder) / "result.json"
            status = self._status(name, path, allowed_s)
            found = dict(json.loads(path.read_text())) if path.exists() else {}
        if found and not found.pop("unfinished", False):
            return found
        outcome = found.get("outcome", "failed")
        if self.ended:
            outcome, why = found.get("outcome", "not checked"), ENDED
        elif status is not None:
            outcome = "failed"
            why = f"its process was ended by signal {-status}" if status < 0 else f"its process ended with {status}"
        elif allowed_s < limit_s:
            outcome, why = found.get("outcome", "not checked"), f"{NO_TIME} after {allowed_s:.0f} s"
        else:
            why = f"it took more than {limit_s:.0f} s"
        print(f"{outcome:12} {name}: {why}", flush=True)
        return found | {"outcome": outcome, "why": why}

    def _status(self, name: str, result: Path, allowed_s: float) -> int | None:
        """How its process ended; None where it did not in its time. Nothing that it started is left."""
        until = ["--until", str(time.monotonic() + allowed_s)]
        command = tied([sys.executable, self._script, "--only", name, "--result", result, *until])
        sys.stdout.flush()  # what it prints comes after
        self._process = subprocess.Popen(command, start_new_session=True)  # to be ended with all that it starts
        try:
            if self.ended:  # told before there was a process to kill
                self._kill()
            return self._process.wait(allowed_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._kill()
            self._process.wait()
            self._process = None

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self.ended = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
