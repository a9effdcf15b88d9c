"""Shared memory that one server was told of: taken for a request, given back after it, found again after a restart."""

import threading
import time
from collections.abc import Mapping

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from .access import is_gone
from .shared_memory import PREFIX, SHARED_MEMORY, Region, remove_abandoned_regions

CALL_TIMEOUT_S = 5.0


class RegisteredRegions:
    """The regions of one connection; used by many threads at once. wanted: whether the server can see this memory."""

    def __init__(self, server: grpc.InferenceServerClient, headers: Mapping[str, str], *, wanted: bool) -> None:
        self.wanted = wanted
        self._server, self._headers = server, dict(headers) or None
        self._lock = threading.Lock()
        self._idle: list[Region] = []
        self._swept = self._closed = False

    def close(self) -> None:
        """Give back what is idle now, and the rest when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for region in idle:
            self.drop(region)

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
        """A region that the server was just told of; None where it cannot see it.

        Raises InferenceServerException where the server is gone, ValueError where the connection is closed.
        """
        try:
            region = Region(size)
        except OSError:  # no room there: gRPC serves as well
            self.wanted = False
            return None
        try:
            self._sweep()
            self._server.register_system_shared_memory(
                region.name, f"/{region.name}", size, headers=self._headers, client_timeout=CALL_TIMEOUT_S
            )
        except (InferenceServerException, ValueError) as error:
            region.close()
            if isinstance(error, ValueError) or is_gone(error):
                raise
            self.wanted = False  # a container with a /dev/shm of its own
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
        """Remove it; an abandoned request may still be writing into it."""
        self._unregister(region.name)
        region.close()

    def _unregister(self, name: str) -> None:
        for pause_s in (0.02, 0):  # just after a reply the server may still hold it
            try:
                self._server.unregister_system_shared_memory(name, headers=self._headers, client_timeout=CALL_TIMEOUT_S)
                return
            except (InferenceServerException, ValueError):  # the server may be gone, or our channel closed
                time.sleep(pause_s)
        self._swept = False  # it may still be writing there after our deadline: told again before the next region

    def _sweep(self) -> None:
        """Make the server forget regions that are no more: at first, and when it would not forget one of ours.

        Those of clients that were killed are removed before.
        """
        if self._swept:
            return
        remove_abandoned_regions()
        answer = self._server.get_system_shared_memory_status(
            as_json=True, headers=self._headers, client_timeout=CALL_TIMEOUT_S
        )
        self._swept = True
        for name in answer.get("regions", {}):
            if name.startswith(PREFIX) and not (SHARED_MEMORY / name).exists():
                self._unregister(name)
