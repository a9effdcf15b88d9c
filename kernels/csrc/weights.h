// The network's weights as the layers want them: channels padded, in panels, those of 3x3 convolutions in Winograd's domain.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "layers.h"
#include "memory.h"

namespace {

int32_t padded(int32_t channels) { return (channels + PANEL - 1) / PANEL * PANEL; }

// G of F(4x4, 3x3), of which layers_simd.h has B and A.
const double G[6][3] = {{1 / 4.0, 0, 0},           {-1 / 6.0, -1 / 6.0, -1 / 6.0}, {-1 / 6.0, 1 / 6.0, -1 / 6.0},
                        {1 / 24.0, 1 / 12.0, 1 / 6.0}, {1 / 24.0, -1 / 12.0, 1 / 6.0}, {0, 0, 1}};

// Where the weight of input k and output n lies among those of one product.
int64_t in_panels(int32_t k, int32_t n, int32_t depth) {
    return ((int64_t)(n / PANEL) * depth + k) * PANEL + n % PANEL;
}

std::vector<float> padded_bias(const float* bias, int32_t outputs) {
    std::vector<float> result(padded(outputs));
    std::copy(bias, bias + outputs, result.begin());
    return result;
}

Memory zeros(int64_t floats) {
    Memory memory = allocated(floats);
    std::fill(memory.get(), memory.get() + floats, 0.0f);
    return memory;
}

struct Weights {
    Memory weights;
    std::vector<float> bias;
    int32_t depth;  // inputs that there are weights for
};

// A 3x3 kernel [outputs, inputs, 3, 3] into Winograd's domain, G g G^T. Of two sources, each is padded for itself; what
// pads a single one is left out.
Weights conv3x3_weights(const float* kernel, const float* bias, int32_t inputs, int32_t sources, int32_t outputs) {
    int32_t each = inputs / sources, depth = sources > 1 ? sources * padded(each) : inputs;
    Memory weights = zeros((int64_t)36 * depth * padded(outputs));
    for (int32_t n = 0; n < outputs; n++)
        for (int32_t i = 0; i < inputs; i++) {
            const float* g = kernel + ((int64_t)n * inputs + i) * 9;
            float* to = weights.get() + in_panels(i / each * padded(each) + i % each, n, depth);
            for (int y = 0; y < 6; y++)
                for (int x = 0; x < 6; x++) {
                    double sum = 0;
                    for (int r = 0; r < 3; r++)
                        for (int c = 0; c < 3; c++) sum += G[y][r] * g[r * 3 + c] * G[x][c];
                    to[(int64_t)(y * 6 + x) * depth * padded(outputs)] = (float)sum;
                }
        }
    return {std::move(weights), padded_bias(bias, outputs), depth};
}

// A kernel [inputs, outputs, 2, 2].
Weights up2x2_weights(const float* kernel, const float* bias, int32_t inputs, int32_t outputs) {
    int32_t depth = padded(inputs);
    Memory weights = zeros((int64_t)4 * depth * padded(outputs));
    for (int32_t k = 0; k < inputs; k++)
        for (int32_t n = 0; n < outputs; n++)
            for (int corner = 0; corner < 4; corner++)
                weights[(int64_t)corner * depth * padded(outputs) + in_panels(k, n, depth)] =
                    kernel[((int64_t)k * outputs + n) * 4 + corner];
    return {std::move(weights), padded_bias(bias, outputs), depth};
}

// A kernel [outputs, inputs].
Weights last_weights(const float* kernel, const float* bias, int32_t inputs, int32_t outputs) {
    int32_t depth = padded(inputs);
    Memory weights = zeros((int64_t)depth * PANEL);
    for (int32_t n = 0; n < outputs; n++)
        for (int32_t k = 0; k < inputs; k++) weights[in_panels(k, n, depth)] = kernel[(int64_t)n * inputs + k];
    return {std::move(weights), padded_bias(bias, outputs), depth};
}

}  // namespace
