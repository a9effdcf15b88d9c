// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once
#include "arithmetic.cuh"

struct Words {
    uint32_t w[4];
};

HD Words philox(Words counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * counter.w[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * counter.w[2];
        counter = {{(uint32_t)(product1 >> 32) ^ counter.w[1] ^ key0, (uint32_t)product1,
                    (uint32_t)(product0 >> 32) ^ counter.w[3] ^ key1, (uint32_t)product0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Uniform in (0, 1): the middles of 2^23 equal intervals, all exact in float.
HD float uniform_from(uint32_t word) { return ((float)(int32_t)(word >> 9) + 0.5f) * (1.0f / 8388608.0f); }

// The random numbers of one pixel in one injection: they depend on its place in the whole frame, nothing else. An odd one
// is antithetic to the even one before it (Hammersley and Morton 1956): the same numbers, the one that counts mirrored.
struct Stream {
    uint32_t key0, key1;  // the seed
    Words counter;        // column, row, plane and pair of injections, block
    Words words;
    int used;
    bool mirrored;

    HD Stream(uint64_t seed, uint32_t injection, uint32_t plane, uint32_t row, uint32_t column)
        : key0((uint32_t)seed), key1((uint32_t)(seed >> 32)), counter{{column, row, plane | (injection >> 1) << 2, 0}},
          used(4), mirrored(injection & 1) {}

    HD float uniform() {
        if (used == 4) {
            words = philox(counter, key0, key1);
            counter.w[3]++;
            used = 0;
        }
        return uniform_from(words.w[used++]);
    }

    // The uniform that a count grows with: mirrored, it gives few where the other pass got many.
    HD float growing() { return mirrored ? 1.0f - uniform() : uniform(); }
};
