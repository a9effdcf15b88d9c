// The kernels on a CPU: plain loops over rows, split among threads. Which thread computes a row changes nothing.
#include <algorithm>

#include "kernels.h"
#include "schedule.h"
#include "strip.h"
#include "threads.h"

template <class Row>
static void for_each_row(int32_t rows, int32_t threads, Row row) {
    int64_t parts = std::max(threads, 1);
    on_threads(threads, [&](int32_t t) {
        int32_t first = (int32_t)(t * (int64_t)rows / parts), last = (int32_t)((t + 1) * (int64_t)rows / parts);
        for (int32_t i = first; i < last; i++) row(i);
    });
}

template <class Plane>
static void pack(const uint16_t* mosaic, const Layout& l, Plane* image, int32_t threads) {
    for_each_row(4 * l.plane_height, threads, [&](int32_t line) {
        int32_t plane = line / l.plane_height, i = line % l.plane_height, position = l.position[plane];
        const uint16_t* source = mosaic + (int64_t)mosaic_index(i, l.height, position / 2) * l.width;
        Plane* target = image + (int64_t)line * l.plane_width;
        float black = l.black[position], scale = l.factor[position];
        int32_t offset = position % 2, inside = (l.width - offset + 1) / 2;  // columns that need no reflection
        for (int32_t j = 0; j < inside; j++) store(signal_from_dn(source[2 * j + offset], black, scale), target + j);
        for (int32_t j = inside; j < l.plane_width; j++)
            store(signal_from_dn(source[mosaic_index(j, l.width, offset)], black, scale), target + j);
    });
}

void exposure_cpu_pack(const uint16_t* mosaic, const Layout* layout, void* image, Planes planes, int32_t threads) {
    if (planes == PLANES_FP16) return pack(mosaic, *layout, static_cast<Half*>(image), threads);
    pack(mosaic, *layout, static_cast<float*>(image), threads);
}

void exposure_cpu_unpack(const float* image, const Layout* layout, uint16_t* mosaic, int32_t threads) {
    const Layout& l = *layout;
    int64_t plane_size = (int64_t)l.plane_height * l.plane_width;
    int32_t plane_of[4];
    for (int32_t plane = 0; plane < 4; plane++) plane_of[l.position[plane]] = plane;
    for_each_row(l.height, threads, [&](int32_t row) {
        for (int32_t offset = 0; offset < 2; offset++) {
            int32_t position = 2 * (row % 2) + offset;
            const float* source = image + plane_of[position] * plane_size + (int64_t)(row / 2) * l.plane_width;
            uint16_t* target = mosaic + (int64_t)row * l.width;
            float black = l.black[position], range = l.factor[position];
            for (int32_t column = offset; column < l.width; column += 2)
                target[column] = dn_from_signal(source[column / 2], black, range);
        }
    });
}

// The counts of a line, strip by strip: calls mean(j) for column j, then use(j, count).
template <class Mean, class Use>
static void count_line(const Field& f, int32_t line, Mean mean, Use use) {
    static const CountStrip count_strip = widest_count_strip();
    Strip strip;
    for (int32_t first = 0; first < f.width; first += STRIP) {
        int32_t n = strip.n = std::min<int32_t>(STRIP, f.width - first);
        for (int32_t i = 0; i < n; i++) strip.mean[i] = std::max(0.0f, mean(first + i));
        std::fill(strip.mean + n, strip.mean + STRIP, 0.0f);
        count_strip(strip, stream_at(f, line, first));
        for (int32_t i = 0; i < n; i++) use(first + i, strip.count[i]);
    }
}

void exposure_cpu_poisson(const float* rate, const Field* field, float* counts, int32_t threads) {
    for_each_row(4 * field->height, threads, [&](int32_t line) {
        int64_t start = (int64_t)line * field->width;
        count_line(*field, line, [&](int32_t j) { return rate[start + j]; },
                   [&](int32_t j, float count) { counts[start + j] = count; });
    });
}

template <class Plane>
static void expose(const float* clean, const float* original, const Injection& step, const Field& f, Plane* next,
                   int32_t threads) {
    for_each_row(4 * f.height, threads, [&](int32_t line) {
        int64_t start = (int64_t)line * f.width;
        count_line(f, line, [&](int32_t j) { return photons_of(clean[start + j], step); },
                   [&](int32_t j, float count) {
                       store(with_photons(original[start + j], count, step), next + start + j);
                   });
    });
}

void exposure_cpu_expose(const float* clean, const float* original, const Injection* step, const Field* field,
                         void* next, Planes planes, int32_t threads) {
    if (planes == PLANES_FP16) return expose(clean, original, *step, *field, static_cast<Half*>(next), threads);
    expose(clean, original, *step, *field, static_cast<float*>(next), threads);
}

void exposure_schedule(double ratio, double gain, double saturation, double photon_unit, int32_t passes, float* rows) {
    schedule(ratio, gain, saturation, photon_unit, passes, rows);
}

void exposure_cpu_philox(const uint32_t* counter, const uint32_t* key, uint32_t* words) {
    Words result = philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    std::copy(result.w, result.w + 4, words);
}
