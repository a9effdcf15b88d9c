// Vectors of floats as wide as the file that includes this is compiled for: 16 with AVX-512, else 8 with AVX2. Nothing that
// is compiled so may be shared with other files, not even a template of the standard library: the linker would keep one of
// both, and another processor might run it.
#pragma once
#include <immintrin.h>

#include <cstdint>

#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC 12 about its own _mm512_max_ps (its bug 105593)
#endif

namespace {

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 14 };  // two vectors of sums for each of 14 rows: 28 of 32 registers
typedef float Lanes __attribute__((vector_size(64)));
inline Lanes load(const float* from) { return (Lanes)_mm512_loadu_ps(from); }
inline void store(float* to, Lanes a) { _mm512_storeu_ps(to, (__m512)a); }
inline Lanes all(float a) { return (Lanes)_mm512_set1_ps(a); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline Lanes larger(Lanes a, Lanes b) { return (Lanes)_mm512_max_ps((__m512)a, (__m512)b); }
#else
enum { LANES = 8, ROWS = 6 };  // 12 of 16 registers
typedef float Lanes __attribute__((vector_size(32)));
inline Lanes load(const float* from) { return (Lanes)_mm256_loadu_ps(from); }
inline void store(float* to, Lanes a) { _mm256_storeu_ps(to, (__m256)a); }
inline Lanes all(float a) { return (Lanes)_mm256_set1_ps(a); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline Lanes larger(Lanes a, Lanes b) { return (Lanes)_mm256_max_ps((__m256)a, (__m256)b); }
#endif

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
