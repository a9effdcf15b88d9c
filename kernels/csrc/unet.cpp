// The U-Net of exposure/networks/unet.py on a CPU: which layer reads and writes what, in which memory, on which threads.
// Blocks are handed out one by one, so a thread whose core is taken does not hold up the others; who computes a block
// changes nothing.
#include "unet.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "layers.h"

namespace {

enum { LEVELS = 5, SLACK = 128 };  // pixels behind an image that a layer may read, whose results nobody uses

struct Free {
    void operator()(float* memory) const { free(memory); }
};
using Memory = std::unique_ptr<float[], Free>;

Memory allocated(int64_t floats) {
    const size_t line = 64;  // of the cache; no vector lies across two
    float* memory = (float*)aligned_alloc(line, ((size_t)floats * sizeof(float) + line - 1) / line * line);
    if (!memory) throw std::bad_alloc();
    return Memory(memory);
}

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

struct Weights {
    std::vector<float> weights, bias;
};

// A 3x3 kernel [outputs, inputs, 3, 3] into Winograd's domain, G g G^T. Of two sources, each is padded for itself.
Weights conv3x3_weights(const float* kernel, const float* bias, int32_t inputs, int32_t sources, int32_t outputs) {
    int32_t each = inputs / sources, depth = sources * padded(each);
    std::vector<float> weights((int64_t)36 * depth * padded(outputs));
    for (int32_t n = 0; n < outputs; n++)
        for (int32_t i = 0; i < inputs; i++) {
            const float* g = kernel + ((int64_t)n * inputs + i) * 9;
            float* to = weights.data() + in_panels(i / each * padded(each) + i % each, n, depth);
            for (int y = 0; y < 6; y++)
                for (int x = 0; x < 6; x++) {
                    double sum = 0;
                    for (int r = 0; r < 3; r++)
                        for (int c = 0; c < 3; c++) sum += G[y][r] * g[r * 3 + c] * G[x][c];
                    to[(int64_t)(y * 6 + x) * depth * padded(outputs)] = (float)sum;
                }
        }
    return {std::move(weights), padded_bias(bias, outputs)};
}

// A kernel [inputs, outputs, 2, 2].
Weights up2x2_weights(const float* kernel, const float* bias, int32_t inputs, int32_t outputs) {
    int32_t depth = padded(inputs);
    std::vector<float> weights((int64_t)4 * depth * padded(outputs));
    for (int32_t k = 0; k < inputs; k++)
        for (int32_t n = 0; n < outputs; n++)
            for (int corner = 0; corner < 4; corner++)
                weights[(int64_t)corner * depth * padded(outputs) + in_panels(k, n, depth)] =
                    kernel[((int64_t)k * outputs + n) * 4 + corner];
    return {std::move(weights), padded_bias(bias, outputs)};
}

// A kernel [outputs, inputs].
Weights last_weights(const float* kernel, const float* bias, int32_t inputs, int32_t outputs) {
    std::vector<float> weights((int64_t)padded(inputs) * PANEL);
    for (int32_t n = 0; n < outputs; n++)
        for (int32_t k = 0; k < inputs; k++) weights[in_panels(k, n, padded(inputs))] = kernel[(int64_t)n * inputs + k];
    return {std::move(weights), padded_bias(bias, outputs)};
}

}  // namespace

struct UNetMemory {
    Memory images;
    int64_t pixels = 0;  // that they are for
    std::vector<Memory> scratch;  // of each thread
    int64_t scratch_floats = 0;
    std::vector<double> seconds;  // of each stage of the last pass

    // Throws std::bad_alloc.
    void make_room(int32_t threads, int64_t floats) {
        if (floats > scratch_floats) scratch.clear(), scratch_floats = floats;
        while ((int32_t)scratch.size() < threads) scratch.push_back(allocated(scratch_floats));
    }
};

namespace {

// A stage: calls compute(block, scratch) for every block; scratch: floats of each thread's own.
template <class Compute>
void for_each_block(UNetMemory& memory, int64_t blocks, int64_t scratch, int32_t threads, Compute compute) {
    int32_t most = (int32_t)std::min<int64_t>(std::max(threads, 1), blocks);
    auto began = std::chrono::steady_clock::now();
    memory.make_room(most, scratch);
    std::atomic<int64_t> next{0};
    auto work = [&](int32_t t) {
        for (int64_t block; (block = next++) < blocks;) compute(block, memory.scratch[t].get());
    };
    std::vector<std::thread> others;
    others.reserve(most);
    try {
        for (int32_t t = 1; t < most; t++) others.emplace_back(work, t);
    } catch (const std::system_error&) {  // no thread to be had: those that are there do the rest
    }
    work(0);
    for (auto& other : others) other.join();
    memory.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
}

}  // namespace

