// The U-Net of exposure/networks/unet.py on a CPU: which layer reads and writes what, in which memory, on which threads.
// Blocks are handed out one by one, so a thread whose core is taken does not hold up the others; who computes a block
// changes nothing.
#include "unet.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <vector>

#include "threads.h"
#include "weights.h"

namespace {

enum { LEVELS = 5, SLACK = 128 };  // pixels behind an image that a layer may read, whose results nobody uses

}  // namespace

struct UNetMemory {
    Memory images;
    int64_t floats = 0;           // of the images
    std::vector<Memory> scratch;  // of each thread
    int64_t scratch_floats = 0;
    std::vector<double> seconds;  // of each stage of the last pass

    // Both throw std::bad_alloc. The images' is not asked for before the old is given back.
    void make_room(int64_t images_floats) {
        seconds.clear();
        if (images_floats <= floats) return;
        images.reset(), floats = 0;
        images = allocated(images_floats), floats = images_floats;
    }

    void make_room_for(int32_t threads, int64_t each) {
        if (each > scratch_floats) scratch.clear(), scratch_floats = each;
        while ((int32_t)scratch.size() < threads) scratch.push_back(allocated(scratch_floats));
    }
};

namespace {

// A stage: calls compute(block, scratch) for every block; scratch: floats of each thread's own.
template <class Compute>
void for_each_block(UNetMemory& memory, int64_t blocks, int64_t scratch, int32_t threads, Compute compute) {
    int32_t most = (int32_t)std::min<int64_t>(std::max(threads, 1), blocks);
    auto began = std::chrono::steady_clock::now();
    memory.make_room_for(most, scratch);
    std::atomic<int64_t> next{0};
    on_threads(most, [&](int32_t t) {
        for (int64_t block; (block = next++) < blocks;) compute(block, memory.scratch[t].get());
    });
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

const Layers* layers_for([[maybe_unused]] int32_t lanes) {
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

// One pass: the stages, in order. What it works in is of the memory, what it computes with of the network.
struct Pass {
    const UNet& unet;
    UNetMemory& memory;
    const Images at;
    const int32_t threads;

    // What the network sees, as `Network.inputs` puts it together, channel by channel of each pixel.
    Image inputs(const float* image, float photon_gain, const float* original) const {
        Image to = at.b[0];
        to.channels = padded(unet.shape.inputs);
        int64_t size = (int64_t)to.height * to.width;
        for_each_block(memory, to.height, 0, threads, [&](int64_t row, float*) {
            for (int64_t i = row * to.width; i < (row + 1) * to.width; i++) {
                float* pixel = to.data + i * to.channels;
                std::fill(pixel, pixel + to.channels, 0.0f);
                for (int plane = 0; plane < 4; plane++) {
                    float x = image[plane * size + i];
                    pixel[plane] = x;
                    if (unet.shape.inputs >= 8) pixel[4 + plane] = x * photon_gain;
                    if (unet.shape.inputs == 12) pixel[8 + plane] = original[plane * size + i];
                }
            }
        });
        return to;
    }

    void convolve(const Weights& by, Image first, Image second, Image target, float* pooled = nullptr,
                  const Last* last = nullptr) const {
        Conv3x3 layer{{first, second}, by.weights.get(), by.bias.data(), by.depth, target, pooled, last, std::max(threads, 1)};
        const Layers& layers = *unet.layers;
        for_each_block(memory, layers.conv3x3_blocks(layer), layers.conv3x3_scratch(layer), threads,
                       [&](int64_t block, float* scratch) { layers.conv3x3(layer, block, scratch); });
    }

    Image down(Image x) const {
        for (int l = 0; l < LEVELS; l++) {
            bool deepest = l == LEVELS - 1;
            convolve(unet.down[2 * l], x, {}, at.a[l]);
            convolve(unet.down[2 * l + 1], at.a[l], {}, at.skip[l], deepest ? nullptr : at.b[l + 1].data);
            x = deepest ? at.skip[l] : at.b[l + 1];
            if (!deepest) x.channels = at.a[l].channels;  // pooled, and not yet of the next level's width
        }
        return x;
    }

    // With the last layer at once: what it reads is large, and would go to memory and back.
    void up(Image x, const float* image, float* clean) const {
        Last last{unet.last.weights.get(), unet.last.bias.data(), unet.shape.outputs, image, clean};
        const Image *free = at.a, *other = at.b;  // x lies in those of `other`, or in no one's way
        for (int l = LEVELS - 2, i = 0; l >= 0; l--, i++, std::swap(free, other)) {
            Up2x2 layer{x, unet.up[i].weights.get(), unet.up[i].bias.data(), free[l]};
            for_each_block(memory, unet.layers->up2x2_blocks(layer), unet.layers->up2x2_scratch(layer), threads,
                           [&](int64_t block, float* scratch) { unet.layers->up2x2(layer, block, scratch); });
            convolve(unet.up_convs[2 * i], free[l], at.skip[l], other[l]);
            convolve(unet.up_convs[2 * i + 1], other[l], {}, free[l], nullptr, l ? nullptr : &last);
            x = free[l];
        }
    }
};

// How many floats each parameter has, in the order of `exposure_unet_new`.
std::vector<int64_t> floats_of_parameters(const UNetShape& shape) {
    std::vector<int64_t> floats;
    auto layer = [&](int64_t taps, int64_t inputs, int64_t outputs) {
        floats.push_back(taps * inputs * outputs);
        floats.push_back(outputs);
    };
    auto level = [&](int64_t inputs, int64_t outputs) { layer(9, inputs, outputs), layer(9, outputs, outputs); };
    const int32_t* widths = shape.widths;
    for (int l = 0; l < LEVELS; l++) level(l ? widths[l - 1] : shape.inputs, widths[l]);
    for (int l = LEVELS - 2; l >= 0; l--) layer(4, widths[l + 1], widths[l]), level(2 * widths[l], widths[l]);
    layer(1, widths[0], shape.outputs);
    return floats;
}

}  // namespace

int32_t exposure_unet_lanes() {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 0;
}

int32_t exposure_unet_takes(const UNetShape* shape, const int64_t* floats) {
    bool widths = *std::min_element(shape->widths, shape->widths + LEVELS) > 0;
    bool first = shape->inputs == 4 || shape->inputs == 8 || shape->inputs == 12;
    bool last = shape->outputs == 4 || shape->outputs == 9;
    if (!widths || !first || !last) return 0;
    std::vector<int64_t> wanted = floats_of_parameters(*shape);
    return std::equal(wanted.begin(), wanted.end(), floats);
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

int32_t exposure_unet_inputs(const UNet* unet) { return unet->shape.inputs; }

void exposure_unet_free(UNet* unet) { delete unet; }

UNetMemory* exposure_unet_memory_new() { return new (std::nothrow) UNetMemory; }

void exposure_unet_memory_free(UNetMemory* memory) { delete memory; }

int32_t exposure_unet_run(const UNet* unet, UNetMemory* memory, const float* image, float photon_gain,
                          const float* original, int64_t height, int64_t width, float* clean, int32_t threads,
                          int64_t kept) {
    bool sufficed = true;
    try {
        memory->make_room(floats_of(unet->shape, height * width));
        Pass pass{*unet, *memory, placed(unet->shape, height, width, memory->images.get()), threads};
        pass.up(pass.down(pass.inputs(image, photon_gain, original)), image, clean);
    } catch (const std::bad_alloc&) {
        sufficed = false;
    }
    if (memory->floats > floats_of(unet->shape, kept) || !sufficed) memory->images.reset(), memory->floats = 0;
    return sufficed;
}

int32_t exposure_unet_seconds(const UNetMemory* memory, double* seconds) {
    std::copy(memory->seconds.begin(), memory->seconds.end(), seconds);
    return (int32_t)memory->seconds.size();
}
