// The C ABI of the kernels on a CPU. Images are [4, h, w], dense, FP32 unless `planes` says otherwise; mosaics are uint16,
// [H, W], dense. Callers validate.
#pragma once
#include <cstdint>

#include "half.cuh"
#include "step.cuh"

// How the planes that pack and expose write are stored.
enum Planes : int32_t { PLANES_FP32 = 0, PLANES_FP16 = 1 };

// Where the noise of an image lies: its first pixel is at `row`, `column` of the whole packed frame.
struct Field {
    uint64_t seed;
    uint32_t injection;  // counted from 0; an odd one mirrors the even one before it
    int32_t row, column;
    int32_t height, width;
};

// The stream of the pixel in `line` (rows of all four planes, one after the other) and column j of a field.
HD Stream stream_at(const Field& f, int32_t line, int32_t j) {
    return Stream(f.seed, f.injection, (uint32_t)(line / f.height), (uint32_t)f.row + (uint32_t)(line % f.height),
                  (uint32_t)f.column + (uint32_t)j);
}

extern "C" {
void exposure_cpu_pack(const uint16_t* mosaic, const Layout* layout, void* image, Planes planes, int32_t threads);
void exposure_cpu_unpack(const float* image, const Layout* layout, uint16_t* mosaic, int32_t threads);
void exposure_cpu_poisson(const float* rate, const Field* field, float* counts, int32_t threads);
void exposure_cpu_expose(const float* clean, const float* original, const Injection* step, const Field* field,
                         void* next, Planes planes, int32_t threads);
void exposure_schedule(double ratio, double gain, double saturation, double photon_unit, int32_t passes, float* rows);
int32_t exposure_cpu_cores(const char* root);  // root of /proc and /sys: "", but for tests
void exposure_cpu_philox(const uint32_t* counter, const uint32_t* key, uint32_t* words);  // for known-answer tests
}
