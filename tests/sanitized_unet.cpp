// The U-Net's kernels in many shapes and sizes, for the sanitizers.
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "../kernels/csrc/unet.h"

static std::mt19937 bits(7);

static std::vector<float> numbers(size_t count) {
    std::vector<float> values(count);
    for (auto& value : values) value = (float)(bits() % 2001) / 1000 - 1;
    return values;
}

// Weight and bias of every layer, in the order of unet.h.
static std::vector<std::vector<float>> parameters_of(const UNetShape& shape) {
    std::vector<std::vector<float>> parameters;
    auto layer = [&](size_t weights, int outputs) {
        parameters.push_back(numbers(weights));
        parameters.push_back(numbers(outputs));
    };
    auto level = [&](int inputs, int outputs) {
        layer((size_t)outputs * inputs * 9, outputs);
        layer((size_t)outputs * outputs * 9, outputs);
    };
    const int32_t* widths = shape.widths;
    for (int l = 0; l < 5; l++) level(l ? widths[l - 1] : shape.inputs, widths[l]);
    for (int l = 3; l >= 0; l--) {
        layer((size_t)widths[l + 1] * widths[l] * 4, widths[l]);
        level(2 * widths[l], widths[l]);
    }
    layer((size_t)widths[0] * shape.outputs, shape.outputs);
    return parameters;
}

int main() {
    int passes = 0;
    for (int inputs : {4, 8, 12})
        for (int outputs : {4, 9})
            for (int lanes : {8, 16}) {
                UNetShape shape{{}, inputs, outputs};
                for (auto& width : shape.widths) width = 1 + (int32_t)(bits() % 40);
                if (inputs == 4 && outputs == 9) shape.widths[0] = 272;  // its blocks may be large
                auto parameters = parameters_of(shape);
                std::vector<const float*> addresses;
                for (auto& parameter : parameters) addresses.push_back(parameter.data());
                UNet* unet = exposure_unet_new(&shape, addresses.data(), lanes);
                UNetMemory* memory = exposure_unet_memory_new();
                if (!unet || !memory) return 1;
                for (int call = 0; call < 4; call++, passes++) {
                    int64_t height = 16 * (1 + bits() % 5), width = 16 * (1 + bits() % 5);
                    auto image = numbers(4 * height * width), original = numbers(image.size());
                    std::vector<float> clean(image.size(), -1);
                    if (!exposure_unet_run(unet, memory, image.data(), 3, original.data(), height, width, clean.data(),
                                           1 + bits() % 4, bits() % 2 ? 0 : 4000))
                        return 1;
                    if (*std::min_element(clean.begin(), clean.end()) < 0) return 1;
                    std::vector<double> seconds(UNET_LAYERS);
                    if (exposure_unet_seconds(memory, seconds.data()) != UNET_LAYERS) return 1;
                }
                exposure_unet_free(unet);
                exposure_unet_memory_free(memory);
            }
    printf("%d passes\n", passes);
    return 0;
}
