// The exposure schedule: the four floats of each step. The definition is exposure/schedule.py.
#pragma once
#include <cstdint>

// Rows of photon_gain, photons, keep, per_photon, one a pass; in double as the definition, and rounded once.
inline void schedule(double ratio, double gain, double saturation, double photon_unit, int32_t passes, float* rows) {
    double increment = (ratio - 1.0) / passes, electrons = saturation / (ratio * gain);
    for (int32_t i = 0; i < passes; i++, rows += 4) {
        double now = 1.0 + i * increment, after = i + 1 == passes ? ratio : 1.0 + (i + 1) * increment;
        rows[0] = (float)(now * electrons / photon_unit);
        rows[1] = (float)((after - 1.0) * electrons);
        rows[2] = (float)(1.0 / after);
        rows[3] = (float)(1.0 / (electrons * after));
    }
}
