"""Start, watch and stop a real Triton server: the one that pytriton's wheel carries."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from exposure.assets import MODEL_REPOSITORY
from exposure.kernels.library import BACKEND, built
from exposure.kernels.manifest import build_command

from .hardware import ENGINES
from .shared_memory import remove_abandoned_regions
from .triton import Client, ServerError, ServerGoneError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
POOL_SLACK = 128 << 20  # of the card's: results on their way out, and what lies scattered
# A browser sends a header of one's own only to addresses that agree to it, and Triton never does: so no foreign page
# that happens to be open can use the server, whose JSON parser a few bytes can end.
RESTRICTED = "inference,shared-memory,model-repository,trace,logging:exposure=yes"
MARK = ".temporary_folder_of_exposure"  # no other folder is ever removed, whatever its name is
# Large frames are allocated anew for each request; without these, page faults dominate the copies.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
# Run a program that is sent SIGTERM when its parent dies, however that happens (prctl 1: PR_SET_PDEATHSIG), or when the
# thread that started it ends; the parent may have died before this was said.
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
    megapixels_in_flight: int = 128  # of all requests at once; who comes beyond is refused, and may ask again
    instances: int = 1  # of the denoiser: frames that it computes at once, each on its share of the cores


class Server:
    """A running tritonserver. Made by `running_server`. address, http, metrics: HOST:PORT of gRPC and the other two."""

    def __init__(self, process: subprocess.Popen[bytes], options: ServerOptions, log: Path) -> None:
        ports = (options.grpc_port, options.http_port, options.metrics_port)
        self.address, self.http, self.metrics = (f"{_reachable(options.host)}:{port}" for port in ports)
        self.process, self.log = process, log

    def failure(self) -> str:
        """What killed it, why a model did not load, or what the server said last: the tail of an error message."""
        status = self.process.poll()
        if status is not None and status < 0 and -status != signal.SIGTERM:
            from_memory = "; memory may not have sufficed" if -status == signal.SIGKILL else ""
            return f"{signal.Signals(-status).name} ended it{from_memory}"
        log = self.log.read_text(errors="replace")
        unloaded = re.search(r'failed to load .* version \d+: (?:\w+: )*(.*?)(?:\\n|"|$)', log, re.MULTILINE)
        if unloaded:
            return unloaded[1]
        lines = [line for line in log.splitlines() if line]
        told = [line for line in lines if not re.match(r"[WI]\d{4} ", line)]  # no warnings, no remarks
        return next(reversed(told or lines), "it said nothing").removeprefix("error: ")


@contextlib.contextmanager
def running_server(options: ServerOptions) -> Iterator[Server]:
    """Serve until the block ends. Yields only after a real inference succeeded in every ensemble.

    Raises ServerError, one sentence, for a taken port, a missing engine or a server that does not start.
    """
    _check_engine(options)
    options = _with_ports(options)
    remove_leftovers()
    with held_folder("server") as run:
        with (run / "log").open("wb") as log:
            process = subprocess.Popen(  # its own session: Ctrl-C reaches us, and we stop it in order
                _command(options, _repository(run, options), _backends(run)),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        server = Server(process, options, run / "log")
        try:
            _wait_until_ready(server)
            yield server
        finally:
            _stop(process)


@contextlib.contextmanager
def held_folder(name: str) -> Iterator[Path]:
    """A folder for temporary files, removed at the end; where its owner was killed, by the next start of a server.

    Its lock tells that the owner lives, also to those who cannot see the process, as in another container.
    """
    hidden = Path(tempfile.mkdtemp(prefix=f".exposure_{name}_{os.getpid()}_"))
    (hidden / MARK).touch()
    handle = os.open(hidden, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    folder = hidden.rename(hidden.with_name(hidden.name[1:]))  # locked before anybody looks for it
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_leftovers() -> None:
    """Remove the folders and shared memory of servers and clients that were killed before they could."""
    remove_abandoned_regions()
    for mark in Path(tempfile.gettempdir()).glob(f"exposure_*_*/{MARK}"):
        folder = mark.parent
        with contextlib.suppress(OSError):  # another user's, or another start is removing it too
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def checkpoint_of(server: Server, options: ServerOptions) -> str:
    """What is served, for people: the first digits of its checkpoint's SHA-256, and its licence.

    The server is asked; the licence, which it does not know, is the manifest's, if that still is of this checkpoint.
    """
    with Client(server.address) as client:
        checkpoint = client.checkpoint()
    told = json.loads((_engine(options) / "manifest.json").read_text())
    same = told.get("built_from", {}).get("checkpoint", "") == checkpoint
    licence = told.get("licence", "unknown") if same else "unknown, since another engine was installed meanwhile"
    return f"checkpoint {checkpoint[:12] or 'unknown'}, licence {licence}"


def _engine(options: ServerOptions) -> Path:
    return options.repository / "denoiser" / "1" / ENGINES[options.config_name]


def _check_engine(options: ServerOptions) -> None:
    engine = _engine(options)
    if not (options.repository / "denoiser").is_dir():
        raise ServerError(f"{options.repository} is not a model repository; it has no denoiser folder")
    if not (engine / "manifest.json").is_file():
        command = build_command(options.repository, engine.name)
        raise ServerError(f"no engine in {engine}; build one with: {command}")


def _with_ports(options: ServerOptions) -> ServerOptions:
    """Replace every port 0 by a free one, and refuse taken ones by name."""
    wishes = {name: getattr(options, name) for name in ("grpc_port", "http_port", "metrics_port")}
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:  # all at once, so that no port is given twice
        for name, wanted in sorted(wishes.items(), key=lambda wish: wish[1] == 0):  # no free one is one asked for
            trial = held.enter_context(socket.socket())
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((options.host, wanted))
                trial.listen()  # else, with SO_REUSEADDR, another may be bound to the same port
            except (OSError, OverflowError) as error:
                port_is_at_fault = isinstance(error, OverflowError) or error.errno in (errno.EADDRINUSE, errno.EACCES)
                flag = "--" + name.replace("_", "-") if port_is_at_fault else "--host"
                reason = getattr(error, "strerror", None) or error
                raise ServerError(f"cannot listen on {options.host}:{wanted} ({reason}); try another {flag}") from error
            chosen[name] = trial.getsockname()[1]
    return replace(
        options,
        grpc_port=chosen["grpc_port"],
        http_port=chosen["http_port"],
        metrics_port=chosen["metrics_port"],
    )


def _tritonserver() -> Path:
    return _package("pytriton") / "tritonserver"


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"{name} is not installed, and the server needs it: pip install -e '.[server]'")
    return Path(spec.submodule_search_locations[0])


def _repository(run: Path, options: ServerOptions) -> Path:
    """The model repository; for several instances links to its files, with a configuration of the denoiser's own."""
    if options.instances == 1:
        return options.repository

    def link(source: str, target: str) -> None:
        Path(target).symlink_to(Path(source).absolute())

    shutil.copytree(options.repository, run / "repository", copy_function=link)
    config = run / "repository" / "denoiser" / "configs" / f"{options.config_name}.pbtxt"
    several, found = re.subn(r"\bcount: \d+", f"count: {options.instances}", config.read_text())
    if found != 1:
        raise ServerError(f"{config.relative_to(run)} says count {found} times; for several instances it must once")
    config.unlink()
    config.write_text(several)
    return run / "repository"


