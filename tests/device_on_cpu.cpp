// A stand-in for csrc/device.cu where no GPU is: its memory cannot be touched but by copies and kernels, which run when the
// stream is waited for and not before. So a pointer of the wrong side, a missing wait and a write past the end are found.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "../kernels/csrc/kernels_cuda.h"
#include "launch_on_cpu.h"

static const int32_t INVALID = 1, NO_MEMORY = 2, BAD_ADDRESS = 700, MISALIGNED = 716;
static const uint64_t CARD_BYTES = 64 << 20, PAGE = 4096;

struct Block {
    void* pages;
    uint64_t mapped, bytes;  // mapped: without the guard page
};
using Work = std::vector<std::function<void()>>;

static std::recursive_mutex one_at_a_time;
static std::map<const char*, Block> blocks;
static uint64_t in_use = 0;

static bool is_ours(const void* pointer) {
    auto after = blocks.upper_bound(static_cast<const char*>(pointer));
    if (after == blocks.begin()) return false;
    auto block = std::prev(after);
    return static_cast<const char*>(pointer) < block->first + block->second.bytes;
}

static void protect_all(int access) {
    for (auto& block : blocks) mprotect(block.second.pages, block.second.mapped, access);
}

static void with_memory_open(const std::function<void()>& work) {
    protect_all(PROT_READ | PROT_WRITE);
    work();
    protect_all(PROT_NONE);
}

int32_t queue_on_cpu(void* stream, std::initializer_list<const void*> pointers, std::function<void()> work) {
    std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
    if (stream == nullptr) return with_memory_open(work), 0;
    for (const void* pointer : pointers)
        if (pointer && !is_ours(pointer)) return BAD_ADDRESS;
    for (const void* pointer : pointers)
        if ((uintptr_t)pointer % sizeof(float)) return MISALIGNED;
    static_cast<Work*>(stream)->push_back(std::move(work));
    return 0;
}

extern "C" uint64_t device_on_cpu_bytes() { return in_use; }

const char* exposure_cuda_error(int32_t error) {
    return error == NO_MEMORY ? "out of memory" : error == BAD_ADDRESS ? "an illegal memory access" : error == MISALIGNED ? "a misaligned address" : "invalid argument";
}

int32_t exposure_cuda_describe(int32_t device, Card* card) {
    if (device != 0) return INVALID;
    *card = {"no card: its kernels on a CPU", 0, 0, 0, 0, CARD_BYTES};
    return 0;
}

int32_t exposure_cuda_use(int32_t device) { return device == 0 ? 0 : INVALID; }

int32_t exposure_cuda_allocate(void** memory, uint64_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
    if (in_use + bytes > CARD_BYTES) return NO_MEMORY;
    Block block{nullptr, (bytes + PAGE - 1) / PAGE * PAGE, bytes};
    block.pages = mmap(nullptr, block.mapped + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block.pages == MAP_FAILED) return NO_MEMORY;
    char* start = static_cast<char*>(block.pages) + (block.mapped - (bytes + 7) / 8 * 8);  // the guard page is its end
    blocks[start] = block;
    in_use += bytes;
    *memory = start;
    return 0;
}

int32_t exposure_cuda_free(void* memory) {
    std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
    auto found = blocks.find(static_cast<char*>(memory));
    if (found == blocks.end()) return INVALID;
    munmap(found->second.pages, found->second.mapped + PAGE);
    in_use -= found->second.bytes;
    blocks.erase(found);
    return 0;
}

int32_t exposure_cuda_copy(void* to, const void* from, uint64_t bytes, void* stream) {
    return queue_on_cpu(stream, {}, [=] { memcpy(to, from, bytes); });
}

int32_t exposure_cuda_open(void** stream) { return *stream = new Work, 0; }

int32_t exposure_cuda_close(void* stream) { return delete static_cast<Work*>(stream), 0; }

int32_t exposure_cuda_wait(void* stream) {
    std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
    if (stream == nullptr) return 0;
    Work work = std::move(*static_cast<Work*>(stream));
    static_cast<Work*>(stream)->clear();
    with_memory_open([&] {
        for (auto& piece : work) piece();
    });
    return 0;
}

using Clock = std::chrono::steady_clock;

int32_t exposure_cuda_mark(void** event, void* stream) {
    Clock::time_point* time = new Clock::time_point;
    *event = time;
    return queue_on_cpu(stream, {}, [time] { *time = Clock::now(); });
}

int32_t exposure_cuda_between(void* first, void* second, float* milliseconds) {
    auto *from = static_cast<Clock::time_point*>(first), *to = static_cast<Clock::time_point*>(second);
    *milliseconds = std::chrono::duration<float, std::milli>(*to - *from).count();
    delete from;
    delete to;
    return 0;
}