struct UNet {
    UNetShape shape;
    const Layers* layers;
    std::vector<Weights> down, up, up_convs;  // conv1_1 .. conv5_2; upv6 .. upv9; conv6_1 .. conv9_2
    Weights last;
};

namespace {

const Layers* layers_for(int32_t lanes) {
#ifdef __x86_64__
    if (lanes >= 16) return &layers_avx512;
    if (lanes >= 8) return &layers_avx2;
#endif
    return nullptr;
}

std::unique_ptr<UNet> made(const UNetShape& shape, const float* const* parameters, const Layers* layers) {
    auto unet = std::make_unique<UNet>();
    unet->shape = shape;
    unet->layers = layers;
    auto next = [&] { return *parameters++; };
    auto level = [&](std::vector<Weights>& to, int32_t inputs, int32_t sources, int32_t outputs) {
        for (int second = 0; second < 2; second++) {
            const float *kernel = next(), *bias = next();
            to.push_back(second ? conv3x3_weights(kernel, bias, outputs, 1, outputs)
                                : conv3x3_weights(kernel, bias, inputs, sources, outputs));
        }
    };
    const int32_t* widths = shape.widths;
    for (int l = 0; l < LEVELS; l++) level(unet->down, l ? widths[l - 1] : shape.inputs, 1, widths[l]);
    for (int l = LEVELS - 2; l >= 0; l--) {
        const float *kernel = next(), *bias = next();
        unet->up.push_back(up2x2_weights(kernel, bias, widths[l + 1], widths[l]));
        level(unet->up_convs, 2 * widths[l], 2, widths[l]);
    }
    const float *kernel = next(), *bias = next();
    unet->last = last_weights(kernel, bias, widths[0], shape.outputs);
    return unet;
}

// The images of all levels in one piece of memory. A level has two to work in, `a` and `b`, and one, `skip`, that waits for
// the way back. While deeper levels are at work those of the first are at rest, and hold all of theirs.
struct Images {
    Image a[LEVELS], b[LEVELS], skip[LEVELS];
};

// Of one image of a level, which may also be what comes pooled from the level above.
int64_t floats_of(const UNetShape& shape, int level, int64_t pixels) {
    int32_t given = level ? shape.widths[level - 1] : shape.inputs;
    return ((pixels >> 2 * level) + SLACK) * padded(std::max(given, shape.widths[level]));
}

struct Sizes {
    int64_t deeper = 0, a, b, skip;  // deeper: of a or b, for what the levels below the first work in
};

Sizes sizes_of(const UNetShape& shape, int64_t pixels) {
    Sizes sizes;
    int64_t waiting = 0;
    for (int l = 1; l < LEVELS; l++) sizes.deeper = std::max(sizes.deeper, floats_of(shape, l, pixels));
    for (int l = 2; l < LEVELS; l++) waiting += floats_of(shape, l, pixels);
    sizes.skip = floats_of(shape, 0, pixels);
    sizes.a = std::max(sizes.skip, sizes.deeper + floats_of(shape, 1, pixels));
    sizes.b = std::max(sizes.skip, sizes.deeper + waiting);
    return sizes;
}

int64_t floats_of(const UNetShape& shape, int64_t pixels) {
    Sizes sizes = sizes_of(shape, pixels);
    return sizes.a + sizes.b + sizes.skip;
}

Images placed(const UNetShape& shape, int64_t height, int64_t width, float* memory) {
    Images images;
    Sizes sizes = sizes_of(shape, height * width);
    float *a = memory, *b = a + sizes.a, *waiting = b + sizes.deeper;
    for (int l = 0; l < LEVELS; l++) {
        images.a[l] = {a, (int32_t)(height >> l), (int32_t)(width >> l), padded(shape.widths[l])};
        images.b[l] = images.skip[l] = images.a[l];
        images.b[l].data = b;
        images.skip[l].data = l > 1 ? waiting : l ? a + sizes.deeper : b + sizes.b;
        if (l > 1) waiting += floats_of(shape, l, height * width);
    }
    return images;
}

// What the network sees, as `Network.inputs` puts it together, channel by channel of each pixel.
Image inputs_of(const UNetShape& shape, UNetMemory& memory, const float* image, float photon_gain, const float* original,
                Image to, int32_t threads) {
    to.channels = padded(shape.inputs);
    int64_t size = (int64_t)to.height * to.width;
    for_each_block(memory, to.height, 0, threads, [&](int64_t row, float*) {
        for (int64_t i = row * to.width; i < (row + 1) * to.width; i++) {
            float* pixel = to.data + i * to.channels;
            std::fill(pixel, pixel + to.channels, 0.0f);
            for (int plane = 0; plane < 4; plane++) {
                float x = image[plane * size + i];
                pixel[plane] = x;
                if (shape.inputs >= 8) pixel[4 + plane] = x * photon_gain;
                if (shape.inputs == 12) pixel[8 + plane] = original[plane * size + i];
            }
        }
    });
    return to;
}

void run(const UNet& unet, UNetMemory& memory, const float* image, float photon_gain, const float* original,
         int64_t height, int64_t width, float* clean, int32_t threads) {
    const Layers& layers = *unet.layers;
    memory.seconds.clear();
    auto convolve = [&](const Weights& by, Image first, Image second, Image target, float* pooled = nullptr) {
        Conv3x3 layer{{first, second}, by.weights.data(), by.bias.data(), target, pooled};
        for_each_block(memory, layers.conv3x3_blocks(layer), layers.conv3x3_scratch(layer), threads,
                       [&](int64_t block, float* scratch) { layers.conv3x3(layer, block, scratch); });
    };
    Images at = placed(unet.shape, height, width, memory.images.get());
    const Image none{};
    Image x = inputs_of(unet.shape, memory, image, photon_gain, original, at.b[0], threads);
    for (int l = 0; l < LEVELS; l++) {
        bool deepest = l == LEVELS - 1;
        convolve(unet.down[2 * l], x, none, at.a[l]);
        convolve(unet.down[2 * l + 1], at.a[l], none, at.skip[l], deepest ? nullptr : at.b[l + 1].data);
        x = deepest ? at.skip[l] : at.b[l + 1];
        if (!deepest) x.channels = at.a[l].channels;  // pooled, and not yet of the next level's width
    }
    const Image *free = at.a, *other = at.b;  // x lies in those of `other`, or in no one's way
    for (int l = LEVELS - 2, i = 0; l >= 0; l--, i++, std::swap(free, other)) {
        Up2x2 up{x, unet.up[i].weights.data(), unet.up[i].bias.data(), free[l]};
        for_each_block(memory, layers.up2x2_blocks(up), layers.up2x2_scratch(up), threads,
                       [&](int64_t block, float* scratch) { layers.up2x2(up, block, scratch); });
        convolve(unet.up_convs[2 * i], free[l], at.skip[l], other[l]);
        convolve(unet.up_convs[2 * i + 1], other[l], none, free[l]);
        x = free[l];
    }
    Last last{x, unet.last.weights.data(), unet.last.bias.data(), unet.shape.outputs, image, clean};
    for_each_block(memory, layers.last_blocks(last), 0, threads, [&](int64_t block, float*) { layers.last(last, block); });
}

}  // namespace

