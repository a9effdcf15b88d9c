#include "sensor.h"

#include <algorithm>
#include <cmath>

Sensor::Sensor(Request& request) {
    std::vector<uint8_t> cfa = request.values<uint8_t>("CFA", 4);
    int red = -1, blue = -1, greens = 0;
    for (int i = 0; i < 4; i++) {
        if (cfa[i] == 0) red = i;
        if (cfa[i] == 1) greens++;
        if (cfa[i] == 2) blue = i;
    }
    if (red < 0 || blue != 3 - red || greens != 2)
        throw Refusal(sentence("CFA is [%d, %d, %d, %d]; a Bayer cell has red and blue on one diagonal and green on the "
                               "other", cfa[0], cfa[1], cfa[2], cfa[3]));
    position[0] = red, position[1] = red ^ 1, position[2] = blue, position[3] = blue ^ 1;

    std::vector<float> levels = request.values<float>("BLACK", 4);
    white = request.values<float>("WHITE", 1)[0];
    float highest = 0;
    for (int i = 0; i < 4; i++) {
        if (!(std::isfinite(levels[i]) && levels[i] >= 0))
            throw Refusal(sentence("BLACK is [%g, %g, %g, %g]; it must be four levels of 0 DN or more", levels[0], levels[1],
                                   levels[2], levels[3]));
        black[i] = levels[i];
        highest = std::max(highest, levels[i]);
    }
    if (!(white > highest && white <= 65535))
        throw Refusal(sentence("WHITE is %g; it must lie above black (%g), up to 65535", white, highest));
}

Layout Sensor::layout(int64_t height, int64_t width, int64_t plane_height, int64_t plane_width) const {
    Layout layout{(int32_t)height, (int32_t)width, (int32_t)plane_height, (int32_t)plane_width, {}, {}, {}};
    for (int i = 0; i < 4; i++) {
        layout.position[i] = position[i];
        layout.black[i] = black[i];
    }
    return layout;
}
