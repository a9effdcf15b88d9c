// The layers of the U-Net on a CPU, each in blocks that any thread may compute. Images are [h, w, c], dense FP32, c a
// multiple of PANEL; channels that the network does not have are 0 and stay so.
#pragma once
#include <cstdint>

enum { PANEL = 16 };  // outputs whose weights lie together: [outputs / PANEL, inputs, PANEL]

struct Image {
    float* data;
    int32_t height, width, channels;
};

// The last 1x1 convolution and the adaptive residual layer.
struct Last {
    const float *weights, *bias;  // weights: [inputs, PANEL]
    int32_t outputs;              // 9: mask, direct estimate, residual; or 4, the estimate
    const float* image;           // [4, h, w]
    float* clean;                 // [4, h, w]
};

// A 3x3 convolution of one or two images side by side, leaky ReLU, and on demand 2x2 maxima of the result, or the last layer.
struct Conv3x3 {
    Image sources[2];             // the second without data where there is one
    const float *weights, *bias;  // weights: [36, outputs / PANEL, inputs, PANEL], in Winograd's domain
    int32_t inputs;               // what the sources have beyond is 0
    Image target;
    float* pooled;     // [h / 2, w / 2, c] or nullptr
    const Last* last;  // or nullptr; else it is computed at once, and the target not stored. Sides: multiples of 4
    int32_t threads;   // that share the blocks, at least 1; any number gives the same bits
};

// A transposed 2x2 convolution of stride 2: each pixel becomes four.
struct Up2x2 {
    Image source;
    const float *weights, *bias;  // weights: [4, outputs / PANEL, inputs, PANEL]
    Image target;
};

// What one kind of processor offers. A block needs `scratch` floats of its thread's own.
struct Layers {
    int64_t (*conv3x3_blocks)(const Conv3x3& layer);
    int64_t (*conv3x3_scratch)(const Conv3x3& layer);
    void (*conv3x3)(const Conv3x3& layer, int64_t block, float* scratch);
    int64_t (*up2x2_blocks)(const Up2x2& layer);
    int64_t (*up2x2_scratch)(const Up2x2& layer);
    void (*up2x2)(const Up2x2& layer, int64_t block, float* scratch);
};

extern const Layers layers_avx2, layers_avx512;
