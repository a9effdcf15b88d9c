// The C ABI of the kernels on a GPU, libexposure_kernels_cuda.so: no CUDA header and no CUDA library is needed to call it,
// only NVIDIA's driver. The layout of planes and rows is that of kernels.h; pointers to pixels are memory of the GPU in use.
// Everything that takes a stream is queued there and returns. Every call returns 0 or CUDA's number of an error.
#pragma once
#include "kernels.h"

struct Card {
    char name[256];
    int32_t major, minor;     // compute capability
    int32_t driver, runtime;  // CUDA versions: 1000 major + 10 minor
    uint64_t bytes;           // of memory
};

extern "C" {
const char* exposure_cuda_error(int32_t error);  // in words
int32_t exposure_cuda_describe(int32_t device, Card* card);
int32_t exposure_cuda_use(int32_t device);  // by this thread, from now on

int32_t exposure_cuda_allocate(void** memory, uint64_t bytes);
int32_t exposure_cuda_free(void* memory);
int32_t exposure_cuda_copy(void* to, const void* from, uint64_t bytes, void* stream);  // either side on host or GPU

int32_t exposure_cuda_open(void** stream);
int32_t exposure_cuda_close(void* stream);
int32_t exposure_cuda_wait(void* stream);  // until all that was queued is done; tells the errors of that too

int32_t exposure_cuda_mark(void** event, void* stream);                       // a new point in time on the stream
int32_t exposure_cuda_between(void* first, void* second, float* milliseconds);  // and forgets both; waits for them

int32_t exposure_cuda_pack(const uint16_t* mosaic, const Layout* layout, void* image, Planes planes, void* stream);
int32_t exposure_cuda_unpack(const float* image, const Layout* layout, uint16_t* mosaic, void* stream);
int32_t exposure_cuda_poisson(const float* rate, const Field* field, float* counts, void* stream);
int32_t exposure_cuda_expose(const float* clean, const float* original, const Injection* step, const Field* field,
                             void* next, Planes planes, void* stream);
}
