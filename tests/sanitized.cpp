// The CPU kernels over every phase and many sizes, and over numbers that no caller should pass, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../kernels/csrc/kernels.h"

static Layout layout_of(int red, int height, int width, int multiple) {
    auto padded = [&](int side) { return (side + 2 * multiple - 1) / (2 * multiple) * multiple; };
    Layout layout{height, width, padded(height), padded(width), {red, red ^ 1, 3 - red, (3 - red) ^ 1}, {}, {}};
    for (int i = 0; i < 4; i++) layout.black[i] = 500.0f + 10 * i;
    return layout;
}

static int round_trips() {
    int geometries = 0;
    for (int red = 0; red < 4; red++)
        for (int height = 2; height < 40; height += 1 + height / 7)
            for (int width = 2; width < 40; width++)
                for (int multiple : {1, 2, 16})
                    for (int threads : {1, 3}) {
                        Layout layout = layout_of(red, height, width, multiple);
                        std::vector<uint16_t> mosaic(height * width), back(height * width);
                        for (auto& dn : mosaic) dn = (uint16_t)(600 + rand() % 15000);
                        std::vector<float> image(4 * layout.plane_height * layout.plane_width);
                        std::vector<uint16_t> halves(image.size());
                        for (int i = 0; i < 4; i++) layout.factor[i] = 1.0f / (16383 - layout.black[i]);
                        exposure_cpu_pack(mosaic.data(), &layout, image.data(), PLANES_FP32, threads);
                        exposure_cpu_pack(mosaic.data(), &layout, halves.data(), PLANES_FP16, threads);
                        for (int i = 0; i < 4; i++) layout.factor[i] = 16383 - layout.black[i];
                        exposure_cpu_unpack(image.data(), &layout, back.data(), threads);
                        if (mosaic != back) return -1;
                        geometries++;
                    }
    return geometries;
}

static bool odd_numbers() {
    std::vector<float> odd = {0, -1, 1e-45f, 9.9999f, 10, 2e5f, 1.6777216e7f, 1e30f, INFINITY, -INFINITY, NAN, 3e38f};
    std::vector<float> image(4 * odd.size() * odd.size()), next(image.size());
    for (size_t i = 0; i < image.size(); i++) image[i] = odd[i % odd.size()];
    for (uint64_t seed : {0ull, ~0ull})
        for (int32_t place : {0, INT32_MAX / 2})
            for (float photons : odd) {
                Field field{seed, 0x3fffffff, place, place, (int32_t)odd.size(), (int32_t)odd.size()};
                Injection step{photons, 0.5f, 0.1f};
                exposure_cpu_poisson(image.data(), &field, next.data(), 2);
                for (size_t i = 0; i < next.size(); i++)
                    if (image[i] <= 1.6777216e7f && !(next[i] >= 0 && next[i] < 1.7e7f)) return false;
                exposure_cpu_expose(image.data(), image.data(), &step, &field, next.data(), PLANES_FP32, 2);
                exposure_cpu_expose(image.data(), image.data(), &step, &field, next.data(), PLANES_FP16, 2);
            }
    Layout layout = layout_of(0, 23, 24, 1);
    for (int i = 0; i < 4; i++) layout.factor[i] = 60000;
    std::vector<uint16_t> mosaic(23 * 24);
    exposure_cpu_unpack(image.data(), &layout, mosaic.data(), 2);
    return true;
}

// Any bits as numbers, seeds and places, and any sizes, the same ones in every run.
static void random_calls() {
    std::mt19937 bits(7);
    auto number = [&] { uint32_t word = bits(); float value; memcpy(&value, &word, 4); return value; };
    for (int call = 0; call < 400; call++) {
        int32_t height = 1 + bits() % 33, width = 1 + bits() % 33, threads = 1 + bits() % 4;
        std::vector<float> image(4 * height * width), next(image.size());
        for (auto& value : image) value = number();
        Field field{bits() * 0x100000001ull, (uint32_t)bits(), (int32_t)(bits() >> 1) - 64, (int32_t)(bits() >> 2),
                    height, width};
        Injection step{number(), number(), number()};
        exposure_cpu_poisson(image.data(), &field, next.data(), threads);
        exposure_cpu_expose(image.data(), next.data(), &step, &field, image.data(), PLANES_FP32, threads);
        exposure_cpu_expose(next.data(), next.data(), &step, &field, image.data(), PLANES_FP16, threads);
        Layout layout = layout_of(bits() % 4, 2 * height, 2 * width, 1);
        for (int i = 0; i < 4; i++) {  // levels are what callers validate
            layout.black[i] = bits() % 30000;
            layout.factor[i] = 1 + bits() % 35000;
        }
        std::vector<uint16_t> mosaic(4 * height * width);
        exposure_cpu_unpack(next.data(), &layout, mosaic.data(), threads);
        exposure_cpu_pack(mosaic.data(), &layout, next.data(), PLANES_FP16, threads);
        float rows[4 * 4];
        exposure_schedule(number(), number(), number(), number(), 1 + bits() % 4, rows);
        uint32_t counter[4] = {(uint32_t)bits(), (uint32_t)bits(), (uint32_t)bits(), (uint32_t)bits()}, words[4];
        exposure_cpu_philox(counter, counter + 2, words);
    }
    for (const char* root : {"", "/nowhere", "/proc"}) exposure_cpu_cores(root);
}

int main() {
    int geometries = round_trips();
    if (geometries < 0 || !odd_numbers()) return 1;
    random_calls();
    printf("%d geometries came back as they were\n", geometries);
    return 0;
}
