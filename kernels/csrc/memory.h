// Memory for vectors: none of them lies across two lines of the cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace {

struct Free {
    void operator()(float* memory) const { free(memory); }
};
using Memory = std::unique_ptr<float[], Free>;

// Throws std::bad_alloc.
inline Memory allocated(int64_t floats) {
    const size_t line = 64;
    size_t lines = ((size_t)floats * sizeof(float) + line - 1) / line;
    float* memory = (float*)aligned_alloc(line, line * std::max<size_t>(1, lines));
    if (!memory) throw std::bad_alloc();
    return Memory(memory);
}

}  // namespace
