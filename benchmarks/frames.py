"""What is measured on: mosaics as cameras of today record them in the dark."""

import numpy as np
from numpy.typing import NDArray

from exposure.sensor import Sensor, recorded

SENSOR = Sensor(black=(800, 800, 800, 800), white=16383, cfa=((0, 1), (1, 2)))
RATIO, GAIN = 100.0, 3.0
FRAMES = {  # megapixels: height and width of the mosaic, of cameras that are sold
    1: (832, 1232),
    3: (1408, 2112),
    6: (2000, 3008),
    12: (2832, 4240),
    24: (4000, 6000),
    45: (5504, 8256),
    61: (6336, 9504),
}


def dark_mosaic(height: int, width: int) -> NDArray[np.uint16]:
    """A smooth scene with shot and read noise, 1/100 of full exposure, in DN."""
    random = np.random.default_rng(0)
    light = np.add.outer(np.linspace(0.05, 0.5, height), np.linspace(0, 0.4, width)) * SENSOR.saturation / RATIO
    return recorded(random.poisson(light / GAIN) * GAIN + random.normal(0, 6, light.shape), SENSOR)
