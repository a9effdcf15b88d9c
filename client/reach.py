"""Which server a command speaks to, and how: the flags, the environment, and a server of its own where none is."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from exposure.assets import MODEL_REPOSITORY
from exposure.tiles import SMALLEST_TILE, TILE_PIXELS

from .access import HEADER, LONGEST_S, PRINTABLE, Access, ServerError, ServerGoneError, host_of
from .connection import is_local_address
from .hardware import choose_config
from .server import ServerOptions, running_server, server_is_installed
from .triton import IN_FLIGHT, Client

SERVER = "EXPOSURE_SERVER"  # an environment variable
LOCAL = "localhost:8001"
TOKEN = "EXPOSURE_TOKEN"  # an environment variable: command lines are seen by everybody
MOST_REQUESTS = 1024


def addresses(server: str | None) -> list[str]:
    """The servers of a --server flag or of $EXPOSURE_SERVER."""
    return [address.strip() for address in (_default() if server is None else server).split(",")]


def _default() -> str:
    return os.environ.get(SERVER) or LOCAL


def checked(options: argparse.Namespace) -> dict[str, Any]:
    """What `Client` is given besides addresses. Raises ValueError or ServerError for a flag that makes no sense."""
    for address in addresses(options.server):
        if not host_of(address):
            where = f"${SERVER}" if options.server is None else "--server"
            raise ValueError(f'{where} is "{address}"; write HOST:PORT of a gRPC service, such as localhost:8001')
    if not math.isfinite(options.tile) or round(1e6 * options.tile) < SMALLEST_TILE:
        raise ValueError(f"--tile is {options.tile:g}; it is in megapixels, at least {SMALLEST_TILE / 1e6:g}")
    if not 0 < options.timeout <= LONGEST_S:
        raise ValueError(f"--timeout is {options.timeout:g}; it is in seconds, above 0 and at most {LONGEST_S}")
    if not 1 <= options.requests <= MOST_REQUESTS:
        raise ValueError(f"--requests is {options.requests}; it is 1 to {MOST_REQUESTS} at each server")
    reach = {
        "tls": options.tls,
        "authorities": options.ca,
        "certificate": options.client_certificate,
        "key": options.client_key,
        "headers": _headers(options.header, named=bool(options.server or os.environ.get(SERVER))),
        "timeout_s": options.timeout,
    }
    Access(**reach)  # files that cannot be used
    return {**reach, "tile_pixels": round(1e6 * options.tile), "in_flight": options.requests}


@contextlib.contextmanager
def client_for(options: argparse.Namespace) -> Iterator[Client]:
    """A client of the servers that were named; without one, of a local server, started for the block if none runs."""
    reach = checked(options)
    with Client(addresses(options.server), **reach) as client:
        _tell_open(reach, addresses(options.server))
        try:
            client.check()
        except ServerError as error:
            refused = not isinstance(error, ServerGoneError)
            named = bool(os.environ.get(SERVER))
            if options.server or (refused and named):
                raise
            reason = f" ({error})" if refused or named else ""
        else:
            yield client
            return
    if not server_is_installed():
        remedy = "give --server HOST:PORT, or pip install -e '.[server]'"
        raise ServerError(f"no server is here and none is installed{reason}; {remedy}")
    choice = choose_config(MODEL_REPOSITORY)
    print(f"starting a server for this call{reason}: {choice.why} ...", file=sys.stderr)
    own = ServerOptions(config_name=choice.config_name, grpc_port=0, http_port=0, metrics_port=0)
    ours = {name: reach[name] for name in ("tile_pixels", "timeout_s", "in_flight")}
    ours["patience_s"] = 0.1  # a server of our own that is gone stays so; a busy one is waited for
    with running_server(own) as server:

        def ended() -> str:
            stopped = server.process.poll() is not None
            return f"the server that was started for this call stopped: {server.failure()}" if stopped else ""

        with Client(server.address, ended=ended, **ours) as client:
            yield client


def _tell_open(reach: dict[str, Any], servers: list[str]) -> None:
    """Say where a token is sent for all to read."""
    access = Access(**{field.name: reach[field.name] for field in fields(Access)})
    if access.encrypts or "authorization" not in access.metadata:
        return
    for address in servers:
        if not is_local_address(host_of(address)):
            print(f"exposure: the token goes to {address} unencrypted; --tls encrypts", file=sys.stderr)


def _headers(given: list[str], *, named: bool) -> dict[str, str]:
    """named: whether the server is; the token is not for whoever listens where a local one would."""
    headers = {}
    for header in given:
        name, colon, value = (part.strip() for part in header.partition(":"))
        if not colon or not HEADER.fullmatch(name.lower()):
            raise ValueError(f'--header is "{header}"; write "NAME: VALUE", the name in letters, digits and -_.')
        if not PRINTABLE.fullmatch(value):
            raise ValueError(f'--header "{name}" has a value that is not printable ASCII')
        headers[name.lower()] = value
    if named and (token := os.environ.get(TOKEN, "").strip()):
        if not PRINTABLE.fullmatch(token):
            raise ValueError(f"${TOKEN} is not printable ASCII")
        headers.setdefault("authorization", f"Bearer {token}")
    return headers


def add_server_flags(this: Any) -> None:
    """How a server is found and spoken to."""
    reach = this.add_argument_group("the server")
    reach.add_argument(
        "--server",
        metavar="HOST:PORT,...",
        help=f"one, or several to share the work (default: {_default()}, else one started for the call)",
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
        help=f"another header of each request; ${TOKEN} is sent as a bearer token to a server that is named",
    )
    reach.add_argument(
        "--tile",
        type=float,
        default=TILE_PIXELS / 1e6,
        metavar="MP",
        help=f"send larger and longer frames in tiles of at most so many megapixels (default: {TILE_PIXELS / 1e6:g})",
    )
    reach.add_argument(
        "--requests",
        type=int,
        default=IN_FLIGHT,
        metavar="N",
        help="frames sent to each server at once; use one more than its instances (default: %(default)s)",
    )
    reach.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="of one request, in seconds (default: 600)"
    )
