"""The `exposure` command: denoise, serve, sample, demo."""

import argparse
import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

import exposure
from exposure.assets import MODEL_REPOSITORY
from exposure.noise import calibrated_camera, choose_gain
from exposure.schedule import SERVED_PASSES

from . import demo, output, rawfile
from .hardware import ENGINES, Choice, choose_config
from .sample import make_sample
from .server import ServerOptions, running_server, server_is_installed
from .triton import Client, ServerError, ServerGoneError

DEFAULT_SERVER = os.environ.get("EXPOSURE_SERVER", "localhost:8001")


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; 0 on success, 1 with a sentence on standard error otherwise, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # all end in order, with nothing left behind
        signal.signal(ending, signal.default_int_handler)
    try:
        return int(options.run(options))
    except (ServerError, ValueError, OSError) as error:
        _complain(str(error))
        return 1
    except ModuleNotFoundError as error:
        _complain(f"{error.name} is not installed; the sample and the demo need it: pip install 'exposure[demo]'")
        return 1
    except KeyboardInterrupt:
        return 130


def denoise_files(options: argparse.Namespace) -> int:
    """Denoise every file that can be; report and skip the others."""
    if not options.ratio >= 1:
        raise ValueError(f"--ratio is {options.ratio:g}; a target exposure is at least the file's own (1)")
    formats = options.format.split(",")
    for name in formats:
        if name not in output.FORMATS:
            raise ValueError(f'--format "{name}" is unknown; choose from {",".join(output.FORMATS)}')
    if options.gain is not None and not options.gain > 0:
        raise ValueError(f"--gain is {options.gain:g}; it must be positive, in DN per electron")
    _prepare_folder(options.out)
    inputs = {path.resolve() for path in options.files}
    failed, taken = 0, set[str]()
    with contextlib.ExitStack() as stack:

        @functools.cache
        def client() -> Client:  # when the first good file wants it
            try:
                return stack.enter_context(client_for(options.server))
            except ServerError as error:
                raise ServerGoneError(str(error)) from error

        for path in tqdm(options.files, unit="file", disable=len(options.files) < 2 or not sys.stderr.isatty()):
            try:
                if path.stem in taken:
                    raise rawfile.RawFileError(f"another file named {path.stem} has been written to {options.out}")
                targets = [options.out / f"{path.stem}_exposed.{suffix}" for suffix in formats]
                for target in targets:
                    if target.resolve() in inputs:
                        raise rawfile.RawFileError(f"its result {target} is an input too; choose another --out")
                _denoise_file(client, path, targets, options)
                taken.add(path.stem)
            except ServerGoneError:
                raise
            except Exception as error:  # whatever is odd about one file, the others get their turn
                failed += 1
                known = isinstance(error, ServerError | ValueError | OSError)
                _complain(f"{path}: {error if known else f'it cannot be processed ({error!r})'}")
    if failed and len(options.files) > 1:
        _complain(f"{failed} of {len(options.files)} files failed")
    return 1 if failed else 0


def _denoise_file(client: Callable[[], Client], path: Path, targets: list[Path], options: argparse.Namespace) -> None:
    file = rawfile.read(path)
    gain, reason = _gain(file, options)
    server = client()
    started = time.perf_counter()
    result = server.denoise(
        file.mosaic, file.sensor, ratio=options.ratio, gain=gain, passes=options.passes, seed=options.seed
    )
    seconds = time.perf_counter() - started
    for target in targets:
        output.write(target, file, result)
    if options.preview:
        targets = [*targets, options.out / f"{path.stem}_preview.png"]
        output.write_preview(targets[-1], file, result, options.ratio)
    megapixels = file.mosaic.size / 1e6
    tqdm.write(f"{path}: {megapixels:.1f} MP, gain {gain:.3g} DN/e- ({reason}), {seconds:.1f} s")
    for target in targets:
        tqdm.write(f"  {target}")


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written to ({(error.strerror or str(error)).lower()})") from error


def _gain(file: rawfile.RawFile, options: argparse.Namespace) -> tuple[float, str]:
    if options.gain is not None:
        return options.gain, "as given"
    if options.iso is not None and not calibrated_camera(file.model):
        raise ValueError(f"--iso needs a calibrated camera, and {file.model or 'this one'} is none; give --gain")
    iso = file.iso if options.iso is None else options.iso
    return choose_gain(file.model, iso, file.noise_profile, file.sensor.saturation)


