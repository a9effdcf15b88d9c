"""RAW file <-> mosaic and Sensor; the gRPC client; the server's launcher; the `exposure` command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .triton import Answer, AsyncClient, Client, ServerBusyError, ServerError, ServerGoneError

__all__ = ["Answer", "AsyncClient", "Client", "ServerBusyError", "ServerError", "ServerGoneError"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # on demand: gRPC takes a while to load
        from . import triton

        return getattr(triton, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