int32_t exposure_unet_lanes() {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 0;
}

UNet* exposure_unet_new(const UNetShape* shape, const float* const* parameters, int32_t most_lanes) {
    const Layers* layers = layers_for(std::min(exposure_unet_lanes(), most_lanes));
    if (!layers) return nullptr;
    try {
        return made(*shape, parameters, layers).release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void exposure_unet_free(UNet* unet) { delete unet; }

UNetMemory* exposure_unet_memory_new() { return new (std::nothrow) UNetMemory; }

void exposure_unet_memory_free(UNetMemory* memory) { delete memory; }

int32_t exposure_unet_run(const UNet* unet, UNetMemory* memory, const float* image, float photon_gain,
                          const float* original, int64_t height, int64_t width, float* clean, int32_t threads,
                          int64_t kept) {
    int64_t pixels = height * width;
    bool sufficed = true;
    try {
        if (pixels > memory->pixels) {
            memory->images.reset();
            memory->images = allocated(floats_of(unet->shape, pixels));
            memory->pixels = pixels;
        }
        run(*unet, *memory, image, photon_gain, original, height, width, clean, threads);
    } catch (const std::bad_alloc&) {
        sufficed = false;
    }
    if (memory->pixels > kept || !sufficed) memory->images.reset(), memory->pixels = 0;
    return sufficed;
}

int32_t exposure_unet_seconds(const UNetMemory* memory, double* seconds) {
    std::copy(memory->seconds.begin(), memory->seconds.end(), seconds);
    return (int32_t)memory->seconds.size();
}
