"""The gRPC client: one mosaic in, one mosaic out, through shared memory where the server is on this machine."""

import contextlib
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from exposure.schedule import SERVED_PASSES
from exposure.sensor import SMALLEST_SIDE, Sensor, check_tile

STAGES = ("pack", "denoiser", "expose", "unpack")
_regions = itertools.count()


class ServerError(RuntimeError):
    """The server is absent, failed or refused; the message is one sentence."""


class ServerGoneError(ServerError):
    """No server answers: the next file will not fare better."""


class Client:
    """Talks to one server that holds the exposure_N ensembles (contract: model_repository/README.md).

    address: HOST:PORT of its gRPC service. timeout_s: deadline of one request.
    """

    def __init__(self, address: str, *, timeout_s: float = 600.0) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ServerError(f'server is "{address}"; write HOST:PORT, such as localhost:8001')
        self.address = address
        self.shared_memory = _is_this_machine(host)
        self._timeout_s = timeout_s
        self._grpc = grpc.InferenceServerClient(address)
        self._region: _Region | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give shared memory and the connection back."""
        self._drop_region()
        self._grpc.close()

    def denoise(
        self,
        mosaic: NDArray[np.uint16],
        sensor: Sensor,
        *,
        ratio: float,
        gain: float,
        passes: int = 3,
        seed: int = 0,
        origin: tuple[int, int] = (0, 0),
    ) -> NDArray[np.uint16]:
        """The mosaic, [H, W] in DN, as `sensor` would have recorded it with `ratio` times the exposure.

        gain: K in DN per electron. origin: row and column of the mosaic in the whole frame.
        Raises ServerError when the server is absent, fails or refuses.
        """
        if passes not in SERVED_PASSES:
            raise ServerError(f"passes is {passes}; the server holds ensembles for {SERVED_PASSES}")
        if mosaic.ndim != 2 or mosaic.dtype != np.uint16:
            raise ServerError(f"mosaic is {mosaic.dtype} with {mosaic.ndim} dimensions; it must be uint16 with 2")
        if not 0 <= seed < 2**64:
            raise ServerError(f"seed is {seed}; it must be an unsigned 64-bit integer")
        try:
            check_tile(mosaic.shape, origin)
        except ValueError as error:
            raise ServerError(str(error)) from error
        small: dict[str, NDArray[Any]] = {
            "CFA": np.array(sensor.cfa, np.uint8),
            "BLACK": np.array(sensor.black, np.float32),
            "WHITE": np.array([sensor.white], np.float32),
            "RATIO": np.array([ratio], np.float32),
            "GAIN": np.array([gain], np.float32),
            "SEED": np.array([seed], np.uint64),
            "ORIGIN": np.array(origin, np.int32),
        }
        inputs = [_input(name, array) for name, array in small.items()]
        with self._translated():
            return self._infer(f"exposure_{passes}", np.ascontiguousarray(mosaic), inputs)

    def is_ready(self) -> bool:
        """Whether a server answers here and holds our ensembles."""
        try:
            return all(self._grpc.is_model_ready(f"exposure_{passes}", client_timeout=5) for passes in SERVED_PASSES)
        except InferenceServerException:
            return False

    def probe(self) -> None:
        """Run the smallest request through every ensemble. Raises ServerError when one does not answer."""
        flat = np.full((SMALLEST_SIDE, SMALLEST_SIDE), 600, np.uint16)
        sensor = Sensor((512, 512, 512, 512), 16383, ((0, 1), (1, 2)))
        for passes in SERVED_PASSES:
            self.denoise(flat, sensor, ratio=2, gain=1, passes=passes)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that each of the four models has spent computing since the server started."""
        with self._translated():
            models = self._grpc.get_inference_statistics(as_json=True)["model_stats"]
        spent = dict.fromkeys(STAGES, 0.0)
        for model in models:
            if model["name"] in spent:
                spent[model["name"]] = int(model["inference_stats"]["success"].get("ns", 0)) / 1e9
        return spent

    def _infer(self, model: str, mosaic: NDArray[np.uint16], inputs: list[Any]) -> NDArray[np.uint16]:
        large, output = grpc.InferInput("MOSAIC", mosaic.shape, "UINT16"), grpc.InferRequestedOutput("DENOISED")
        region = self._region_of(mosaic.nbytes)
        if region is not None:
            region.write(mosaic)
            large.set_shared_memory(region.name, mosaic.nbytes)
            output.set_shared_memory(region.name, mosaic.nbytes, offset=mosaic.nbytes)
        else:
            large.set_data_from_numpy(mosaic)
        reply = self._grpc.infer(model, [large, *inputs], outputs=[output], client_timeout=self._timeout_s)
        if region is not None:
            return region.read(mosaic.shape, offset=mosaic.nbytes)
        return reply.as_numpy("DENOISED")

    def _region_of(self, half: int) -> "_Region | None":
        """The registered region for a mosaic of `half` bytes and its result; None where the server cannot see it."""
        if not self.shared_memory:
            return None
        if self._region is None or self._region.size != 2 * half:
            self._drop_region()
            try:
                self._region = region = _Region(2 * half)
                self._grpc.register_system_shared_memory(region.name, region.name, region.size)
            except (shm.SharedMemoryException, OSError):  # no room there: gRPC serves as well
                self.shared_memory = False
            except InferenceServerException as error:  # a container with a /dev/shm of its own, or no server
                self._drop_region()
                if "connect" in str(error.message()).lower():
                    raise
                self.shared_memory = False
        return self._region

    def _drop_region(self) -> None:
        region, self._region = self._region, None
        if region is not None:
            with contextlib.suppress(InferenceServerException):  # the server may be gone
                self._grpc.unregister_system_shared_memory(region.name)
            region.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            message = str(error.message())
            if "connect" in message.lower() or "UNAVAILABLE" in str(error.status()):
                raise ServerGoneError(f"no server answers at {self.address}; start one with: exposure serve") from error
            if "DEADLINE" in str(error.status()):
                raise ServerError(f"the server at {self.address} took more than {self._timeout_s:g} s") from error
            raise ServerError(re.sub(r"^in ensemble '\w+', ", "", message)) from error


class _Region:
    """A block of /dev/shm that client and server both map."""

    def __init__(self, size: int) -> None:
        self.name = f"/exposure_client_{os.getpid()}_{next(_regions)}"
        self.size = size
        if shutil.disk_usage("/dev/shm").free < size:  # else writing to it would kill the process
            raise OSError("/dev/shm is full")
        self._handle = shm.create_shared_memory_region(self.name, self.name, size)

    def write(self, array: NDArray[np.uint16]) -> None:
        shm.set_shared_memory_region(self._handle, [array])

    def read(self, shape: tuple[int, ...], offset: int) -> NDArray[np.uint16]:
        return np.array(shm.get_contents_as_numpy(self._handle, np.uint16, shape, offset))

    def close(self) -> None:
        shm.destroy_shared_memory_region(self._handle)


def _input(name: str, array: NDArray[Any]) -> Any:
    types = {"uint8": "UINT8", "uint64": "UINT64", "int32": "INT32", "float32": "FP32"}
    tensor = grpc.InferInput(name, array.shape, types[array.dtype.name])
    tensor.set_data_from_numpy(array)
    return tensor


def _is_this_machine(host: str) -> bool:
    try:
        return host == "[::1]" or socket.gethostbyname(host).startswith("127.")
    except OSError:
        return False
