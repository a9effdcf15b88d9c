// One pixel of packing and unpacking. The definition is exposure/sensor.py.
#pragma once
#include "arithmetic.cuh"

// How a mosaic lies in its planes. Cell positions are numbered 0..3, row by row.
struct Layout {
    int32_t height, width;              // of the mosaic
    int32_t plane_height, plane_width;  // padded to the network's multiple
    int32_t position[4];                // cell position of each plane
    float black[4];                     // DN, by cell position
    float factor[4];                    // by cell position: ratio / (white - black) to pack, white - black to unpack
};

// Index i folded back into 0 .. side-1 about the edge pixels.
HD int32_t reflected(int32_t i, int32_t side) {
    if (i < side) return i;
    if (side == 1) return 0;
    int32_t period = 2 * (side - 1), j = i % period;
    return j < side ? j : period - j;
}

// Row or column of the mosaic that a plane pixel shows; an odd side is completed by reflection.
HD int32_t mosaic_index(int32_t plane_index, int32_t side, int32_t offset) {
    int32_t index = 2 * reflected(plane_index, (side + 1) / 2) + offset;
    return index < side ? index : side - 2;
}

HD float clamp01(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN becomes 0

HD float signal_from_dn(uint16_t dn, float black, float scale) { return clamp01(((float)dn - black) * scale); }

// Rounds half to even, as NumPy does. The level lies in 0 .. 65535.
HD uint16_t dn_from_signal(float signal, float black, float range) {
    float level = clamp01(signal) * range + black;
    int32_t down = (int32_t)level;
    float rest = level - (float)down;
    return (uint16_t)(down + (rest > 0.5f || (rest == 0.5f && (down & 1)) ? 1 : 0));
}
