"""One Triton server: requests over gRPC, frames through shared memory where the server is on this machine."""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from exposure.schedule import SERVED_PASSES
from exposure.sensor import SMALLEST_SIDE

from .access import (
    Access,
    ServerBusyError,
    ServerError,
    ServerFullError,
    ServerGoneError,
    ServerSlowError,
    host_of,
    is_gone,
)
from .registered import RegisteredRegions
from .shared_memory import Region

TYPES = {"uint8": "UINT8", "uint16": "UINT16", "uint64": "UINT64", "int32": "INT32", "float32": "FP32"}
READY_TIMEOUT_S = 5.0
# What deadlines and the end of a client leave a call before it is cancelled; most are answered by then. The Triton
# of pytriton, 24.10, can end when one is cancelled as it is answered (its issues 7368 and 8034, mended since).
SPARED_S = 2.0
PAUSE_S = 0.1  # before a server that failed is asked again; then twice as long, and so on
MOST_PAUSE_S, MOST_BUSY_PAUSE_S = 5.0, 1.0
CHANNEL = (
    ("grpc.max_send_message_length", grpc.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", grpc.MAX_GRPC_MESSAGE_SIZE),
    # A peer that went silent (a cable, a host) is noticed during a request. Triton ends connections that ping more
    # often than every 300 s without data (its --grpc-http2-min-recv-ping-interval-without-data).
    ("grpc.keepalive_time_ms", 305_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # a server that comes back is found soon
)
BUSY = re.compile(r"ask again later")  # kernels/backend/admission.cpp
FULL = re.compile(r"memory does not suffice")  # kernels/backend/*.cpp, export/tensorrt_runtime.py
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # environment variables that gRPC heeds
FORGOTTEN = re.compile(r"find shared memory region|shared memory region .* not|unregistered")  # Triton's words
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One inference: the ensemble, the frame, the small tensors by name."""

    model: str
    mosaic: NDArray[np.uint16]
    small: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Reply:
    """A frame or tile, and the SHA-256 of the checkpoint that made it."""

    denoised: NDArray[np.uint16]
    checkpoint: str


def smallest_request(model: str) -> Request:
    """A request that costs nothing, for an ensemble or for `pack`."""
    small: dict[str, NDArray[Any]] = {
        "CFA": np.array([[0, 1], [1, 2]], np.uint8),
        "BLACK": np.full(4, 512, np.float32),
        "WHITE": np.array([16383], np.float32),
        "RATIO": np.array([2], np.float32),
        "GAIN": np.array([1], np.float32),
        "SEED": np.zeros(1, np.uint64),
        "ORIGIN": np.zeros(2, np.int32),
    }
    return Request(model, np.full((SMALLEST_SIDE, SMALLEST_SIDE), 600, np.uint16), small)


class Connection:
    """Talks to one server; used by many threads at once."""

    def __init__(
        self, address: str, access: Access, *, shared_memory: bool = True, ended: Callable[[], str] = lambda: ""
    ) -> None:
        """ended: why nobody will ever answer again, where that is known, else ""."""
        host = host_of(address)
        if not host:
            raise ServerError(f'server is "{address}"; write HOST:PORT, such as localhost:8001')
        self.address = address
        self.resting_until = 0.0  # on the monotonic clock; after a failure, others are asked first
        self.has_answered = False
        self._pause_s = PAUSE_S
        self._access, self._ended = access, ended
        proxy = next((name for name in PROXIES if os.environ.get(name)), "")
        self._proxy = "" if proxy and is_local_address(host) else proxy
        self._grpc = grpc.InferenceServerClient(
            address,
            ssl=access.encrypts,
            root_certificates=access.trusted,  # paths
            certificate_chain=access.certificate,
            private_key=access.key,
            channel_args=(*CHANNEL, ("grpc.enable_http_proxy", int(bool(self._proxy)))),
        )
        self.regions = RegisteredRegions(self._grpc, access.metadata, lambda: shared_memory and is_this_machine(host))
        self._changed = threading.Condition()
        self._calls: dict[object, Any] = {}  # that are not answered, each by a key of its own
        self._closed = False

    def refuse(self) -> None:
        """Take no further calls."""
        with self._changed:
            self._closed = True

    def settle(self, until: float) -> None:
        """Wait until all calls are answered, or until then, on the monotonic clock."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, until - time.monotonic())

    def cancel(self) -> None:
        """Give up what still runs."""
        with self._changed:
            calls = list(self._calls.values())
        for call in calls:
            call.cancel()

    def close(self) -> None:
        """Give shared memory and the connection back, when nothing runs any more."""
        self.regions.close()
        self._grpc.close()

    def infer(self, request: Request) -> Reply:
        """DENOISED and CHECKPOINT. Raises ServerGoneError where another try may help, ServerError where it will not."""
        return self._answered(lambda: self._infer(request))

    def checkpoint(self, deadline_s: float | None = None) -> str:
        """SHA-256 of the checkpoint that the server runs.

        deadline_s: a server that is silent for longer counts as gone. Raises what `infer` raises.
        """
        return self._answered(lambda: self._checkpoint(deadline_s))

    def _answered(self, ask: Callable[[], T]) -> T:
        """An answer; after a failure the server rests."""
        if self._closed:
            raise ServerError("the client is closed")
        try:
            with self.translated():
                answer = ask()
        except ServerBusyError:
            self.has_answered = True
            self._rest(MOST_BUSY_PAUSE_S)  # not for long: it must not run dry
            raise
        except ServerGoneError as error:
            self.has_answered |= isinstance(error, ServerFullError)
            self._rest(MOST_PAUSE_S)
            raise
        self.has_answered, self.resting_until, self._pause_s = True, 0.0, PAUSE_S
        return answer

    def _silent(self, seconds: float) -> str:
        return f"the server at {self.address} did not answer within {seconds:g} s"

    def _rest(self, most_s: float) -> None:
        self.resting_until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, most_s)

    def _checkpoint(self, deadline_s: float | None) -> str:
        request = smallest_request("pack")
        inputs = _tensors({"MOSAIC": request.mosaic, **request.small})
        try:
            return self._call_telling("pack", inputs, [], deadline_s)[1]
        except InferenceServerException as error:
            if deadline_s is None or "DEADLINE" not in str(error.status()):
                raise
            self._pause_s = MOST_PAUSE_S  # each question to it takes so long
            raise ServerGoneError(self._silent(deadline_s)) from error

    def _infer(self, request: Request) -> Reply:
        size = 2 * request.mosaic.nbytes
        try:
            return self._infer_once(request, self.regions.take(size))
        except InferenceServerException as error:
            if not FORGOTTEN.search(str(error.message())):
                raise
        return self._infer_once(request, self.regions.new(size))  # the server was started anew since

    def _infer_once(self, request: Request, region: "Region | None") -> Reply:
        try:
            answer = self._ask(request, region)
        except BaseException as error:  # Ctrl-C too
            if region is not None:
                refused = isinstance(error, InferenceServerException) and BUSY.search(str(error.message()))
                (self.regions.give_back if refused else self.regions.abandon)(region)
            raise
        if region is not None:
            self.regions.give_back(region)
        return answer

    def check(self) -> None:
        """Raise ServerError unless the server answers and holds our ensembles."""
        with self.translated(READY_TIMEOUT_S):
            for passes in SERVED_PASSES:
                name = f"exposure_{passes}"
                if not self._grpc.is_model_ready(name, headers=self._headers(), client_timeout=READY_TIMEOUT_S):
                    raise ServerError(f"the server at {self.address} does not hold {name}")

    def statistics(self) -> list[dict[str, Any]]:
        """Triton's statistics of each model."""
        with self.translated(READY_TIMEOUT_S):
            answer = self._grpc.get_inference_statistics(
                as_json=True, headers=self._headers(), client_timeout=READY_TIMEOUT_S
            )
            return list(answer.get("model_stats", []))

    @contextlib.contextmanager
    def translated(self, silence_s: float | None = None) -> Iterator[None]:
        """Errors of gRPC as sentences. silence_s: who is silent for so long, where an answer costs nothing, is gone."""
        try:
            yield
        except ValueError as error:  # how gRPC says that its channel was closed
            if not self._closed:
                raise
            raise ServerError("the client is closed") from error
        except InferenceServerException as error:
            message, status = str(error.message()), str(error.status())
            if self._closed and "CANCELLED" in status:
                raise ServerError("the client is closed") from error
            if "CERTIFICATE" in message or "SSL" in message or "handshak" in message.lower():
                raise ServerError(f"{self.address} is not trusted ({message}); see --tls and --ca") from error
            if "UNAUTHENTICATED" in status or "PERMISSION" in status or "protocol is restricted" in message:
                raise ServerError(f"{self.address} wants a token or header ({message}); see --header") from error
            if BUSY.search(message):
                raise ServerBusyError(_without_model(message)) from error
            if FULL.search(message) and "UNAVAILABLE" in status:
                raise ServerFullError(_without_model(message)) from error
            if is_gone(error):
                if ended := self._ended():
                    raise ServerGoneError(ended) from error
                hint = "start one with: exposure serve (the port is gRPC's, not HTTP's)"
                if self._access.encrypts:  # gRPC does not tell why it was hung up on
                    hint = "one that knows its clients by certificate answers no other; see --client-certificate"
                if self._proxy:
                    hint += f"; ${self._proxy} is set, and where $no_proxy does not name the host, that proxy is asked"
                raise ServerGoneError(f"no exposure server answers at {self.address}; {hint}") from error
            if "DEADLINE" in status and silence_s is not None:
                raise ServerGoneError(self._silent(silence_s)) from error
            if "DEADLINE" in status:
                raise ServerSlowError(
                    f"the server at {self.address} took more than {self._access.timeout_s:g} s"
                ) from error
            raise ServerError(_without_model(message)) from error

    def _ask(self, request: Request, region: "Region | None") -> Reply:
        mosaic = np.ascontiguousarray(request.mosaic)
        large, output = grpc.InferInput("MOSAIC", mosaic.shape, "UINT16"), grpc.InferRequestedOutput("DENOISED")
        if region is not None:
            region.array(mosaic.shape, 0)[:] = mosaic
            large.set_shared_memory(region.name, mosaic.nbytes)
            output.set_shared_memory(region.name, mosaic.nbytes, offset=mosaic.nbytes)
        else:
            large.set_data_from_numpy(mosaic)
        reply, checkpoint = self._call_telling(request.model, [large, *_tensors(request.small)], [output])
        if region is not None:
            return Reply(np.array(region.array(mosaic.shape, mosaic.nbytes)), checkpoint)
        return Reply(reply.as_numpy("DENOISED"), checkpoint)

    def _call_telling(
        self, model: str, inputs: list[Any], outputs: list[Any], deadline_s: float | None = None
    ) -> tuple[Any, str]:
        """A reply, and CHECKPOINT in the same reply: a server may be started anew between two."""
        reply = self._call(model, inputs, [*outputs, grpc.InferRequestedOutput("CHECKPOINT")], deadline_s)
        return reply, bytes(reply.as_numpy("CHECKPOINT")[0]).decode()

    def _call(self, model: str, inputs: list[Any], outputs: list[Any], deadline_s: float | None = None) -> Any:
        """One call that `close` can end. Who waits is told at the deadline, the server where it goes on after that."""
        answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        key, deadline_s = object(), deadline_s or self._access.timeout_s

        def answered(result: Any, error: Exception | None) -> None:
            answers.put((result, error))
            with self._changed:
                self._calls.pop(key, None)
                self._changed.notify_all()

        def start() -> None:
            with self._changed:
                if self._closed:
                    raise ServerError("the client is closed")
                self._calls[key] = self._grpc.async_infer(
                    model,
                    inputs,
                    callback=answered,
                    outputs=outputs,
                    client_timeout=deadline_s + SPARED_S,
                    headers=self._headers(),
                )
                if not answers.empty():  # at once, before it was noted
                    del self._calls[key]

        _undisturbed(start)
        try:
            result, error = answers.get(timeout=deadline_s)
        except Empty:
            raise InferenceServerException("no answer", "StatusCode.DEADLINE_EXCEEDED") from None
        if error is not None:
            raise error
        return result

    def _headers(self) -> dict[str, str] | None:
        return self._access.metadata or None


def _undisturbed(work: Callable[[], None]) -> None:
    """Ctrl-C comes to the main thread: in the middle of gRPC's work, it would leave a channel that never closes."""
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


def _without_model(message: str) -> str:
    return re.sub(r"^in ensemble '\w+', ", "", message)


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    tensors = []
    for name, array in arrays.items():
        tensors.append(grpc.InferInput(name, array.shape, TYPES[array.dtype.name]))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def is_local_address(host: str) -> bool:
    """Whether a host name means any address of this machine: no proxy is needed on the way there."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as one:
            one.bind(place)  # only those of this machine can be
    except (OSError, UnicodeError):
        return False
    return True


def is_this_machine(host: str) -> bool:
    """Whether a host name means this machine, by its loopback address."""
    try:
        return host == "[::1]" or socket.gethostbyname(host).startswith("127.")
    except (OSError, UnicodeError):  # no host, or no name that one could have
        return False
