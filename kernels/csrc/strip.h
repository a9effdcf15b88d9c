// The counts of a strip of pixels on a CPU: poisson.cuh in loops that become vector instructions, so that 8 or 16 pixels are
// computed at once. The counts are those of poisson(), bit for bit.
#pragma once
#include "poisson.cuh"

enum { STRIP = 64 };            // pixels: their numbers stay in the nearest cache
enum { FEW_OPEN = STRIP / 8 };  // counts that are found sooner one by one

struct Strip {
    float mean[STRIP];               // in: 0 to 2^24
    float count[STRIP];              // out
    uint32_t words[4][STRIP];        // a pixel's first block of random numbers: two pairs
    float growing[STRIP], v[STRIP];  // the pair at hand
    int32_t open[STRIP];             // whether the count is still to be found
};

HD void draw_pair(Strip& strip, int pair, bool mirrored) {
    for (int i = 0; i < STRIP; i++) {
        float u = uniform_from(strip.words[2 * pair][i]);
        strip.growing[i] = mirrored ? 1.0f - u : u;
        strip.v[i] = uniform_from(strip.words[2 * pair + 1][i]);
    }
}

HD void search_all(Strip& strip) {
    float mean[STRIP], k[STRIP], term[STRIP], sum[STRIP];
    for (int i = 0; i < STRIP; i++) {
        mean[i] = strip.mean[i] < INVERSION_BELOW ? strip.mean[i] : 0.0f;  // 0 is found at once
        Search start = search_from_0(mean[i]);
        k[i] = start.k, term[i] = start.term, sum[i] = start.sum;
    }
    for (int32_t more = 1; more;) {
        more = 0;
        for (int i = 0; i < STRIP; i++) {
            Search at = {k[i], term[i], sum[i]};
            more |= advance(at, strip.growing[i], mean[i]);
            k[i] = at.k, term[i] = at.term, sum[i] = at.sum;
        }
    }
    for (int i = 0; i < STRIP; i++) strip.count[i] = k[i];
}

// Returns how many counts stay open.
HD int32_t propose_all(Strip& strip) {
    float k[STRIP];
    int32_t accepted[STRIP], open = 0;
    for (int i = 0; i < STRIP; i++) {
        float mean = strip.mean[i] < INVERSION_BELOW ? INVERSION_BELOW : strip.mean[i];
        Proposal proposal = propose(mean, strip.growing[i] - 0.5f, strip.v[i]);
        k[i] = proposal.k;
        accepted[i] = proposal.accepted;
    }
    for (int i = 0; i < STRIP; i++) {
        strip.count[i] = strip.open[i] ? k[i] : strip.count[i];
        strip.open[i] &= !accepted[i];
        open += strip.open[i];
    }
    return open;
}

// The counts of a strip whose first pixel has the stream `first`; the others follow it in the same row.
HD void count_all(Strip& strip, const Stream& first) {
    Words start = first.counter;
    for (int i = 0; i < STRIP; i++) {
        Words words = philox({{start.w[0] + (uint32_t)i, start.w[1], start.w[2], 0}}, first.key0, first.key1);
        for (int j = 0; j < 4; j++) strip.words[j][i] = words.w[j];
    }
    int32_t open = 0;
    for (int i = 0; i < STRIP; i++) open += strip.open[i] = strip.mean[i] >= INVERSION_BELOW;
    draw_pair(strip, 0, first.mirrored);
    if (open < STRIP) search_all(strip);
    for (int pair = 0; open > FEW_OPEN && pair < 2; pair++) {
        if (pair) draw_pair(strip, pair, first.mirrored);
        open = propose_all(strip);
    }
    for (int i = 0; i < STRIP; i++)
        if (strip.open[i]) {
            Stream stream = first;
            stream.counter.w[0] += (uint32_t)i;
            strip.count[i] = poisson(strip.mean[i], stream);
        }
}

// The machine at hand takes the widest vectors that it knows.
typedef void (*CountStrip)(Strip& strip, const Stream& first);

static void count_one_by_one(Strip& strip, const Stream& first) {
    Stream stream = first;
    for (int i = 0; i < STRIP; i++, stream.counter.w[0]++) strip.count[i] = poisson(strip.mean[i], stream);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static void count_by_8(Strip& strip, const Stream& first) { count_all(strip, first); }

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) static void count_by_16(Strip& strip, const Stream& first) {
    count_all(strip, first);
}

static CountStrip widest_count_strip() {
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        return count_by_16;
    return __builtin_cpu_supports("avx2") ? count_by_8 : count_one_by_one;
}
#else
static CountStrip widest_count_strip() { return count_one_by_one; }
#endif
