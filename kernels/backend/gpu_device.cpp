#include <vector>

#include "cuda_library.h"
#include "device.h"

namespace {

// One stream, and scratch that is kept from request to request: the n-th piece of a request takes the n-th place.
class GpuDevice : public Device {
  public:
    GpuDevice(int32_t card, size_t kept_bytes) : cuda_(cuda()), card_(card), kept_bytes_(kept_bytes) {
        use();
        check_cuda(cuda_.open(&stream_));
    }

    ~GpuDevice() override {
        cuda_.use(card_);
        cuda_.wait(stream_);
        for (Piece& piece : pieces_) cuda_.free(piece.memory);
        cuda_.close(stream_);
    }

    Place place() const override { return {MEMORY_GPU, card_}; }
    // A client's shared memory may begin anywhere, and a card that reads a number across two words fails for good.
    bool reaches(const void* data, Place place) const override {
        return place.memory == MEMORY_GPU && place.id == card_ && (uintptr_t)data % sizeof(float) == 0;
    }

    void* scratch(size_t bytes) override {
        use();
        if (used_ == pieces_.size()) pieces_.push_back({nullptr, 0});
        Piece& piece = pieces_[used_];
        if (piece.bytes < bytes) {
            if (piece.memory) check_cuda(cuda_.free(piece.memory));
            piece = {nullptr, 0};
            check_cuda(cuda_.allocate(&piece.memory, bytes));
            piece.bytes = bytes;
        }
        used_++;
        return piece.memory;
    }

    void copy(void* to, const void* from, size_t bytes) override {
        use();
        check_cuda(cuda_.copy(to, from, bytes, stream_));
    }

    void wait() override {
        use();
        check_cuda(cuda_.wait(stream_));
    }

    void recycle() override {
        used_ = 0;
        size_t held = 0;
        for (Piece& piece : pieces_) held += piece.bytes;
        for (; held > kept_bytes_; pieces_.pop_back()) {
            held -= pieces_.back().bytes;
            check_cuda(cuda_.free(pieces_.back().memory));
        }
    }

    void pack(const uint16_t* mosaic, const Layout& layout, float* image) override {
        use();
        check_cuda(cuda_.pack(mosaic, &layout, image, PLANES_FP32, stream_));
    }
    void unpack(const float* image, const Layout& layout, uint16_t* mosaic) override {
        use();
        check_cuda(cuda_.unpack(image, &layout, mosaic, stream_));
    }
    void expose(const float* clean, const float* original, const Injection& step, const Field& field, float* next) override {
        use();
        check_cuda(cuda_.expose(clean, original, &step, &field, next, PLANES_FP32, stream_));
    }

  private:
    struct Piece {
        void* memory;
        size_t bytes;
    };

    void use() { check_cuda(cuda_.use(card_)); }  // a thread of Triton's may serve instances of several cards

    const CudaLibrary& cuda_;
    int32_t card_;
    size_t kept_bytes_;
    void* stream_ = nullptr;
    std::vector<Piece> pieces_;
    size_t used_ = 0;
};

}  // namespace

std::unique_ptr<Device> make_gpu_device(int32_t card, size_t kept_bytes) {
    return std::make_unique<GpuDevice>(card, kept_bytes);
}
