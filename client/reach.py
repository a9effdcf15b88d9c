"""Which server a command speaks to, and how: the flags, the environment, and a server of its own where none is."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exposure.assets import MODEL_REPOSITORY

from .access import ServerError, ServerGoneError
from .hardware import choose_config
from .server import ServerOptions, running_server, server_is_installed
from .tiles import TILE_PIXELS
from .triton import Client

SERVER = "EXPOSURE_SERVER"  # an environment variable
DEFAULT_SERVER = os.environ.get(SERVER, "localhost:8001")
TOKEN = "EXPOSURE_TOKEN"  # an environment variable: command lines are seen by everybody


def addresses(server: str | None) -> list[str]:
    """The servers of a --server flag or of $EXPOSURE_SERVER."""
    return [address.strip() for address in (server or DEFAULT_SERVER).split(",")]


@contextlib.contextmanager
def client_for(options: argparse.Namespace) -> Iterator[Client]:
    """A client of the servers that were named; without one, of a local server, started for the block if none runs."""
    reach = {
        "tls": options.tls,
        "authorities": options.ca,
        "certificate": options.client_certificate,
        "key": options.client_key,
        "headers": _headers(options.header),
        "tile_pixels": round(1e6 * options.tile),
        "timeout_s": options.timeout,
    }
    with Client(addresses(options.server), **reach) as client:
        try:
            client.check()
        except ServerError as error:
            refused = not isinstance(error, ServerGoneError)
            if options.server or (refused and SERVER in os.environ):
                raise
            reason = f" ({error})" if refused or SERVER in os.environ else ""
        else:
            yield client
            return
    if not server_is_installed():
        remedy = "give --server HOST:PORT, or pip install -e '.[server]'"
        raise ServerError(f"no server is here and none is installed{reason}; {remedy}")
    choice = choose_config(MODEL_REPOSITORY)
    print(f"starting a server for this call{reason}: {choice.why} ...", file=sys.stderr)
    own = ServerOptions(config_name=choice.config_name, grpc_port=0, http_port=0, metrics_port=0)
    ours = {name: reach[name] for name in ("tile_pixels", "timeout_s")}
    ours["patience_s"] = 0.1  # a server of our own that is gone stays so; a busy one is waited for
    with running_server(own) as server, Client(server.address, **ours) as client:
        yield client


def _headers(given: list[str]) -> dict[str, str]:
    headers = {}
    for header in given:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise ValueError(f'--header is "{header}"; write "NAME: VALUE"')
        headers[name.strip().lower()] = value.strip()
    if os.environ.get(TOKEN):
        headers.setdefault("authorization", f"Bearer {os.environ[TOKEN]}")
    return headers


def add_server_flags(this: Any) -> None:
    """How a server is found and spoken to."""
    reach = this.add_argument_group("the server")
    reach.add_argument(
        "--server",
        metavar="HOST:PORT,...",
        help=f"one, or several to share the work (default: {DEFAULT_SERVER}, else one started for the call)",
    )
    add_reach_flags(reach)


def add_reach_flags(reach: Any) -> None:
    """How a server that was named is spoken to."""
    reach.add_argument("--tls", action="store_true", help="encrypt, trusting the system's authorities")
    reach.add_argument("--ca", type=Path, metavar="PEM", help="encrypt, trusting these authorities")
    reach.add_argument(
        "--client-certificate", type=Path, metavar="PEM", help="encrypt, and identify this client to a server that asks"
    )
    reach.add_argument("--client-key", type=Path, metavar="PEM", help="the key of that certificate, unencrypted")
    reach.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help=f"send it; ${TOKEN} is sent as a bearer token",
    )
    reach.add_argument(
        "--tile",
        type=float,
        default=TILE_PIXELS / 1e6,
        metavar="MP",
        help=f"send larger frames in tiles of at most so many megapixels (default: {TILE_PIXELS / 1e6:g})",
    )
    reach.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="of one request, in seconds (default: 600)"
    )
