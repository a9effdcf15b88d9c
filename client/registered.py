"""Shared memory that one server was told of: taken for a request, given back after it, found again after a restart."""

import threading
import time
from collections.abc import Callable, Mapping

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from .access import is_gone
from .shared_memory import PREFIX, SHARED_MEMORY, Region, remove_abandoned_regions

CALL_TIMEOUT_S = 5.0
LAST_CALL_TIMEOUT_S = 1.0  # of a client that ends


class RegisteredRegions:
    """The regions of one connection; used by many threads at once.

    can_be_seen: whether the server can see this memory; asked when it is first needed, for it may ask a name server.
    """

    def __init__(
        self, server: grpc.InferenceServerClient, headers: Mapping[str, str], can_be_seen: Callable[[], bool]
    ) -> None:
        self._server, self._headers, self._can_be_seen = server, dict(headers) or None, can_be_seen
        self._lock = threading.Lock()
        self._idle: list[Region] = []
        self._wanted: bool | None = None
        self._closed = self._silent = False
        self._swept: bool | None = (
            None  # None: the server was not asked yet; False: it may know regions that are no more
        )

    @property
    def wanted(self) -> bool:
        """Whether frames go this way."""
        if self._wanted is None:
            self._wanted = self._can_be_seen()
        return self._wanted

    def close(self) -> None:
        """Give back what is idle now, and the rest when it comes back. A silent server is told once, not of each."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for region in idle:
            self.drop(region)
        if self._swept is False and not self._silent:
            try:
                self._sweep()
            except (InferenceServerException, ValueError):  # the server is gone, or slow: the next client does it
                return

    def take(self, size: int) -> Region | None:
        """A region of at least `size` bytes that nobody uses; None where the server cannot see it."""
        if not self.wanted:
            return None
        with self._lock:
            region = next((one for one in self._idle if one.size >= size), next(iter(self._idle), None))
            if region is not None:
                self._idle.remove(region)
        if region is None:
            return self.new(size)
        if region.size >= size:
            return region
        self.drop(region)
        return self.new(size)

    def new(self, size: int) -> Region | None:
        """A region that the server was just told of; None where it cannot see it, or is too slow to be told.

        Raises InferenceServerException where the server is gone, ValueError where the connection is closed.
        """
        try:
            region = Region(size)
        except OSError:  # no room there: gRPC serves as well
            self._wanted = False
            return None
        try:
            self._sweep()
            self._server.register_system_shared_memory(
                region.name, f"/{region.name}", size, headers=self._headers, client_timeout=CALL_TIMEOUT_S
            )
        except (InferenceServerException, ValueError) as error:
            self.abandon(region)
            if isinstance(error, ValueError) or is_gone(error):
                raise
            if not _is_silence(error):
                self._wanted = False  # a container with a /dev/shm of its own
            return None
        return region

    def give_back(self, region: Region) -> None:
        """The request was answered: the next one may have it."""
        with self._lock:
            if not self._closed:
                self._idle.append(region)
                return
        self.drop(region)

    def drop(self, region: Region) -> None:
        """Remove it, and make the server forget it."""
        self._unregister(region.name)
        region.close()

    def abandon(self, region: Region) -> None:
        """Remove it. The server may still write to it, and is made to forget it before the next one, or at the end."""
        region.close()
        self._swept = False

    def _unregister(self, name: str) -> None:
        for pause_s in (0.02, 0):  # just after a reply the server may still hold it
            if self._closed and self._silent:
                break
            try:
                self._server.unregister_system_shared_memory(
                    name, headers=self._headers, client_timeout=self._call_timeout_s()
                )
                return
            except ValueError:  # our channel is closed
                break
            except InferenceServerException as error:
                self._silent = _is_silence(error) or is_gone(error)
                if self._silent:
                    break
                time.sleep(pause_s)
        self._swept = False

    def _sweep(self) -> None:
        """Make the server forget regions that are no more: at first, and when it would not forget one of ours.

        Those of clients that were killed are removed before.
        """
        if self._swept:
            return
        remove_abandoned_regions()
        answer = self._server.get_system_shared_memory_status(
            as_json=True, headers=self._headers, client_timeout=self._call_timeout_s()
        )
        self._swept, self._silent = True, False
        for name in answer.get("regions", {}):
            if name.startswith(PREFIX) and not (SHARED_MEMORY / name).exists():
                self._unregister(name)

    def _call_timeout_s(self) -> float:
        return LAST_CALL_TIMEOUT_S if self._closed else CALL_TIMEOUT_S


def _is_silence(error: InferenceServerException) -> bool:
    return "DEADLINE" in str(error.status())
