// Compiled for AVX2 and FMA; called only where the processor has them.
#include "layers_simd.h"

const Layers layers_avx2 = of_these_lanes;
