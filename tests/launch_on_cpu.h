// CUDA's launch on a CPU: threadIdx and blockIdx as variables, a launch as loops over the same grid. It shows wrong grids and
// wrong index arithmetic without a GPU; it shows nothing about speed, memory or races.
#pragma once

struct Dim {
    unsigned x, y;
};
static thread_local Dim threadIdx, blockIdx;
static const Dim blockDim = {32, 8};

#define __global__ static
#define LAUNCH(kernel, columns, rows, stream, ...)                            \
    (void)(stream);                                                           \
    for (blockIdx.y = 0; blockIdx.y < ((rows) + 7u) / 8; blockIdx.y++)        \
        for (blockIdx.x = 0; blockIdx.x < ((columns) + 31u) / 32; blockIdx.x++) \
            for (threadIdx.y = 0; threadIdx.y < 8; threadIdx.y++)             \
                for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++) kernel(__VA_ARGS__); \
    return 0
