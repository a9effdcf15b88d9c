// libexposure_kernels_cuda.so, loaded when the first GPU is needed, so that a server on a machine without one needs nothing.
#pragma once
#include "../csrc/kernels_cuda.h"

struct CudaLibrary {
    decltype(&exposure_cuda_error) error;
    decltype(&exposure_cuda_use) use;
    decltype(&exposure_cuda_allocate) allocate;
    decltype(&exposure_cuda_free) free;
    decltype(&exposure_cuda_copy) copy;
    decltype(&exposure_cuda_open) open;
    decltype(&exposure_cuda_close) close;
    decltype(&exposure_cuda_wait) wait;
    decltype(&exposure_cuda_pack) pack;
    decltype(&exposure_cuda_unpack) unpack;
    decltype(&exposure_cuda_expose) expose;
};

// The library that lies beside this backend. Throws std::runtime_error, one sentence, where it is missing.
const CudaLibrary& cuda();

// Throws Full where the card's memory does not suffice, std::runtime_error for anything else but 0.
void check_cuda(int32_t error);