@contextlib.contextmanager
def client_for(address: str | None) -> Iterator[Client]:
    """A client of the server at `address`; without one, of a local server, started for the block if none runs."""
    with Client(address or DEFAULT_SERVER) as client:
        if client.is_ready():
            yield client
            return
    if address:
        raise ServerError(f"no exposure server answers at {address}")
    if not server_is_installed():
        raise ServerError("no server is running here and none is installed; give --server HOST:PORT")
    print("starting a server for this call ...", file=sys.stderr)
    with (
        running_server(ServerOptions(grpc_port=0, http_port=0, metrics_port=0)) as server,
        Client(server.address) as client,
    ):
        yield client


def serve(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    choice = Choice(options.config, "as asked for") if options.config else choose_config(options.repository)
    print(f"configuration {choice.config_name}: {choice.why}", file=sys.stderr, flush=True)
    settings = ServerOptions(
        options.repository,
        choice.config_name,
        options.host,
        options.grpc_port,
        options.http_port,
        options.metrics_port,
    )
    with running_server(settings) as server:
        print(f"ready: gRPC at {server.address}; stop with Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.process.wait()
            raise ServerError(f"the server stopped: {server.failure()}")
    return 0


def sample(options: argparse.Namespace) -> int:
    """Make the low-light sample."""
    made = make_sample(options.out, ratio=options.ratio, iso=options.iso, seed=options.seed)
    print(f"{made.dark}: needs {made.ratio:g} times the exposure, gain {made.gain:.3g} DN/e-")
    print(f"{made.clean}: the same scene without noise")
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """Make the sample, denoise it, show what it brought."""
    with client_for(options.server) as client:
        demo.run(client, options.out)
    return 0


def _complain(sentence: str) -> None:
    tqdm.write(f"exposure: {sentence}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="exposure", description=exposure.__doc__)
    parser.add_argument("--version", action="version", version=f"exposure {exposure.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    this = commands.add_parser("denoise", help="expose RAW files longer", description="Expose RAW files longer.")
    this.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="Bayer RAW files of any camera that LibRaw reads"
    )
    this.add_argument("--ratio", type=float, required=True, help="target exposure / exposure of the file, at least 1")
    known = this.add_mutually_exclusive_group()
    known.add_argument("--gain", type=float, help="system gain in DN per electron (default: from the file)")
    known.add_argument("--iso", type=float, help="ISO of the file, for calibrated cameras (default: from the file)")
    this.add_argument("--passes", type=int, choices=SERVED_PASSES, default=3, help="network evaluations (default: 3)")
    this.add_argument("--seed", type=int, default=0, help="of the injected photon noise (default: 0)")
    this.add_argument("--server", metavar="HOST:PORT", help=f"default: {DEFAULT_SERVER}, else one started for the call")
    this.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where results go (default: here)")
    this.add_argument("--format", default="dng", help="one or more of dng,tiff,png (default: dng)")
    this.add_argument("--preview", action="store_true", help="also write before and after side by side")
    this.set_defaults(run=denoise_files)

    this = commands.add_parser("serve", help="run the server", description="Run the Triton server in the foreground.")
    this.add_argument("--repository", type=Path, default=MODEL_REPOSITORY, help="model repository with an engine")
    this.add_argument("--config", choices=ENGINES, help="configuration to serve (default: what fits this machine)")
    this.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    this.add_argument("--grpc-port", type=int, default=8001, help="default: 8001; 0 picks a free one")
    this.add_argument("--http-port", type=int, default=8000, help="default: 8000; 0 picks a free one")
    this.add_argument("--metrics-port", type=int, default=8002, help="default: 8002; 0 picks a free one")
    this.set_defaults(run=serve)

    this = commands.add_parser("sample", help="make a low-light RAW file", description=sample.__doc__)
    this.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="default: here")
    this.add_argument("--ratio", type=float, default=100, help="how many times too short (default: 100)")
    this.add_argument("--iso", type=float, default=3200, help="of the simulated Sony A7S2 (default: 3200)")
    this.add_argument("--seed", type=int, default=0, help="of the simulated noise (default: 0)")
    this.set_defaults(run=sample)

    this = commands.add_parser("demo", help="denoise a sample and show it", description=run_demo.__doc__)
    this.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: ./demo")
    this.add_argument("--server", metavar="HOST:PORT", help=f"default: {DEFAULT_SERVER}, else one started for the call")
    this.set_defaults(run=run_demo)
    return parser


if __name__ == "__main__":
    sys.exit(main())
