// The sensor of a request. The definition is exposure/sensor.py, Sensor.
#pragma once
#include "request.h"

struct Sensor {
    float black[4], white;
    int32_t position[4];  // cell position of each plane: R, G in red's row, B, G in blue's row

    explicit Sensor(Request& request);  // throws Refusal

    // S of the schedule.
    double saturation() const { return (double)white - ((double)black[0] + black[1] + black[2] + black[3]) / 4; }

    // Without the factors: pack and unpack each set their own.
    Layout layout(int64_t height, int64_t width, int64_t plane_height, int64_t plane_width) const;
};
