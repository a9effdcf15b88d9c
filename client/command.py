"""The `exposure` command: denoise, ui, serve, sample, demo; train and evaluate lie in training/."""

import argparse
import contextlib
import io
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

import exposure
from exposure.assets import MODEL_REPOSITORY
from exposure.files import reason_of

from . import demo, denoise_command
from .connection import is_this_machine
from .hardware import ENGINES, Configuration, choose_config
from .reach import add_server_flags, client_for
from .sample import make_sample
from .server import ServerOptions, checkpoint_of, held_folder, running_server
from .triton import ServerError

# When the first signal came; its KeyboardInterrupt is lost where Python happens to be in a weak reference's callback.
_signalled: list[float] = []
PATIENCE_S = 10.0  # what ending in order may take; a signal after that ends the process as it is
INTERRUPTED = 130  # exit status
OPEN = 'see "Serving other machines" in client/README.md'


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; 0 on success, 130 after Ctrl-C, otherwise a sentence on standard error and 1, or 75 where
    `denoise` may go on later.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _signalled.clear()
    extra = {"train": "train", "evaluate": "train", "ui": "ui"}.get("".join(arguments[:1]), "demo")
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # all end in order, with nothing left behind
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(ending, _end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        options = _parser(arguments).parse_args(arguments)
        return int(options.run(options))
    except OSError as error:
        _complain(f"{error.filename}: {reason_of(error)}" if error.filename else str(error))
        return 1
    except (ServerError, ValueError) as error:
        _complain(str(error))
        return 1
    except ModuleNotFoundError as error:
        _complain(f"{error.name} is not installed; this command needs it: pip install -e '.[{extra}]'")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _end(number: int, frame: FrameType | None) -> None:
    """The first signal ends the command in order; those that follow at once, as `timeout` sends, do not disturb it."""
    if not _signalled:
        _signalled.append(time.monotonic())
        signal.default_int_handler(number, frame)
    if time.monotonic() > _signalled[0] + PATIENCE_S:
        os._exit(INTERRUPTED)  # what was started ends with its parent


def ui(options: argparse.Namespace) -> int:
    """Show a page on which RAW files are dropped, until Ctrl-C or SIGTERM."""
    if not 1 <= options.port <= 65535:
        raise ValueError(f"--port is {options.port}; it is a number from 1 to 65535")
    with held_folder("ui") as folder, client_for(options) as client:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio reads it when it is loaded, which takes seconds
        from . import page

        page.show(client, folder, options.host, options.port)
    return 0


def serve(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    if not 1 <= options.in_flight <= 1_000_000:
        raise ValueError(f"--in-flight is {options.in_flight}; it is 1 to 1000000 megapixels")
    if not options.host:
        raise ValueError("--host is empty; it is an address to listen on")
    if not 1 <= options.instances <= (os.cpu_count() or 1):
        raise ValueError(f"--instances is {options.instances}; it is 1 to {os.cpu_count()}, the cores of this machine")
    choice = Configuration(options.config, "as asked for") if options.config else choose_config(options.repository)
    print(f"configuration {choice.config_name}: {choice.why}", file=sys.stderr, flush=True)
    settings = ServerOptions(
        repository=options.repository,
        config_name=choice.config_name,
        host=options.host,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        megapixels_in_flight=options.in_flight,
        instances=options.instances,
    )
    with running_server(settings) as server:
        if not is_this_machine(options.host):
            _complain(f"{options.host} is open to other machines, without password or encryption: {OPEN}")
        others = f"HTTP at {server.http}; metrics at http://{server.metrics}/metrics"
        print(f"ready: gRPC at {server.address}; {others}; stop with Ctrl-C", flush=True)
        print(f"{checkpoint_of(server, settings)}; its log, deleted when it stops: {server.log}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            if _signalled:
                return 0
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
    with client_for(options) as client:
        demo.run(client, options.out)
    return 0


def _complain(sentence: str) -> None:
    tqdm.write(f"exposure: {sentence}", file=sys.stderr)


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="exposure", description=exposure.__doc__)
    parser.add_argument("--version", action="version", version=f"exposure {exposure.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    denoise_command.add_parser(commands)

    this = commands.add_parser("ui", help="drop RAW files on a page in the browser", description=ui.__doc__)
    this.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    this.add_argument("--port", type=int, default=7860, help="default: 7860")
    add_server_flags(this)
    this.set_defaults(run=ui)

    _add_serve(commands)

    this = commands.add_parser("sample", help="make a low-light RAW file", description=sample.__doc__)
    this.add_argument("--out", type=denoise_command.given_path, default=Path(), metavar="DIR", help="default: here")
    this.add_argument("--ratio", type=float, default=100, help="how many times too short (default: 100)")
    this.add_argument("--iso", type=float, default=3200, help="of the simulated Sony A7S2 (default: 3200)")
    this.add_argument("--seed", type=int, default=0, help="of the simulated noise (default: 0)")
    this.set_defaults(run=sample)

    this = commands.add_parser("demo", help="denoise a sample and show it", description=run_demo.__doc__)
    where = Path("demo")
    this.add_argument("--out", type=denoise_command.given_path, default=where, metavar="DIR", help="default: ./demo")
    add_server_flags(this)
    this.set_defaults(run=run_demo)

    train = commands.add_parser("train", help="train a network of your own")
    evaluate = commands.add_parser("evaluate", help="what a checkpoint or an engine is worth, in dB")
    if arguments[:1] in (["train"], ["evaluate"]):  # their flags need torch, which nothing else here waits for
        from exposure.training import command as training

        training.add_train(train)
        training.add_evaluate(evaluate)
    return parser


def _add_serve(commands: Any) -> None:
    this = commands.add_parser("serve", help="run the server", description="Run the Triton server in the foreground.")
    this.add_argument(
        "--repository", type=Path, default=MODEL_REPOSITORY, help="model repository (default: the project's)"
    )
    this.add_argument("--config", choices=ENGINES, help="configuration to serve (default: what fits this machine)")
    this.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    this.add_argument("--grpc-port", type=int, default=8001, help="default: 8001; 0 picks a free one")
    this.add_argument("--http-port", type=int, default=8000, help="default: 8000; 0 picks a free one")
    this.add_argument("--metrics-port", type=int, default=8002, help="default: 8002; 0 picks a free one")
    this.add_argument(
        "--in-flight",
        type=int,
        default=ServerOptions.megapixels_in_flight,
        metavar="MP",
        help="megapixels of all requests together, 16 MB for each; beyond that, clients are told to try again "
        "(default: %(default)s)",
    )
    this.add_argument(
        "--instances",
        type=int,
        default=ServerOptions.instances,
        metavar="N",
        help="frames that are denoised at once, each on its share of the cores and with memory of its own: for many "
        "files rather than for a quick answer (default: %(default)s)",
    )
    this.set_defaults(run=serve)


if __name__ == "__main__":
    sys.exit(main())
