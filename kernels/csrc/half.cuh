// FP16 as storage: planes as an engine with half-precision inputs wants them. Arithmetic stays FP32.
#pragma once
#include "arithmetic.cuh"

struct Half {
    uint16_t bits;
};

// Rounds to nearest, ties to even, as NumPy and the hardware do; beyond 65504 it is infinity.
HD Half half_from_float(float value) {
    const uint32_t tiny = 0x38800000u, huge = 0x47800000u, infinity = 0x7f800000u;  // 2^-14, 2^16
    uint32_t bits = bits_from_float(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu, rounded;
    if (magnitude < tiny)  // subnormal: next to 0.5, a float is as fine as these, 2^-24, and the addition rounds
        rounded = bits_from_float(float_from_bits(magnitude) + 0.5f) - bits_from_float(0.5f);
    else if (magnitude < huge)  // a carry out of the mantissa is the next exponent, the last of them infinity
        rounded = (magnitude - (112u << 23) + 0x0fffu + (magnitude >> 13 & 1u)) >> 13;
    else if (magnitude <= infinity)
        rounded = 0x7c00u;
    else  // NaN keeps the upper part of its payload, and stays a NaN
        rounded = 0x7c00u | (magnitude >> 13 & 0x3ffu) | ((magnitude >> 13 & 0x3ffu) == 0);
    return {(uint16_t)(sign | rounded)};
}

HD void store(float value, float* at) { *at = value; }
HD void store(float value, Half* at) { *at = half_from_float(value); }
