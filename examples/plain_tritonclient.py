"""One request with nothing but tritonclient and NumPy: for those who bring their own client.

    python examples/plain_tritonclient.py localhost:8001 mosaic.npy denoised.npy

mosaic.npy holds [H, W] uint16 DN of an RGGB sensor; levels, ratio and gain below are those of the demo's file:

    python -c "import numpy, exposure.client.rawfile as r; numpy.save('mosaic.npy', r.read('demo/sample.dng').mosaic)"

The contract is in model_repository/README.md.
"""

import sys

import numpy as np
import tritonclient.grpc as grpc

if len(sys.argv) != 4:
    sys.exit("plain_tritonclient: give HOST:PORT MOSAIC.npy DENOISED.npy")
address, source, target = sys.argv[1:]
mosaic = np.load(source)
tensors = {
    "MOSAIC": (mosaic, "UINT16"),
    "CFA": (np.array([[0, 1], [1, 2]], np.uint8), "UINT8"),  # red, green / green, blue
    "BLACK": (np.full(4, 800, np.float32), "FP32"),  # DN, of each position of the 2x2 cell
    "WHITE": (np.array([16383], np.float32), "FP32"),  # DN
    "RATIO": (np.array([100], np.float32), "FP32"),  # 100 times the exposure
    "GAIN": (np.array([3.0], np.float32), "FP32"),  # DN per electron
    "SEED": (np.array([0], np.uint64), "UINT64"),
    "ORIGIN": (np.array([0, 0], np.int32), "INT32"),  # the mosaic is a whole frame
}
inputs = []
for name, (array, kind) in tensors.items():
    inputs.append(grpc.InferInput(name, array.shape, kind))
    inputs[-1].set_data_from_numpy(array)
server = grpc.InferenceServerClient(address)
answer = server.infer("exposure_3", inputs, client_timeout=600)  # three passes of the network; seconds
np.save(target, answer.as_numpy("DENOISED"))
