"""Arrays of torch on a card: the kernels on them, and the definition of the method, against the same on the CPU."""

from typing import Any

import numpy as np
from frames import SENSOR
from gpu_kernels import judged
from gpu_machine import NotCheckedError

from exposure import denoise, pack, unpack, unroll
from exposure.assets import CHECKPOINT
from exposure.kernels import ops
from exposure.sensor import recorded

PHYSICS: dict[str, Any] = {"ratio": 50.0, "gain": 3.0, "seed": 2**40 + 3}
# Of all pixels: a rounding of the network's tips a draw over, and the next pass spreads it. One that is off by 1e-6
# (rms) changes 1.4 % of them by more than 1 DN, and by 1e-5 12 %; another seed 89 %, a gain that is off by 0.1 % 40 %.
TIPPED = 0.15


def tensors_check() -> dict[str, Any]:
    """pack, poisson, expose and unpack on CUDA tensors, on a stream that is not the default one."""
    torch = _torch()
    mosaic, step = torch.from_numpy(dark((1001, 1203))), unroll(50, 3.0, SENSOR.saturation, 3)[0]
    pairs = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for dtype in ops.PLANES:
            pairs.append([ops.pack(m, SENSOR, 50.0, multiple=16, dtype=dtype) for m in (mosaic.cuda(), mosaic)])
        images = [ops.pack(m, SENSOR, 50.0, multiple=16) for m in (mosaic.cuda(), mosaic)]
        pairs.append([ops.poisson(image[None] * 800, seed=5, index=1) for image in images])
        for dtype in ops.PLANES:
            pairs.append([ops.expose(i, i, step, seed=5, index=0, dtype=dtype) for i in images])
        pairs.append([ops.unpack(image, SENSOR, (1001, 1203)) for image in images])
        if not all(on_gpu.is_cuda for on_gpu, _ in pairs):
            raise RuntimeError("a result left the card")
        return judged((on_gpu.cpu().numpy(), on_cpu.numpy()) for on_gpu, on_cpu in pairs)


def denoise_check() -> dict[str, Any]:
    """exposure.denoise with the shipped network, 1 and 3 passes, on the card and on the CPU, in DN."""
    torch = _torch()
    try:
        from exposure import load_checkpoint

        network = load_checkpoint(CHECKPOINT)
    except ImportError as error:
        raise NotCheckedError(f"the shipped network cannot be loaded: {error}") from error
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # FP32, as on the CPU
    mosaic = dark((250, 383))  # sides that need padding
    image = torch.from_numpy(pack(mosaic, SENSOR, PHYSICS["ratio"]))[None]
    result: dict[str, Any] = {"outcome": "passed", "tf32": False}
    for passes in (1, 3):
        physics = {**PHYSICS, "saturation": SENSOR.saturation, "passes": passes}
        on_cpu = denoise(network.cpu(), image, **physics)
        on_gpu = denoise(network.cuda(), image.cuda(), **physics)
        if not on_gpu.is_cuda:
            raise RuntimeError("the result left the card")
        dn = [unpack(clean[0].cpu().numpy(), SENSOR, mosaic.shape).astype(int) for clean in (on_gpu, on_cpu)]
        difference = np.abs(dn[0] - dn[1])
        beyond = float(np.mean(difference > 1))
        result[f"passes_{passes}"] = {"beyond_1_dn": round(beyond, 6), "largest_dn": int(difference.max())}
        if beyond > TIPPED * (passes > 1):
            result["outcome"] = "failed"
    return result


def dark(shape: tuple[int, int]) -> Any:
    """A gradient at 1/50 of full exposure, with shot and read noise, in DN."""
    random = np.random.default_rng(0)
    light = np.add.outer(np.linspace(0.05, 0.5, shape[0]), np.linspace(0, 0.4, shape[1])) * SENSOR.saturation / 50
    return recorded(random.poisson(light / 3) * 3 + random.normal(0, 5, shape), SENSOR)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise NotCheckedError("torch is not installed") from error
    if not torch.cuda.is_available():
        raise NotCheckedError(f"torch {torch.__version__} cannot use this card")
    return torch
