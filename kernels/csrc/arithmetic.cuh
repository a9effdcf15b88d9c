// One arithmetic for host and device: only +, -, *, /, sqrt and comparisons of IEEE floats, so that g++ with
// -ffp-contract=off and nvcc with --fmad=false give the same bits. No libm: its logarithms differ between machines.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HD __host__ __device__ inline
#else
#define HD inline __attribute__((always_inline))
#endif

HD float float_from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

HD uint32_t bits_from_float(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

#define LN2_HIGH 0.69314575f  // ln 2 in two parts: multiples of the first by small integers are exact
#define LN2_LOW 1.4286068e-6f

// Natural logarithm of a positive normal float, to 1 ulp: x = 2^e m with m in [sqrt(1/2), sqrt(2)),
// log(m) = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
HD float log_positive(float x) {
    const uint32_t sqrt_half = 0x3f3504f3u;
    uint32_t bits = bits_from_float(x) - sqrt_half;
    float e = (float)((int32_t)bits >> 23);
    float m = float_from_bits((bits & 0x007fffffu) + sqrt_half);
    float s = (m - 1.0f) / (m + 1.0f);
    float z = s * s;
    float tail = z * (0.33333333f + z * (0.2f + z * (0.14285715f + z * (0.11111111f + z * 0.09090909f))));
    return e * LN2_HIGH + (2.0f * s + (2.0f * s * tail + e * LN2_LOW));
}

// e^-x for x in [0, 80], to 2 ulp: 2^-n e^-r with |r| <= log(2) / 2.
HD float exp_negative(float x) {
    int32_t n = (int32_t)(x * 1.44269504f + 0.5f);
    float r = (x - (float)n * LN2_HIGH) - (float)n * LN2_LOW;
    float p = 1.0f - r * (1.0f - r * (0.5f - r * (0.16666667f - r * (0.041666668f - r * (0.0083333338f -
              r * 0.0013888889f)))));
    return p * float_from_bits((uint32_t)(127 - n) << 23);
}
