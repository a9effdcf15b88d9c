"""The client that programs use: a mosaic of any size in, one out, from one Triton server or several."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from exposure.schedule import SERVED_PASSES
from exposure.sensor import Sensor, check_tile
from exposure.tiles import GRID, SMALLEST_TILE, TILE_PIXELS, Tile, plan_tiles

from .access import Access, ServerBusyError, ServerError, ServerFullError, ServerGoneError
from .connection import READY_TIMEOUT_S, SPARED_S, Connection, Reply, Request, smallest_request

__all__ = ["Answer", "AsyncClient", "Client", "ServerBusyError", "ServerError", "ServerGoneError"]

STAGES = ("pack", "denoiser", "expose", "unpack")
IN_FLIGHT = 2  # requests at each server: one computes, the next is packed
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """denoised: [H, W] in DN of `sensor`; checkpoint: SHA-256 of the one that made it, "" where that is not known."""

    denoised: NDArray[np.uint16]
    sensor: Sensor
    checkpoint: str = ""


class Client:
    """Talks to servers that hold the exposure_N ensembles (contract: model_repository/README.md).

    address: HOST:PORT of a gRPC service, or several, between which requests are balanced.
    timeout_s: deadline of one request. tls, authorities, certificate, key, headers: see `Access`.
    tile_pixels: larger frames are sent in tiles of at most so many pixels. in_flight: requests at once to each server.
    patience_s: how long a request waits for servers that have answered before and are gone now; for busy ones it waits
    as long as its deadline, unless this is 0.
    shared_memory: whether frames go through it to servers on this machine.
    ended: asked when none answers, for a sentence that says why none ever will; "" where that is not known.

    May be used by several threads. Every call raises ServerError, one sentence, when the servers are absent, fail or
    refuse; its kind ServerGoneError means that the same call may succeed later.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        timeout_s: float = 600.0,
        tls: bool = False,
        authorities: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        headers: Mapping[str, str] | None = None,
        tile_pixels: int = TILE_PIXELS,
        in_flight: int = IN_FLIGHT,
        patience_s: float = 60.0,
        shared_memory: bool = True,
        ended: Callable[[], str] = lambda: "",
    ) -> None:
        addresses = [address] if isinstance(address, str) else list(address)
        if not addresses:
            raise ServerError("no address is given; give HOST:PORT of at least one server")
        if in_flight < 1:
            raise ServerError(f"in_flight is {in_flight}; it must be at least 1")
        if tile_pixels < SMALLEST_TILE:
            raise ServerError(f"the tile bound is {tile_pixels} pixels; a tile holds at least {SMALLEST_TILE}")
        access = Access(timeout_s, tls, authorities, certificate, key, dict(headers or {}))
        self.address = ",".join(addresses)
        self._connections = [Connection(one, access, shared_memory=shared_memory, ended=ended) for one in addresses]
        self._tile_pixels, self._patience_s, self._timeout_s = tile_pixels, patience_s, timeout_s
        self._busy = dict.fromkeys(self._connections, 0)
        self._choosing, self._closing = threading.Lock(), threading.Event()
        self.most_requests = in_flight * len(addresses)  # at once, to all servers
        self._threads = ThreadPoolExecutor(self.most_requests, "exposure-request")

    @property
    def shared_memory(self) -> bool:
        """Whether frames go through shared memory to some server."""
        return any(connection.regions.wanted for connection in self._connections)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End what still runs after a moment, in which most is answered; give back shared memory and connections."""
        self._threads.shutdown(wait=False)
        self._patience_s = 0.0
        self._closing.set()
        until = time.monotonic() + SPARED_S
        with ExitStack() as then:  # also where Ctrl-C ends the waiting
            for connection in self._connections:
                connection.refuse()
                then.callback(connection.close)
            then.callback(self._threads.shutdown)  # what waited for a thread is told that the client is closed
            for connection in self._connections:
                then.callback(connection.cancel)
            for connection in self._connections:
                connection.settle(until)

    def answer(
        self,
        mosaic: NDArray[np.uint16],
        sensor: Sensor,
        *,
        ratio: float,
        gain: float,
        passes: int = 3,
        seed: int = 0,
        origin: tuple[int, int] = (0, 0),
        tile_done: Callable[[float], None] | None = None,
        given_up: threading.Event | None = None,
    ) -> Answer:
        """The mosaic, [H, W] in DN, as `sensor` would have recorded it with `ratio` times the exposure, and its maker.

        gain: K in DN per electron. origin: row and column of the mosaic in the whole frame, multiples of 32 where it is
        larger than a tile. tile_done: called with the share of the frame that each answer brings. given_up: once it is
        set, no further tile is sent, and the call fails. A frame whose tiles were made by different checkpoints is
        refused.
        """
        if passes not in SERVED_PASSES:
            raise ServerError(f"passes is {passes}; the server holds ensembles for {SERVED_PASSES}")
        if mosaic.ndim != 2 or mosaic.dtype != np.uint16:
            raise ServerError(f"mosaic is {mosaic.dtype} with {mosaic.ndim} dimensions; it must be uint16 with 2")
        if not 0 <= seed < 2**64:
            raise ServerError(f"seed is {seed}; it must be an unsigned 64-bit integer")
        tiles = self._tiles_of(mosaic.shape, origin)
        small: dict[str, NDArray[Any]] = {
            "CFA": np.array(sensor.cfa, np.uint8),
            "BLACK": np.array(sensor.black, np.float32),
            "WHITE": np.array([sensor.white], np.float32),
            "RATIO": np.array([ratio], np.float32),
            "GAIN": np.array([gain], np.float32),
            "SEED": np.array([seed], np.uint64),
        }

        def request(tile: Tile) -> Request:
            place = np.array([origin[0] + tile.origin[0], origin[1] + tile.origin[1]], np.int32)
            return Request(f"exposure_{passes}", mosaic[tile.rows, tile.columns], {**small, "ORIGIN": place})

        parts = {self._submit(request(tile), given_up): tile for tile in tiles}
        reply = self._assembled(mosaic.shape, parts, tile_done)
        return Answer(reply.denoised, sensor, reply.checkpoint)

    def denoise(self, mosaic: NDArray[np.uint16], sensor: Sensor, **physics: Any) -> NDArray[np.uint16]:
        """The mosaic of `answer`, which takes the same arguments."""
        return self.answer(mosaic, sensor, **physics).denoised

    def is_ready(self) -> bool:
        """Whether a server answers and holds our ensembles."""
        try:
            self.check()
        except ServerError:
            return False
        return True

    def check(self) -> None:
        """Raise ServerError unless a server answers and holds our ensembles."""
        for connection in self._connections:
            try:
                connection.check()
                return
            except ServerError as error:
                failure = error
        raise failure

    def probe(self) -> None:
        """Run the smallest request through every ensemble of every server. Raises ServerError when one fails."""
        for connection in self._connections:
            for passes in SERVED_PASSES:
                connection.infer(smallest_request(f"exposure_{passes}"))

    def checkpoint(self) -> str:
        """SHA-256, hexadecimal, of the checkpoint that the servers run.

        Raises ServerError also where servers differ: chance would decide which of them makes a result.
        """
        told = {}
        several = len(self._connections) > 1  # then the others need not wait for a silent one
        deadline_s = min(READY_TIMEOUT_S, self._timeout_s) if several else None
        for connection in self._connections:
            if connection.resting_until <= time.monotonic():
                with suppress(ServerGoneError):
                    told[connection.checkpoint(deadline_s)] = connection.address
        if len(told) > 1:
            which = ", ".join(f"{address} runs {digest[:12]}..." for digest, address in told.items())
            raise ServerError(f"the servers run different checkpoints ({which}); give those of one to --server")
        return next(iter(told)) if told else self._patiently(Connection.checkpoint)  # all may be slow: no deadline then

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that each of the four models has spent computing since the servers that answer started."""
        spent = dict.fromkeys(STAGES, 0.0)
        for connection in self._connections:
            with suppress(ServerGoneError):  # the others do its work
                for model in connection.statistics():
                    if model["name"] in spent:
                        for part in ("compute_input", "compute_infer", "compute_output"):  # not what it waited before
                            spent[model["name"]] += int(model["inference_stats"].get(part, {}).get("ns", 0)) / 1e9
        return spent

    def _tiles_of(self, shape: tuple[int, ...], origin: tuple[int, int]) -> Sequence[Tile]:
        try:
            check_tile(shape, origin)
            tiles = plan_tiles((shape[0], shape[1]), self._tile_pixels)
        except ValueError as error:
            raise ServerError(str(error)) from error
        if len(tiles) > 1 and (origin[0] % GRID or origin[1] % GRID):
            raise ServerError(f"origin is {list(origin)}; of a frame sent in tiles it must be multiples of {GRID}")
        return tiles

    def _submit(self, request: Request, given_up: threading.Event | None) -> "Future[Reply]":
        try:
            return self._threads.submit(self._infer, request, given_up)
        except RuntimeError as error:
            raise ServerError("the client is closed") from error

    @staticmethod
    def _assembled(
        shape: tuple[int, ...],
        parts: "dict[Future[Reply], Tile]",
        tile_done: Callable[[float], None] | None,
    ) -> Reply:
        frame, checkpoints = np.empty(shape, np.uint16), set()
        try:
            for part in as_completed(parts):
                tile, reply = parts[part], part.result()
                frame[tile.kept_rows, tile.kept_columns] = reply.denoised[tile.kept]
                checkpoints.add(reply.checkpoint)
                if len(checkpoints) > 1:
                    raise ServerError("its tiles were made by different checkpoints; give servers of one to --server")
                if tile_done is not None:
                    tile_done(frame[tile.kept_rows, tile.kept_columns].size / frame.size)
        finally:
            for part in parts:
                part.cancel()
        return Reply(frame, checkpoints.pop())

    def _infer(self, request: Request, given_up: threading.Event | None) -> Reply:
        def ask(connection: Connection) -> Reply:
            if given_up is not None and given_up.is_set():
                raise ServerError("the call was given up")
            return connection.infer(request)

        return self._patiently(ask)

    def _patiently(self, ask: Callable[[Connection], T]) -> T:
        """Ask the least busy server; where it is gone, another, or the same again after a pause."""
        began, gone_since = time.monotonic(), math.inf
        untried = set(self._connections)
        while True:
            with self._least_busy(untried) as connection:
                untried.discard(connection)
                try:
                    return ask(connection)
                except ServerGoneError as error:
                    now = time.monotonic()
                    if isinstance(error, ServerBusyError) and self._patience_s > 0:
                        patient, gone_since = now < began + self._timeout_s, math.inf  # one is there
                    else:
                        gone_since = min(gone_since, now)  # however long it had computed before
                        patient = now < gone_since + self._patience_s
                    known = any(one.has_answered for one in self._connections)
                    if not untried and not (known and patient):
                        if isinstance(error, ServerFullError):  # it costs itself: smaller ones may fit
                            raise ServerError(str(error)) from error
                        raise

    @contextmanager
    def _least_busy(self, untried: Set[Connection]) -> Iterator[Connection]:
        """A server for one request: one that rests only when all do, and then not before its time."""
        with self._choosing:
            now = time.monotonic()
            waits = {one: max(one.resting_until - now, 0.0) for one in self._connections}
            connection = min(waits, key=lambda one: (waits[one], one not in untried, self._busy[one]))
            self._busy[connection] += 1
        try:
            self._closing.wait(max(0.0, connection.resting_until - now))
            yield connection
        finally:
            with self._choosing:
                self._busy[connection] -= 1


