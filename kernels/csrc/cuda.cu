// The kernels on a GPU, thin: the arithmetic is in the .cuh files. A block is a piece of a line; of a frame with
// more lines than a grid may have, each goes on to further ones.
//
// tests/launch_on_cpu.h turns a launch into loops, so that this file's index code runs on a CPU too.
#include "kernels_cuda.h"

#ifdef __CUDACC__
static const unsigned MOST_LINES = 65535;  // of a grid
#define LAUNCH(kernel, columns, lines, stream, ...)                                                             \
    kernel<<<dim3(((unsigned)(columns) + 127) / 128, (unsigned)(lines) < MOST_LINES ? (lines) : MOST_LINES), 128, 0, \
             (cudaStream_t)(stream)>>>(__VA_ARGS__);                                                            \
    return (int32_t)cudaGetLastError()
#else
#include "launch_on_cpu.h"
#endif

// What follows runs for column j of every line that is this thread's.
#define FOR_EACH_LINE(lines, columns)                            \
    int32_t j = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x); \
    if (j >= (columns)) return;                                  \
    for (int32_t line = (int32_t)blockIdx.y; line < (lines); line += (int32_t)gridDim.y)

// A thread does a whole cell, so that the mosaic is read once.
template <class Plane>
__global__ void pack_kernel(const uint16_t* mosaic, Layout l, Plane* image) {
    FOR_EACH_LINE(l.plane_height, l.plane_width) {
        for (int32_t plane = 0; plane < 4; plane++) {
            int32_t position = l.position[plane];
            int64_t row = mosaic_index(line, l.height, position / 2), column = mosaic_index(j, l.width, position % 2);
            float signal = signal_from_dn(mosaic[row * l.width + column], l.black[position], l.factor[position]);
            store(signal, image + ((int64_t)plane * l.plane_height + line) * l.plane_width + j);
        }
    }
}

__global__ void unpack_kernel(const float* image, Layout l, uint16_t* mosaic) {
    FOR_EACH_LINE((l.height + 1) / 2, (l.width + 1) / 2) {
        for (int32_t plane = 0; plane < 4; plane++) {
            int32_t position = l.position[plane], row = 2 * line + position / 2, column = 2 * j + position % 2;
            if (row >= l.height || column >= l.width) continue;  // the completed half of an odd side's last cell
            float signal = image[((int64_t)plane * l.plane_height + line) * l.plane_width + j];
            mosaic[(int64_t)row * l.width + column] = dn_from_signal(signal, l.black[position], l.factor[position]);
        }
    }
}

// Here a line is a row of one plane, all planes one after the other.
__global__ void poisson_kernel(const float* rate, Field f, float* counts) {
    FOR_EACH_LINE(4 * f.height, f.width) {
        int64_t pixel = (int64_t)line * f.width + j;
        counts[pixel] = poisson(rate[pixel], stream_at(f, line, j));
    }
}

template <class Plane>
__global__ void expose_kernel(const float* clean, const float* original, Injection step, Field f, Plane* next) {
    FOR_EACH_LINE(4 * f.height, f.width) {
        int64_t pixel = (int64_t)line * f.width + j;
        float count = poisson(photons_of(clean[pixel], step), stream_at(f, line, j));
        store(with_photons(original[pixel], count, step), next + pixel);
    }
}

template <class Plane>
static int32_t pack(const uint16_t* mosaic, const Layout& l, Plane* image, void* stream) {
    LAUNCH(pack_kernel, l.plane_width, l.plane_height, stream, mosaic, l, image);
}

template <class Plane>
static int32_t expose(const float* clean, const float* original, const Injection& step, const Field& f, Plane* next,
                      void* stream) {
    LAUNCH(expose_kernel, f.width, 4 * f.height, stream, clean, original, step, f, next);
}

int32_t exposure_cuda_pack(const uint16_t* mosaic, const Layout* layout, void* image, Planes planes, void* stream) {
    if (planes == PLANES_FP16) return pack(mosaic, *layout, static_cast<Half*>(image), stream);
    return pack(mosaic, *layout, static_cast<float*>(image), stream);
}

int32_t exposure_cuda_unpack(const float* image, const Layout* layout, uint16_t* mosaic, void* stream) {
    LAUNCH(unpack_kernel, (layout->width + 1) / 2, (layout->height + 1) / 2, stream, image, *layout, mosaic);
}

int32_t exposure_cuda_poisson(const float* rate, const Field* field, float* counts, void* stream) {
    LAUNCH(poisson_kernel, field->width, 4 * field->height, stream, rate, *field, counts);
}

int32_t exposure_cuda_expose(const float* clean, const float* original, const Injection* step, const Field* field,
                             void* next, Planes planes, void* stream) {
    if (planes == PLANES_FP16) return expose(clean, original, *step, *field, static_cast<Half*>(next), stream);
    return expose(clean, original, *step, *field, static_cast<float*>(next), stream);
}
