"""Who may speak to the page, and what the browser may load: ASGI middleware."""

import contextlib
import ipaddress
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What the page loads comes from this server alone, and it stands in no other page; its scripts are evaluated from
# templates (Content Security Policy, level 3).
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"

ABANDONED_S = 600.0  # a part of an upload that nobody has written to for so long: its tab was closed


class Guard:
    """Refuses what the pages of other sites make a browser ask, and uploads above `largest` bytes.

    Such a site can let its own name lead to this machine (DNS rebinding); then the browser takes the page for a part of
    the site, but says the site's name. So the page answers to addresses, `host` and the machine's name only.
    """

    def __init__(self, app: ASGIApp, host: str, folder: Path, largest: int) -> None:
        """folder: where uploads go."""
        self._app, self._folder, self._largest = app, folder, largest
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        app = self._app
        if scope["type"] != "lifespan" and not self._is_own(Headers(scope=scope)):
            app = PlainTextResponse("the page answers only where it was opened: see exposure ui --host\n", 403)
        elif scope["type"] == "http" and scope["path"].endswith("/upload"):
            remove_abandoned(self._folder)
            if int(Headers(scope=scope).get("content-length", "0")) > self._largest + 1_000_000:  # and its frame
                app = PlainTextResponse(f"an upload is at most {self._largest} bytes\n", 413)
        await app(scope, receive, sent)

    def _is_own(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or bool(ipaddress.ip_address(name))
        except ValueError:  # neither a name of ours nor an address
            return False


def remove_abandoned(folder: Path) -> None:
    """Remove what is left of uploads that broke off: Gradio writes into files of this folder, and forgets those."""
    for part in folder.glob("tmp*"):
        with contextlib.suppress(OSError):
            if part.is_file() and part.stat().st_mtime < time.time() - ABANDONED_S:
                part.unlink()
