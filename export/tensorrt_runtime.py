"""Run a plan on a card: TensorRT and TensorRT for RTX through one code path, on memory of the card.

Written against the documented API of both; it has not been run on a card yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exposure.files import whole
from exposure.kernels.machine import this_machine
from exposure.kernels.manifest import EngineError, build_command_for, trusted_manifest

from .cache import cache_folder, keep_newest
from .tensorrt_engine import PLAN, load_tensorrt

INPUTS = ("IMAGE", "PHOTON_GAIN", "ORIGIN_IMAGE")  # as callers of engines give them
KERNEL_CACHES = 16  # one for each plan that was built here


class CardFullError(EngineError):
    """The memory of the card does not suffice now; it may later."""


class CardError(EngineError):
    """The card or its driver failed; the message is CUDA's own."""


def cupy_is_installed() -> bool:
    """CuPy allocates and copies on the card."""
    return find_spec("cupy") is not None


class PlanEngine:
    """clean = engine(image, photon_gain[, original]): FP32 arrays, in CUDA memory (CuPy) or in the host's.

    TensorRT for RTX compiles kernels when a shape first comes; they are kept in a cache that the next start finds.
    Raises EngineError where there is no card or the plan is refused, CardFullError and CardError for what CUDA says.
    """

    def __init__(self, plan: Path, target: str) -> None:
        if not this_machine().card:  # deserialising without one may end the process
            raise EngineError(f"{plan} needs an NVIDIA card, and this machine has none")
        if not cupy_is_installed():
            raise EngineError("CuPy is not installed, and plans run on its memory: pip install -e '.[rtx]'")
        self._trt = load_tensorrt(target)
        import cupy

        self._cupy = cupy
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = True  # of portable plans; ours are held against their hash
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineError(f"{target} does not take {plan}; rebuild with: {build_command_for(plan.parent)}")
        self._cache = _kernel_cache(plan, target)
        known = self._cache.read_bytes() if self._cache is not None and self._cache.exists() else b""
        self._context, self._kernels = make_context(self._trt, self._engine, known)
        if self._context is None:
            raise EngineError(f"the memory of {this_machine().card} does not suffice for {plan}")
        with self._as_engine_errors():
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._shapes: set[tuple[int, ...]] = set()
        self._inputs = inputs_of(self._engine)

    @classmethod
    def installed(cls, folder: Path, target: str) -> "PlanEngine":
        """The engine that `build_engine.py` installed, held against its manifest and this machine."""
        trusted_manifest(folder, target)
        return cls(folder / PLAN, target)

    def __call__(self, *arrays: Any) -> NDArray[np.float32]:
        """Arrays of the host in and out."""
        with self._as_engine_errors():
            return self._cupy.asnumpy(self._computed(*(self._cupy.asarray(array) for array in arrays)))

    def on_card(self, *arrays: Any) -> Any:
        """Arrays of the card in and out; the result is complete when this returns."""
        with self._as_engine_errors():
            return self._computed(*arrays)

    @contextmanager
    def _as_engine_errors(self) -> Iterator[None]:
        """CuPy's errors as ours."""
        try:
            yield
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise CardFullError(f"the card's memory does not suffice: {error}") from error
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise CardError(f"{this_machine().card} failed: {error}") from error

    def _computed(self, *arrays: Any) -> Any:
        cupy, context = self._cupy, self._context
        if len(arrays) < len(self._inputs):
            raise EngineError(f"the engine wants {', '.join(self._inputs)}; {len(arrays)} arrays came")
        cupy.cuda.get_current_stream().synchronize()  # the inputs were written there
        with self._stream:
            held = [cupy.ascontiguousarray(array, dtype=cupy.float32) for array in arrays]
            for name, array in zip(self._inputs, held, strict=False):
                if not context.set_input_shape(name, array.shape):
                    raise EngineError(f"{name} is {tuple(array.shape)}; the engine's profile does not take it")
                context.set_tensor_address(name, array.data.ptr)
            clean = cupy.empty(tuple(context.get_tensor_shape("CLEAN")), cupy.float32)
            context.set_tensor_address("CLEAN", clean.data.ptr)
            if not context.execute_async_v3(self._stream.ptr):
                raise CardError("the engine failed on the card")
        self._stream.synchronize()
        if clean.shape not in self._shapes:
            self._shapes.add(clean.shape)
            self.keep_kernels()
        return clean

    def keep_kernels(self) -> None:
        """Write what was compiled for this card, so that the next start need not (TensorRT for RTX).

        Where it cannot be written, the next start compiles again.
        """
        if self._cache is not None and self._kernels is not None:
            with suppress(OSError), whole(self._cache) as part:
                part.write_bytes(self._kernels.serialize())


def inputs_of(engine: Any) -> list[str]:
    """Names of a plan's inputs in the order in which callers give them, which TensorRT need not keep."""
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    return [name for name in INPUTS if name in names]


def make_context(trt: Any, engine: Any, known: bytes = b"") -> tuple[Any, Any]:
    """An execution context and, with TensorRT for RTX, the store of its compiled kernels, else None.

    known: such a store of earlier, serialised. The context is None where the card's memory does not suffice.
    """
    if not hasattr(engine, "create_runtime_config") or not hasattr(trt, "CudaGraphStrategy"):
        return engine.create_execution_context(), None
    config = engine.create_runtime_config()
    # A graph holds the addresses of its tensors, and Triton's differ from pass to pass: it would be captured each time.
    # What the launches cost that a graph would save was not measured.
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    # The default compiles beside the first calls, which slower kernels answer: a warm-up would end too soon.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    kernels = config.create_runtime_cache()
    if known:
        kernels.deserialize(known)
    config.set_runtime_cache(kernels)
    return engine.create_execution_context(config), kernels


def _kernel_cache(plan: Path, target: str) -> Path | None:
    folder = cache_folder("kernels")
    if folder is not None:
        keep_newest(folder, "*.cache", KERNEL_CACHES)
    card = this_machine().card.replace(" ", "_").replace("/", "_")
    return None if folder is None else folder / f"{target}_{card}_{plan.stat().st_size}_{plan.stat().st_mtime_ns}.cache"
