// The kernels on a GPU: one thread a pixel, the arithmetic of the .cuh files. Pointers are device memory; every call is
// queued on `stream` and returns the launch's error (0 is none). The layout of planes and rows is that of cpu.cpp.
//
// tests/launch_on_cpu.h defines threadIdx and the launch away, so that this file's index code runs on a CPU too.
#include "kernels.h"

#ifdef __CUDACC__
#define LAUNCH(kernel, columns, rows, stream, ...)                                                    \
    kernel<<<dim3(((columns) + 31) / 32, ((rows) + 7) / 8), dim3(32, 8), 0, (cudaStream_t)(stream)>>>(__VA_ARGS__); \
    return (int32_t)cudaGetLastError()
#else
#include "launch_on_cpu.h"
#endif

// Column j and line of this thread, where a line is a row of one plane, all planes one after the other.
#define LINE_AND_COLUMN(lines, columns)                    \
    int32_t j = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);    \
    int32_t line = (int32_t)(blockIdx.y * blockDim.y + threadIdx.y); \
    if (j >= (columns) || line >= (lines)) return

__global__ void pack_kernel(const uint16_t* mosaic, Layout l, float* image) {
    LINE_AND_COLUMN(4 * l.plane_height, l.plane_width);
    int32_t plane = line / l.plane_height, i = line % l.plane_height, position = l.position[plane];
    int64_t row = mosaic_index(i, l.height, position / 2), column = mosaic_index(j, l.width, position % 2);
    image[(int64_t)line * l.plane_width + j] =
        signal_from_dn(mosaic[row * l.width + column], l.black[position], l.factor[position]);
}

__global__ void unpack_kernel(const float* image, Layout l, uint16_t* mosaic) {
    LINE_AND_COLUMN(l.height, l.width);
    int32_t position = 2 * (line % 2) + j % 2, plane = 0;
    while (l.position[plane] != position) plane++;
    float signal = image[((int64_t)plane * l.plane_height + line / 2) * l.plane_width + j / 2];
    mosaic[(int64_t)line * l.width + j] = dn_from_signal(signal, l.black[position], l.factor[position]);
}

__global__ void poisson_kernel(const float* rate, Field f, float* counts) {
    LINE_AND_COLUMN(4 * f.height, f.width);
    int64_t pixel = (int64_t)line * f.width + j;
    counts[pixel] = poisson(rate[pixel], stream_at(f, line, j));
}

__global__ void expose_kernel(const float* clean, const float* original, Injection step, Field f, float* next) {
    LINE_AND_COLUMN(4 * f.height, f.width);
    int64_t pixel = (int64_t)line * f.width + j;
    next[pixel] = exposed(clean[pixel], original[pixel], step, stream_at(f, line, j));
}

extern "C" {
int32_t exposure_cuda_pack(const uint16_t* mosaic, const Layout* layout, float* image, void* stream) {
    LAUNCH(pack_kernel, layout->plane_width, 4 * layout->plane_height, stream, mosaic, *layout, image);
}

int32_t exposure_cuda_unpack(const float* image, const Layout* layout, uint16_t* mosaic, void* stream) {
    LAUNCH(unpack_kernel, layout->width, layout->height, stream, image, *layout, mosaic);
}

int32_t exposure_cuda_poisson(const float* rate, const Field* field, float* counts, void* stream) {
    LAUNCH(poisson_kernel, field->width, 4 * field->height, stream, rate, *field, counts);
}

int32_t exposure_cuda_expose(const float* clean, const float* original, const Injection* step, const Field* field,
                             float* next, void* stream) {
    LAUNCH(expose_kernel, field->width, 4 * field->height, stream, clean, original, *step, *field, next);
}
}
