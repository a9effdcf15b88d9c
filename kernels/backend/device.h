// Where an instance computes, a CPU or a GPU: memory that its ops reach, copies between all memories, and the ops.
#pragma once
#include <cstddef>
#include <memory>
#include <stdexcept>

#include "../csrc/kernels.h"
#include "triton_api.h"

// The device's memory does not suffice while others hold it: answered with UNAVAILABLE and the sentence.
struct Full : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Where memory lies, as Triton says it.
struct Place {
    TRITONSERVER_MemoryType memory = MEMORY_CPU;
    int64_t id = 0;

    bool on_host() const { return memory != MEMORY_GPU; }
};

// Used by one thread at a time. Throws std::runtime_error, one sentence. Ops and copies run in the order of the calls, and
// are done after wait().
class Device {
  public:
    virtual ~Device() = default;

    virtual Place place() const = 0;              // where outputs are wanted
    virtual bool reaches(const void* data, Place place) const = 0;  // whether ops use memory there as it lies
    virtual void* scratch(size_t bytes) = 0;      // memory that ops reach, valid until recycle()
    virtual void copy(void* to, const void* from, size_t bytes) = 0;  // where at least one side is on a GPU
    virtual void wait() = 0;
    virtual void recycle() = 0;  // scratch is free again; after wait()

    virtual void pack(const uint16_t* mosaic, const Layout& layout, float* image) = 0;
    virtual void unpack(const float* image, const Layout& layout, uint16_t* mosaic) = 0;
    virtual void expose(const float* clean, const float* original, const Injection& step, const Field& field,
                        float* next) = 0;
};

std::unique_ptr<Device> make_cpu_device(int threads);

// kept_bytes: of scratch between requests; what a larger request took is given back after it.
std::unique_ptr<Device> make_gpu_device(int32_t card, size_t kept_bytes = 256 << 20);
