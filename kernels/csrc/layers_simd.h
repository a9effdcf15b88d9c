// The layers of layers.h with this file's vectors (lanes.h). Sums run over the inputs in order, with one rounding each, so
// every width of vectors gives the same bits.
#pragma once
#include "arithmetic.cuh"
#include "lanes.h"
#include "layers.h"

namespace {

// c[r, 0..N vectors) = start + sum over k of a[r, k] * weights[k, ...], ROWS rows. weights: of each vector, PANEL apart.
// Unless loops over rows are unrolled at once, g++ takes 5 % longer, and clang, which leaves the sums in memory, twice as long.
template <int N>
inline void product(const float* a, int64_t a_stride, const float* const* weights, int32_t depth, const float* start,
                    float* c, int64_t c_stride) {
    Lanes sum[ROWS][N];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) sum[r][n] = start ? load(start + n * LANES) : Lanes{};
    for (int64_t k = 0; k < depth; k++) {
        Lanes w[N];
        for (int n = 0; n < N; n++) w[n] = load(weights[n] + k * PANEL);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            Lanes x = all(a[r * a_stride + k]);
            for (int n = 0; n < N; n++) sum[r][n] = fma(x, w[n], sum[r][n]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) store(c + r * c_stride + n * LANES, sum[r][n]);
}

// The same for any number of outputs, a multiple of PANEL, and of rows, a multiple of ROWS. start: [outputs] or nullptr.
inline void product(const float* a, int64_t a_stride, int32_t rows, const float* weights, int32_t depth, int32_t outputs,
                    const float* start, float* c, int64_t c_stride) {
    for (int32_t n = 0; n < outputs; n += 2 * LANES) {
        auto of = [&](int32_t output) { return weights + (int64_t)(output / PANEL) * depth * PANEL + output % PANEL; };
        const float* pair[2] = {of(n), of(n + LANES)};
        for (int32_t r = 0; r < rows; r += ROWS) {
            auto by = n + LANES < outputs ? product<2> : product<1>;
            by(a + r * a_stride, a_stride, pair, depth, start ? start + n : nullptr, c + r * c_stride + n, c_stride);
        }
    }
}

// Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015): a tile of 4x4
// outputs from 6x6 inputs by 36 multiplications an input and output channel instead of 144.
enum { OUT = 4, IN = 6, PRODUCTS = IN * IN };
enum { APART = PANEL };               // floats between rows, so that they do not all fall into the same lines of the cache
enum { MANY_WEIGHTS = 1 << 16 };      // of a product: what is more comes from far, and may serve more tiles at once
enum { FEW = 14 / ROWS * ROWS, MANY = 42 };  // tiles of a block

inline void into_domain(const Lanes* d, Lanes* v) {  // B^T d
    Lanes a = fma(all(-4), d[2], d[4]), b = fma(all(-4), d[1], d[3]), c = d[4] - d[2], e = all(2) * (d[3] - d[1]);
    v[0] = fma(all(-5), d[2], fma(all(4), d[0], d[4]));
    v[1] = a + b, v[2] = a - b;
    v[3] = c + e, v[4] = c - e;
    v[5] = fma(all(-5), d[3], fma(all(4), d[1], d[5]));
}

inline void out_of_domain(const Lanes* m, Lanes* y) {  // A^T m
    Lanes s = m[1] + m[2], d = m[1] - m[2], t = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + s + t;
    y[1] = fma(all(2), e, d);
    y[2] = fma(all(4), t, s);
    y[3] = fma(all(8), e, d) + m[5];
}

// One tile of an image into the domain, v: [36, depth]; beyond the image's sides it is 0.
template <bool INSIDE>
inline void transform_tile(const Image& image, int32_t top, int32_t left, float* v, int64_t depth) {
    for (int32_t c = 0; c < image.channels; c += LANES) {
        Lanes half[IN][IN];
        for (int x = 0; x < IN; x++) {
            Lanes d[IN], column[IN];
            for (int y = 0; y < IN; y++) {
                int32_t row = top + y, at = left + x;
                bool there = INSIDE || (row >= 0 && row < image.height && at >= 0 && at < image.width);
                d[y] = there ? load(image.data + ((int64_t)row * image.width + at) * image.channels + c) : Lanes{};
            }
            into_domain(d, column);
            for (int y = 0; y < IN; y++) half[y][x] = column[y];
        }
        for (int y = 0; y < IN; y++) {
            Lanes row[IN];
            into_domain(half[y], row);
            for (int x = 0; x < IN; x++) store(v + (y * IN + x) * depth + c, row[x]);
        }
    }
}

// One tile out of the domain, m: [36, outputs]; bias and leaky ReLU. A vector of outputs, from the one at c on.
inline void results_of_tile(const Conv3x3& layer, const float* m, int32_t c, Lanes result[OUT][OUT]) {
    Lanes half[OUT][IN], bias = load(layer.bias + c);
    for (int x = 0; x < IN; x++) {
        Lanes column[IN], y[OUT];
        for (int i = 0; i < IN; i++) column[i] = load(m + (i * IN + x) * (int64_t)layer.target.channels + c);
        out_of_domain(column, y);
        for (int i = 0; i < OUT; i++) half[i][x] = y[i];
    }
    for (int y = 0; y < OUT; y++) {
        out_of_domain(half[y], result[y]);
        for (int x = 0; x < OUT; x++) {
            result[y][x] += bias;
            result[y][x] = larger(result[y][x], all(0.2f) * result[y][x]);
        }
    }
}

// A tile to where it belongs, and the maxima where they are asked for.
inline void store_tile(const Conv3x3& layer, const float* m, int32_t top, int32_t left) {
    const Image& target = layer.target;
    for (int32_t c = 0; c < target.channels; c += LANES) {
        Lanes result[OUT][OUT];
        results_of_tile(layer, m, c, result);
        int64_t rows = least(OUT, target.height - top), columns = least(OUT, target.width - left);
        for (int y = 0; y < rows; y++)
            for (int x = 0; x < columns; x++)
                store(target.data + ((int64_t)(top + y) * target.width + left + x) * target.channels + c, result[y][x]);
        for (int y = 0; layer.pooled && y < rows; y += 2)
            for (int x = 0; x < columns; x += 2) {
                Lanes above = larger(result[y][x], result[y][x + 1]), below = larger(result[y + 1][x], result[y + 1][x + 1]);
                int64_t at = (int64_t)((top + y) / 2) * (target.width / 2) + (left + x) / 2;
                store(layer.pooled + at * target.channels + c, larger(above, below));
            }
    }
}

// What is not a number stays so in both: the accuracy gate looks for it.
inline float sigmoid(float x) {
    float size = x < 0 ? -x : x, e = exp_negative(size < 80 ? size : 80);
    return x != x ? x : (x < 0 ? e : 1.0f) / (1.0f + e);
}

inline float within(float x) { return x < 0 ? 0.0f : x > 1 ? 1.0f : x; }

enum { PIXELS = FEW * OUT * OUT };  // that the last layer takes together: a multiple of ROWS

// pixels: [PIXELS, inputs]; image, clean: those of the pixels.
inline void last_layer(const Last& layer, const float* pixels, int32_t inputs, const float image[4][PIXELS],
                       float clean[4][PIXELS]) {
    float by_pixel[PIXELS][PANEL], output[PANEL][PIXELS], mask[PIXELS];
    product(pixels, inputs, PIXELS, layer.weights, inputs, PANEL, layer.bias, by_pixel[0], PANEL);
    for (int32_t n = 0; n < layer.outputs; n++)
        for (int32_t i = 0; i < PIXELS; i++) output[n][i] = by_pixel[i][n];
    bool adaptive = layer.outputs == 9;
    for (int32_t i = 0; adaptive && i < PIXELS; i++) mask[i] = sigmoid(output[0][i]);
    for (int32_t plane = 0; plane < 4; plane++) {
        const float *direct = output[adaptive + plane], *residual = output[5 * adaptive + plane];
        for (int32_t i = 0; !adaptive && i < PIXELS; i++) clean[plane][i] = within(direct[i]);
        for (int32_t i = 0; adaptive && i < PIXELS; i++)
            clean[plane][i] = mask[i] * within(direct[i]) + (1 - mask[i]) * within(image[plane][i] + residual[i]);
    }
}

// The last layer over FEW tiles, m, of which the first `tiles` are there, from the one with number `first` on.
// pixels: room for [PIXELS, channels].
inline void finish_tiles(const Conv3x3& layer, const float* m, int64_t m_stride, int64_t first, int64_t tiles,
                         float* pixels) {
    const Image& target = layer.target;
    int64_t size = (int64_t)target.height * target.width, across = target.width / OUT;
    float image[4][PIXELS] = {}, clean[4][PIXELS];
    auto each_row = [&](auto work) {  // work(where the row of a tile begins in an image, and among the pixels)
        for (int64_t i = 0; i < tiles; i++)
            for (int64_t y = 0; y < OUT; y++)
                work(((first + i) / across * OUT + y) * target.width + (first + i) % across * OUT, (i * OUT + y) * OUT);
    };
    for (int64_t i = 0; i < tiles; i++)
        for (int32_t c = 0; c < target.channels; c += LANES) {
            Lanes result[OUT][OUT];
            results_of_tile(layer, m + i * m_stride, c, result);
            for (int p = 0; p < OUT * OUT; p++)
                store(pixels + (i * OUT * OUT + p) * target.channels + c, result[p / OUT][p % OUT]);
        }
    for (int plane = 0; plane < 4; plane++)
        each_row([&](int64_t from, int64_t to) {
            for (int x = 0; x < OUT; x++) image[plane][to + x] = layer.last->image[plane * size + from + x];
        });
    last_layer(*layer.last, pixels, target.channels, image, clean);
    for (int plane = 0; plane < 4; plane++)
        each_row([&](int64_t to, int64_t from) {
            for (int x = 0; x < OUT; x++) layer.last->clean[plane * size + to + x] = clean[plane][from + x];
        });
}

inline int32_t depth_of(const Conv3x3& layer) {
    return layer.sources[0].channels + (layer.sources[1].data ? layer.sources[1].channels : 0);
}

inline int64_t tiles_of(const Conv3x3& layer) {
    return (int64_t)((layer.target.height + OUT - 1) / OUT) * ((layer.target.width + OUT - 1) / OUT);
}

// Tiles that the thread with most blocks multiplies, with those that only fill up the last one.
inline int64_t tiles_of_busiest(const Conv3x3& layer, int32_t tiles_of_block) {
    int64_t blocks = (tiles_of(layer) + tiles_of_block - 1) / tiles_of_block;
    return (blocks + layer.threads - 1) / layer.threads * tiles_of_block;
}

// Large blocks, whose weights are fetched less often, are worth an eighth more tiles.
inline int32_t tiles_of_block(const Conv3x3& layer) {
    bool far = (int64_t)layer.inputs * layer.target.channels > MANY_WEIGHTS;
    return far && tiles_of_busiest(layer, MANY) * 7 <= tiles_of_busiest(layer, FEW) * 8 ? MANY : FEW;
}

int64_t conv3x3_blocks(const Conv3x3& layer) {
    int32_t tiles = tiles_of_block(layer);
    return (tiles_of(layer) + tiles - 1) / tiles;
}

int64_t conv3x3_scratch(const Conv3x3& layer) {
    return tiles_of_block(layer) * ((int64_t)PRODUCTS * (depth_of(layer) + layer.target.channels) + 2 * APART);
}

void conv3x3(const Conv3x3& layer, int64_t block, float* scratch) {
    const Image& target = layer.target;
    int32_t tiles = tiles_of_block(layer), depth = depth_of(layer), across = (target.width + OUT - 1) / OUT;
    int64_t first = block * tiles, end = least(first + tiles, tiles_of(layer));
    int64_t v_stride = (int64_t)PRODUCTS * depth + APART, m_stride = (int64_t)PRODUCTS * target.channels + APART;
    float *v = scratch, *m = v + tiles * v_stride;
    for (int64_t tile = first; tile < end; tile++) {
        int32_t top = (int32_t)(tile / across) * OUT - 1, left = (int32_t)(tile % across) * OUT - 1;
        bool inside = top >= 0 && left >= 0 && top + IN <= target.height && left + IN <= target.width;
        float* to = v + (tile - first) * v_stride;
        for (const Image& source : layer.sources) {
            if (!source.data) continue;
            (inside ? transform_tile<true> : transform_tile<false>)(source, top, left, to, depth);
            to += source.channels;
        }
    }
    for (int p = 0; p < PRODUCTS; p++)  // of the rows behind the last tile, nobody reads the products
        product(v + (int64_t)p * depth, v_stride, tiles, layer.weights + (int64_t)p * layer.inputs * target.channels,
                layer.inputs, target.channels, nullptr, m + (int64_t)p * target.channels, m_stride);
    if (layer.last) {  // v is free now, and has room for 16 pixels of a tile: there are as many inputs as outputs
        for (int64_t tile = first; tile < end; tile += FEW)
            finish_tiles(layer, m + (tile - first) * m_stride, m_stride, tile, least(FEW, end - tile), v);
        return;
    }
    for (int64_t tile = first; tile < end; tile++)
        store_tile(layer, m + (tile - first) * m_stride, (int32_t)(tile / across) * OUT, (int32_t)(tile % across) * OUT);
}

enum { UP_PIXELS = 84 };  // of a block: a multiple of both ROWS

inline int64_t pixels_of(const Image& image) { return (int64_t)image.height * image.width; }

int64_t up2x2_blocks(const Up2x2& layer) { return (pixels_of(layer.source) + UP_PIXELS - 1) / UP_PIXELS; }

int64_t up2x2_scratch(const Up2x2& layer) { return (int64_t)UP_PIXELS * layer.target.channels; }

void up2x2(const Up2x2& layer, int64_t block, float* scratch) {
    const Image &source = layer.source, &target = layer.target;
    int64_t first = block * UP_PIXELS, last = least(first + UP_PIXELS, pixels_of(source));
    int32_t depth = source.channels, outputs = target.channels;
    for (int corner = 0; corner < 4; corner++) {
        product(source.data + first * depth, depth, UP_PIXELS, layer.weights + (int64_t)corner * depth * outputs, depth,
                outputs, layer.bias, scratch, outputs);
        for (int64_t pixel = first; pixel < last; pixel++) {
            int64_t row = pixel / source.width * 2 + corner / 2, column = pixel % source.width * 2 + corner % 2;
            const float* from = scratch + (pixel - first) * outputs;
            float* to = target.data + (row * target.width + column) * outputs;
            for (int32_t n = 0; n < outputs; n += LANES) store(to + n, load(from + n));
        }
    }
}

constexpr Layers of_these_lanes = {conv3x3_blocks, conv3x3_scratch, conv3x3, up2x2_blocks, up2x2_scratch, up2x2};

}  // namespace