def _backends(run: Path) -> Path:
    """A backend folder with our own backend in it, and Triton's Python backend, which only configs/rtx.pbtxt wants."""
    folder = run / "backends"
    (folder / "exposure").mkdir(parents=True)
    (folder / "exposure" / BACKEND).symlink_to(built(BACKEND))
    (folder / "python").mkdir()
    stub = f"{sys.version_info.major}.{sys.version_info.minor}"
    for part in [
        *(_tritonserver() / "backends" / "python").iterdir(),
        _tritonserver() / "python_backend_stubs" / stub / "triton_python_backend_stub",
    ]:
        (folder / "python" / part.name).symlink_to(part)
    return folder


def _command(options: ServerOptions, repository: Path, backends: Path) -> list[str]:
    host = options.host
    return [
        *(sys.executable, "-P", "-c", DIE_WITH_PARENT, str(os.getpid())),
        str(_tritonserver() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--model-config-name={options.config_name}",
        "--disable-auto-complete-config",  # the checked-in text is the truth
        "--model-control-mode=none",  # whoever may load models may run code
        f"--grpc-address={host}",
        f"--http-address={host}",
        f"--metrics-address={host}",
        f"--grpc-port={options.grpc_port}",
        f"--http-port={options.http_port}",
        f"--metrics-port={options.metrics_port}",
        "--metrics-config=summary_latencies=true",  # quantiles beside the counters, as in deploy/compose.yaml
        f"--http-restricted-api={RESTRICTED}",
        "--exit-timeout-secs=5",
        f"--backend-config=exposure,megapixels-in-flight={options.megapixels_in_flight}",
        *(_card_memory(options.megapixels_in_flight) if options.config_name == "rtx" else []),
    ]


def _card_memory(megapixels: int) -> list[str]:
    """Card 0 holds the tensors between models: of each request three images at most, 4 bytes a pixel each.

    The third is the one being computed. What does not fit goes into the host's memory, which must not be pinned: the
    Python backend leaves an output there unwritten, and calls that a success (server issues 7148 and 8177).
    """
    pool = 12_000_000 * megapixels + POOL_SLACK
    return [f"--cuda-memory-pool-byte-size=0:{pool}", "--pinned-memory-pool-byte-size=0"]


def _environment() -> dict[str, str]:
    libraries = [str(_tritonserver().parent.parent / "nvidia_pytriton.libs"), str(_package("openvino") / "libs")]
    libraries.append(sysconfig.get_config_var("LIBDIR"))  # libpython, of the Python backend
    inherited = os.environ.get("LD_LIBRARY_PATH")
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # where that backend finds this environment
    paths = {"PATH": path, "LD_LIBRARY_PATH": ":".join([*libraries, *([inherited] if inherited else [])])}
    return {**os.environ, **MALLOC, **paths}


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def _wait_until_ready(server: Server) -> None:
    """Ready is an answered request in every ensemble: health stays 200 when a model process has died."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(server.address, timeout_s=START_TIMEOUT_S, shared_memory=False) as client:  # tiny requests
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
