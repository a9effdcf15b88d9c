"""Start, watch and stop a real Triton server: the one that PyPI's pytriton wheel carries."""

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from exposure.assets import MODEL_REPOSITORY
from exposure.kernels.library import BACKEND, built

from .triton import Client, ServerError, ServerGoneError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
# Large frames are allocated anew for each request; without these, page faults dominate the copies.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
# Run a program that is sent SIGTERM when its parent dies, however that happens (prctl 1: PR_SET_PDEATHSIG); the parent
# may have died before this was said.
DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class ServerOptions:
    """Loopback only unless `host` says otherwise; port 0 picks a free one."""

    repository: Path = MODEL_REPOSITORY
    config_name: str = "cpu"
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002


class Server:
    """A running tritonserver. Made by `running_server`."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self.process, self.address, self.log = process, address, log

    def peak_memory_bytes(self) -> int:
        """The most memory that the server has held so far (VmHWM of proc(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    def failure(self) -> str:
        """Why a model did not load, or what the server said last: the tail of an error message."""
        log = self.log.read_text(errors="replace")
        unloaded = re.search(r'failed to load .* version \d+: (?:\w+: )*(.*?)(?:\\n|"|$)', log, re.MULTILINE)
        if unloaded:
            return unloaded[1]
        return next((line for line in reversed(log.splitlines()) if line), "it said nothing").removeprefix("error: ")


@contextlib.contextmanager
def running_server(options: ServerOptions) -> Iterator[Server]:
    """Serve until the block ends. Yields only after a real inference succeeded in every ensemble.

    Raises ServerError, one sentence, for a taken port, a missing engine or a server that does not start.
    """
    _check_engine(options)
    options = _with_ports(options)
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=f"exposure_server_{os.getpid()}_") as folder:
        run = Path(folder)
        with (run / "log").open("wb") as log:
            process = subprocess.Popen(  # its own session: Ctrl-C reaches us, and we stop it in order
                _command(options, _backends(run)),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        server = Server(process, f"{_reachable(options.host)}:{options.grpc_port}", run / "log")
        try:
            _wait_until_ready(server)
            yield server
        finally:
            _stop(process)


def remove_leftovers() -> None:
    """Remove run folders and shared memory of servers, clients and pages that were killed before they could."""
    for place in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        for leftover in place.glob("exposure_*"):
            owner = re.match(r"exposure_(?:server|client|ui)_(\d+)_", leftover.name)
            if not owner or Path("/proc", owner[1]).exists():
                continue
            with contextlib.suppress(OSError):  # another start may be removing it too
                if leftover.stat().st_uid == os.getuid():
                    shutil.rmtree(leftover, ignore_errors=True)
                    leftover.unlink(missing_ok=True)


def _check_engine(options: ServerOptions) -> None:
    engine = options.repository / "denoiser" / "1" / "openvino"
    if not (options.repository / "denoiser").is_dir():
        raise ServerError(f"{options.repository} is not a model repository; it has no denoiser folder")
    if options.config_name == "cpu" and not (engine / "manifest.json").is_file():
        raise ServerError(f"no engine in {engine}; build one with: python export/build_engine.py")


def _with_ports(options: ServerOptions) -> ServerOptions:
    """Replace every port 0 by a free one, and refuse taken ones by name."""
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:  # all at once, so that no port is given twice
        for name in ("grpc_port", "http_port", "metrics_port"):
            wanted = getattr(options, name)
            trial = held.enter_context(socket.socket())
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((options.host, wanted))
            except (OSError, OverflowError) as error:
                port_is_at_fault = isinstance(error, OverflowError) or error.errno in (errno.EADDRINUSE, errno.EACCES)
                flag = "--" + name.replace("_", "-") if port_is_at_fault else "--host"
                reason = getattr(error, "strerror", None) or error
                raise ServerError(f"cannot listen on {options.host}:{wanted} ({reason}); try another {flag}") from error
            chosen[name] = trial.getsockname()[1]
    return ServerOptions(options.repository, options.config_name, options.host, **chosen)


def _tritonserver() -> Path:
    return _package("pytriton") / "tritonserver"


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"{name} is not installed, and the server needs it: pip install 'exposure[server]'")
    return Path(spec.submodule_search_locations[0])


def _backends(run: Path) -> Path:
    """A backend folder with our own backend in it."""
    folder = run / "backends"
    (folder / "exposure").mkdir(parents=True)
    (folder / "exposure" / BACKEND).symlink_to(built(BACKEND))
    return folder


def _command(options: ServerOptions, backends: Path) -> list[str]:
    host = options.host
    return [
        *(sys.executable, "-c", DIE_WITH_PARENT, str(os.getpid())),
        str(_tritonserver() / "bin" / "tritonserver"),
        f"--model-repository={options.repository}",
        f"--backend-directory={backends}",
        f"--model-config-name={options.config_name}",
        "--disable-auto-complete-config",  # the checked-in text is the truth
        "--model-control-mode=explicit",
        "--load-model=*",
        *(f"--{kind}-address={host}" for kind in ("grpc", "http")),
        f"--metrics-address={host}",
        f"--grpc-port={options.grpc_port}",
        f"--http-port={options.http_port}",
        f"--metrics-port={options.metrics_port}",
        "--exit-timeout-secs=5",
    ]


def _environment() -> dict[str, str]:
    libraries = [str(_tritonserver().parent.parent / "nvidia_pytriton.libs"), str(_package("openvino") / "libs")]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, **MALLOC, "LD_LIBRARY_PATH": ":".join([*libraries, *([inherited] if inherited else [])])}


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def _wait_until_ready(server: Server) -> None:
    """Ready is an answered request in every ensemble: health stays 200 when a model process has died."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(server.address, timeout_s=START_TIMEOUT_S) as client:
        client.shared_memory = False  # tiny requests
        while True:
            if server.process.poll() is not None:
                raise ServerError(f"the server did not start: {server.failure()}")
            try:
                client.probe()
                return
            except ServerGoneError as error:  # the models are loading; any other error is final
                if time.monotonic() > deadline:
                    raise ServerError(f"the server is not ready after {START_TIMEOUT_S:.0f} s: {error}") from error
            time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then make sure; the whole session, so that no model process stays behind."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def server_is_installed() -> bool:
    """Whether this environment can start a server of its own."""
    return find_spec("pytriton") is not None
