#include <deque>
#include <vector>

#include "cuda_library.h"
#include "device.h"

namespace {

class CpuDevice : public Device {
  public:
    explicit CpuDevice(int threads) : threads_(threads) {}

    Place place() const override { return {}; }
    bool reaches(const void*, Place place) const override { return place.on_host(); }
    void* scratch(size_t bytes) override { return scratch_.emplace_back(bytes).data(); }
    void copy(void* to, const void* from, size_t bytes) override {  // a tensor of a model that runs on a GPU
        check_cuda(cuda().copy(to, from, bytes, nullptr));
        check_cuda(cuda().wait(nullptr));
    }
    void wait() override {}
    void recycle() override { scratch_.clear(); }

    void pack(const uint16_t* mosaic, const Layout& layout, float* image) override {
        exposure_cpu_pack(mosaic, &layout, image, PLANES_FP32, threads_);
    }
    void unpack(const float* image, const Layout& layout, uint16_t* mosaic) override {
        exposure_cpu_unpack(image, &layout, mosaic, threads_);
    }
    void expose(const float* clean, const float* original, const Injection& step, const Field& field, float* next) override {
        exposure_cpu_expose(clean, original, &step, &field, next, PLANES_FP32, threads_);
    }

  private:
    int threads_;
    std::deque<std::vector<char>> scratch_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) { return std::make_unique<CpuDevice>(threads); }
