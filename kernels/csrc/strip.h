// The counts of a strip of pixels on a CPU: poisson.cuh in loops that become vector instructions, so that 8 or 16 pixels are
// computed at once. The counts are those of poisson(), bit for bit.
#pragma once
#include "poisson.cuh"

enum { STRIP = 256 };    // pixels at most: their numbers stay in the nearest cache
enum { SEARCHED = 64 };  // that are searched for together, until the last is found
enum { AT_ONCE = 16 };   // as many as the widest vector holds: loops go on to a multiple, and have no remainder

struct Strip {
    int32_t n;           // in: pixels
    float mean[STRIP];   // in: 0 to 2^24; 0 behind the last
    float count[STRIP];  // out
};

// Pixels that take the same attempt, one after the other, wherever they lie in the strip.
struct Attempts {
    int32_t n;
    int32_t pixel[STRIP];
    float mean[STRIP], growing[STRIP], v[STRIP];
};

HD int32_t rounded_up(int32_t n, int32_t multiple) { return (n + multiple - 1) / multiple * multiple; }

HD void draw(Attempts& all, const Stream& first, uint32_t attempt) {
    uint32_t words[4][STRIP], column = first.counter.w[0], row = first.counter.w[1], plane = first.counter.w[2];
    int32_t n = rounded_up(all.n, AT_ONCE), pair = 2 * (attempt % 2);  // each attempt takes half a block of random numbers
    for (int32_t i = 0; i < n; i++) {
        Words block = philox({{column + (uint32_t)all.pixel[i], row, plane, attempt / 2}}, first.key0, first.key1);
        for (int j = 0; j < 4; j++) words[j][i] = block.w[j];
    }
    for (int32_t i = 0; i < n; i++) {
        float u = uniform_from(words[pair][i]);
        all.growing[i] = first.mirrored ? 1.0f - u : u;
        all.v[i] = uniform_from(words[pair + 1][i]);
    }
}

// The counts of means below INVERSION_BELOW; of others, 0.
HD void search(const float* means, const float* growing, float* count) {
    float mean[SEARCHED], term[SEARCHED], sum[SEARCHED];
    for (int i = 0; i < SEARCHED; i++) {
        mean[i] = means[i] < INVERSION_BELOW ? means[i] : 0.0f;  // 0 is found at once
        Search start = search_from_0(mean[i]);
        count[i] = start.k, term[i] = start.term, sum[i] = start.sum;
    }
    for (int32_t more = 1; more;) {
        more = 0;
        for (int i = 0; i < SEARCHED; i++) {
            Search at = {count[i], term[i], sum[i]};
            more |= advance(at, growing[i], mean[i]);
            count[i] = at.k, term[i] = at.term, sum[i] = at.sum;
        }
    }
}

// The places of what is marked, one after the other; returns how many. What fills up the last vector may be any.
HD int32_t places(const int32_t* marked, int32_t n, int32_t* place) {
    int32_t found = 0;
    for (int32_t i = 0; i < n; i++) {
        place[found] = i;
        found += marked[i];
    }
    for (int32_t i = found; i < rounded_up(found, AT_ONCE); i++) place[i] = 0;
    return found;
}

// Keeps the pixels at n places, in order. A place is not before where its pixel goes: none is lost.
HD void keep(Attempts& all, const int32_t* place, int32_t n) {
    for (int32_t i = 0; i < rounded_up(n, AT_ONCE); i++) {
        int32_t at = place[i];
        all.pixel[i] = all.pixel[at], all.mean[i] = all.mean[at], all.growing[i] = all.growing[at], all.v[i] = all.v[at];
    }
    all.n = n;
}

// One attempt of each: counts are found, or the pixel stays.
HD void attempt_all(Attempts& all, float* count) {
    float k[STRIP], mean[STRIP], growing[STRIP], v[STRIP], proposed[STRIP];
    int32_t open[STRIP], unsure[STRIP], place[STRIP], accepted[STRIP];
    for (int32_t i = 0; i < rounded_up(all.n, AT_ONCE); i++) {
        Proposal proposal = propose(all.mean[i], all.growing[i] - 0.5f, all.v[i]);
        k[i] = proposal.k;
        open[i] = !proposal.accepted;
        unsure[i] = !(proposal.accepted | proposal.rejected);
    }
    int32_t doubtful = places(unsure, all.n, place);
    for (int32_t i = 0; i < rounded_up(doubtful, AT_ONCE); i++) {
        int32_t at = place[i];
        mean[i] = all.mean[at], growing[i] = all.growing[at], v[i] = all.v[at], proposed[i] = k[at];
    }
    for (int32_t i = 0; i < rounded_up(doubtful, AT_ONCE); i++)
        accepted[i] = accepts(mean[i], growing[i] - 0.5f, v[i], proposed[i]);
    for (int32_t i = 0; i < doubtful; i++) open[place[i]] = !accepted[i];
    for (int32_t i = 0; i < all.n; i++) count[all.pixel[i]] = k[i];
    keep(all, place, places(open, all.n, place));
}

// The counts of a strip whose first pixel has the stream `first`; the others follow it in the same row.
HD void count_all(Strip& strip, const Stream& first) {
    Attempts all;
    int32_t large[STRIP], place[STRIP], n = rounded_up(strip.n, SEARCHED);
    for (int32_t i = 0; i < n; i++) {
        all.pixel[i] = i, all.mean[i] = strip.mean[i];
        large[i] = strip.mean[i] >= INVERSION_BELOW;
    }
    all.n = n;
    draw(all, first, 0);
    int32_t larges = places(large, n, place);
    if (larges < n) {
        for (int32_t i = 0; i < n; i += SEARCHED) search(strip.mean + i, all.growing + i, strip.count + i);
        keep(all, place, larges);
    }
    for (uint32_t attempt = 0; all.n && attempt < MOST_ATTEMPTS; attempt++) {
        if (attempt) draw(all, first, attempt);
        attempt_all(all, strip.count);
    }
    for (int32_t i = 0; i < all.n; i++) strip.count[all.pixel[i]] = floorf(all.mean[i]);
}

// The machine at hand takes the widest vectors that it knows.
typedef void (*CountStrip)(Strip& strip, const Stream& first);

static void count_one_by_one(Strip& strip, const Stream& first) {
    Stream stream = first;
    for (int i = 0; i < strip.n; i++, stream.counter.w[0]++) strip.count[i] = poisson(strip.mean[i], stream);
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
