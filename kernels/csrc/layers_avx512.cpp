// Compiled for AVX-512; called only where the processor has it.
#include "layers_simd.h"

const Layers layers_avx512 = of_these_lanes;
