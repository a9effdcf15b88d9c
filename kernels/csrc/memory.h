// Memory for vectors: none of them lies across two lines of the cache.
#pragma once
#include <sys/mman.h>

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

// Of what is large, in pages of 2 MB where the system has them: it is faster to get, and found with fewer lookups. Throws
// std::bad_alloc.
inline Memory allocated(int64_t floats) {
    const size_t line = 64, page = 2 << 20;
    size_t bytes = (size_t)floats * sizeof(float), unit = bytes < 2 * page ? line : page;
    size_t whole = unit * std::max<size_t>(1, (bytes + unit - 1) / unit);
    float* memory = (float*)aligned_alloc(unit, whole);
    if (!memory) throw std::bad_alloc();
    if (unit == page) madvise(memory, whole, MADV_HUGEPAGE);  // where there are none, nothing is lost
    return Memory(memory);
}

}  // namespace
