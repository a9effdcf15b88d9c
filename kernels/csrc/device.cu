// Memory, streams and time of a GPU behind the C ABI, so that callers need no CUDA header and no CUDA library.
#include <cuda_runtime_api.h>

#include <cstdio>

#include "kernels_cuda.h"

#define TRY(call)                                             \
    if (cudaError_t error = (call); error != cudaSuccess) {   \
        cudaGetLastError(); /* told here, so not again later */ \
        return (int32_t)error;                                \
    }

static cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

const char* exposure_cuda_error(int32_t error) { return cudaGetErrorString((cudaError_t)error); }

int32_t exposure_cuda_describe(int32_t device, Card* card) {
    cudaDeviceProp properties;
    TRY(cudaGetDeviceProperties(&properties, device));
    snprintf(card->name, sizeof card->name, "%s", properties.name);
    card->major = properties.major;
    card->minor = properties.minor;
    card->bytes = properties.totalGlobalMem;
    TRY(cudaDriverGetVersion(&card->driver));
    TRY(cudaRuntimeGetVersion(&card->runtime));
    return 0;
}

int32_t exposure_cuda_use(int32_t device) {
    TRY(cudaSetDevice(device));
    return 0;
}

int32_t exposure_cuda_allocate(void** memory, uint64_t bytes) {
    TRY(cudaMalloc(memory, bytes));
    return 0;
}

int32_t exposure_cuda_free(void* memory) {
    TRY(cudaFree(memory));
    return 0;
}

int32_t exposure_cuda_copy(void* to, const void* from, uint64_t bytes, void* stream) {
    TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, as_stream(stream)));
    return 0;
}

int32_t exposure_cuda_open(void** stream) {
    TRY(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
    return 0;
}

int32_t exposure_cuda_close(void* stream) {
    TRY(cudaStreamDestroy(as_stream(stream)));
    return 0;
}

int32_t exposure_cuda_wait(void* stream) {
    TRY(cudaStreamSynchronize(as_stream(stream)));
    return 0;
}

int32_t exposure_cuda_mark(void** event, void* stream) {
    TRY(cudaEventCreate(reinterpret_cast<cudaEvent_t*>(event)));
    TRY(cudaEventRecord(static_cast<cudaEvent_t>(*event), as_stream(stream)));
    return 0;
}

int32_t exposure_cuda_between(void* first, void* second, float* milliseconds) {
    cudaEvent_t from = static_cast<cudaEvent_t>(first), to = static_cast<cudaEvent_t>(second);
    TRY(cudaEventSynchronize(to));
    TRY(cudaEventElapsedTime(milliseconds, from, to));
    TRY(cudaEventDestroy(from));
    TRY(cudaEventDestroy(to));
    return 0;
}
