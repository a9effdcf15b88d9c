// The network on a CPU, by whatever computes it.
#pragma once
#include <cstdint>

// Packed pixels of all frame sizes whose memory is kept between requests, but for a larger usual one. Activations take 0.4 kB
// a pixel in our kernels, about 0.7 kB in OpenVINO's.
constexpr int64_t KEPT_PIXELS = 4000000;

class Engine {
  public:
    virtual ~Engine() = default;

    // image, original: [1, 4, height, width]; photon_gain: [1]; original may be nullptr where the network needs none.
    // Throws std::bad_alloc where memory does not suffice.
    virtual void infer(const float* image, const float* photon_gain, const float* original, int64_t height, int64_t width,
                       float* clean) = 0;

    virtual bool wants_original() const = 0;
};