class AsyncClient:
    """`Client` for asyncio: the same arguments and calls, awaited.

    Frames are copied and checked in threads of its own, one for each request that may be in flight, where they do not
    hold the event loop up; asyncio's own threads are few, and other people's. Once a call is cancelled, no further tile
    of it is sent; what a server has, it computes. `close` ends its requests.
    """

    def __init__(self, address: str | Sequence[str], **options: Any) -> None:
        self._client = Client(address, **options)
        self._threads = ThreadPoolExecutor(self._client.most_requests, "exposure-frame")

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """End what still runs; give shared memory and the connections back."""
        await asyncio.to_thread(self._client.close)  # then calls that still wait for a thread end at once
        await asyncio.to_thread(self._threads.shutdown)

    async def answer(self, mosaic: NDArray[np.uint16], sensor: Sensor, **physics: Any) -> Answer:
        """`Client.answer`."""
        given_up = physics.pop("given_up", None) or threading.Event()
        call = partial(self._client.answer, mosaic, sensor, given_up=given_up, **physics)
        try:
            answer = self._threads.submit(call)
        except RuntimeError as error:
            raise ServerError("the client is closed") from error
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            given_up.set()
            raise

    async def denoise(self, mosaic: NDArray[np.uint16], sensor: Sensor, **physics: Any) -> NDArray[np.uint16]:
        """`Client.denoise`."""
        return (await self.answer(mosaic, sensor, **physics)).denoised

    async def is_ready(self) -> bool:
        """`Client.is_ready`."""
        return await asyncio.to_thread(self._client.is_ready)

    async def checkpoint(self) -> str:
        """`Client.checkpoint`."""
        return await asyncio.to_thread(self._client.checkpoint)

    async def stage_seconds(self) -> dict[str, float]:
        """`Client.stage_seconds`."""
        return await asyncio.to_thread(self._client.stage_seconds)
