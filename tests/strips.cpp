// Every width of vectors that this machine has, against one pixel after the other: prints those that were compared.
#include <cmath>
#include <cstdio>

#include "../kernels/csrc/strip.h"

// Means of all that a strip can hold: one algorithm alone, both, their border, none, the largest.
static float mean_of(int kind, float uniform) {
    const float odd[] = {0.0f, 1e-30f, 9.999999f, 10.0f, 10.000001f, 80.0f, 16777216.0f, 3.0f};
    if (kind == 0) return 12.0f * uniform;
    if (kind == 1) return 10.0f + 400.0f * uniform;
    if (kind == 2) return std::pow(10.0f, 10.0f * uniform - 3.0f);
    if (kind == 3) return 10.0f * uniform;
    return odd[(int)(8.0f * uniform)];
}

static bool same_of(CountStrip widest, const Stream& first, const Strip& means) {
    Strip strip = means, expected = means;
    widest(strip, first);
    count_one_by_one(expected, first);
    for (int j = 0; j < strip.n; j++)
        if (strip.count[j] != expected.count[j]) {
            printf("%g of mean %g instead of %g\n", strip.count[j], strip.mean[j], expected.count[j]);
            return false;
        }
    return true;
}

// A pixel whose u lies above the sum of all terms, among others that are searched for longer.
static bool same_beyond_the_sum(CountStrip widest) {
    Strip means = {};
    means.n = STRIP;
    for (int j = 0; j < STRIP; j++) means.mean[j] = j ? 9.9f : 2.7f;
    return same_of(widest, Stream(0, 1, 0, 28, 86517), means);
}

[[maybe_unused]] static bool same(CountStrip widest) {
    for (uint32_t i = 0; i < 10000; i++) {
        Strip means = {};
        means.n = i % 3 ? STRIP : 1 + (int32_t)(i / 3 % STRIP);
        for (int32_t j = 0; j < means.n; j++)
            means.mean[j] = mean_of(i % 5, uniform_from(philox({{i, (uint32_t)j, 0, 0}}, 1, 2).w[0]));
        if (!same_of(widest, Stream(i * 0x9E3779B97F4A7C15u, i % 4, i % 3, i, STRIP * i), means)) return false;
    }
    return same_beyond_the_sum(widest);
}

int main() {
#ifdef __x86_64__
    if (widest_count_strip() != count_one_by_one && same(count_by_8)) puts("8 at once");
    if (widest_count_strip() == count_by_16 && same(count_by_16)) puts("16 at once");
#endif
}
