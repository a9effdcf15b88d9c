// CUDA's launch on a CPU: threadIdx and blockIdx as variables, a launch as loops over a grid of the same kind, with fewer
// lines than most images so that blocks go on to further ones. It shows wrong grids and wrong index arithmetic without a GPU;
// it shows nothing about speed, memory or races. Streams and memory are in device_on_cpu.cpp.
#pragma once
#include <algorithm>
#include <functional>
#include <initializer_list>

struct Dim {
    unsigned x, y;
};
static thread_local Dim threadIdx, blockIdx, gridDim;
static const Dim blockDim = {128, 1};

// Do `work` when `stream` is waited for, if all pointers are the stand-in's memory; at once on the null stream.
int32_t queue_on_cpu(void* stream, std::initializer_list<const void*> pointers, std::function<void()> work);

template <class T>
const void* pointer_in(T* argument) { return argument; }
template <class T>
const void* pointer_in(const T&) { return nullptr; }

template <class Kernel, class... Arguments>
int32_t launch_on_cpu(int32_t columns, int32_t lines, void* stream, Kernel kernel, Arguments... arguments) {
    return queue_on_cpu(stream, {pointer_in(arguments)...}, [=] {
        gridDim = {((unsigned)columns + 127) / 128, std::min((unsigned)lines, 7u)};
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
                for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) kernel(arguments...);
    });
}

#define __global__ static
#define LAUNCH(kernel, columns, lines, stream, ...) \
    return launch_on_cpu(columns, lines, stream, [](auto... arguments) { kernel(arguments...); }, __VA_ARGS__)
