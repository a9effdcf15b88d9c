// A checked request in, network planes and the exposure schedule out.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdlib>

#include "admission.h"
#include "manifest.h"
#include "models.h"
#include "sensor.h"

static const int SMALLEST_SIDE = 32;         // exposure/sensor.py
static const int MOST_PASSES = 64;           // of a schedule that somebody may ask for

namespace {

class Pack : public Model {
  public:
    explicit Pack(const std::string& engine) : manifest_(read_manifest(engine)) {}

    void answer(Request& request) override {
        Tensor<uint16_t> mosaic = request.input<uint16_t>("MOSAIC", 2);
        int64_t height = mosaic.shape[0], width = mosaic.shape[1];
        if (std::min(height, width) < SMALLEST_SIDE)
            throw Refusal(sentence("MOSAIC is %lldx%lld; both sides must be at least %d", (long long)height,
                                   (long long)width, SMALLEST_SIDE));
        if (height * width > MOST_PIXELS)
            throw Refusal(sentence("MOSAIC is %lldx%lld; a request holds at most %lld pixels, larger frames go in tiles",
                                   (long long)height, (long long)width, (long long)MOST_PIXELS));
        std::vector<int32_t> origin = request.values<int32_t>("ORIGIN", 2);
        if (std::min(origin[0], origin[1]) < 0)
            throw Refusal(sentence("ORIGIN is [%d, %d]; it must lie in the frame, at 0 or more", origin[0], origin[1]));
        Sensor sensor(request);
        double ratio = request.values<float>("RATIO", 1)[0], gain = request.values<float>("GAIN", 1)[0];
        check_physics(ratio, gain, sensor.saturation());

        int64_t h = padded(height), w = padded(width), highest = manifest_.largest_height, widest = manifest_.largest_width;
        if (h * w > most_padded(manifest_.multiple))
            throw Refusal(sentence("MOSAIC is %lldx%lld, which is padded to %lldx%lld: too long a strip; larger frames go in "
                                   "tiles",
                                   (long long)height, (long long)width, (long long)(2 * h), (long long)(2 * w)));
        if (widest > 0 && (h > highest || w > widest))
            throw Refusal(sentence("MOSAIC is %lldx%lld; the engine takes at most %lldx%lld: send smaller tiles, or build it "
                                   "anew with their --tile",
                                   (long long)height, (long long)width, (long long)(2 * highest), (long long)(2 * widest)));
        std::vector<std::string> asked = request.outputs();
        uint64_t ticket = 0;
        if (std::find(asked.begin(), asked.end(), "TICKET") != asked.end()) {
            ticket = admission().enter(4 * h * w);
            request.unless_finished([ticket] { admission().leave(ticket); });  // else it leaves in `unpack`
        }
        Layout layout = sensor.layout(height, width, h, w);
        for (int i = 0; i < 4; i++) layout.factor[i] = (float)(ratio / ((double)sensor.white - sensor.black[i]));
        if (float* image = request.output<float>("IMAGE", {1, 4, h, w}))
            request.device().pack(request.on_device(mosaic), layout, image);
        request.put<int32_t>("SIZE", {2}, {(int32_t)height, (int32_t)width});
        request.put<int32_t>("PASS", {1}, {0});
        request.put("CHECKPOINT", manifest_.checkpoint);
        put_schedule(request, ratio, gain, sensor.saturation());
        request.put<uint64_t>("TICKET", {1}, {ticket});
    }

  private:
    int64_t padded(int64_t side) const {
        int64_t cell = 2 * manifest_.multiple;
        return (side + cell - 1) / cell * manifest_.multiple;
    }

    static void check_physics(double ratio, double gain, double saturation) {
        if (!(std::isfinite(ratio) && ratio > 0)) throw Refusal(sentence("RATIO is %g; it must be positive and finite", ratio));
        if (!(std::isfinite(gain) && gain > 0)) throw Refusal(sentence("GAIN is %g; it must be positive and finite", gain));
        if (ratio < 1) throw Refusal(sentence("RATIO is %g; a target exposure is at least the file's own (1)", ratio));
        if (saturation / gain > MOST_ELECTRONS)
            throw Refusal(sentence("GAIN is %g; a pixel of %g DN would hold %.1g electrons, and %.0f can be counted", gain,
                                   saturation, saturation / gain, MOST_ELECTRONS));
        if (ratio * gain / saturation > FLT_MAX)  // what an electron adds to the signal
            throw Refusal(sentence("GAIN is %g; times RATIO %g, of a pixel of %g DN, it is beyond FP32", gain, ratio,
                                   saturation));
    }

    // STEPS_N for every N that the model's configuration names and somebody asked for.
    void put_schedule(Request& request, double ratio, double gain, double saturation) const {
        auto rows = [&](int passes) {
            std::vector<float> rows(4 * passes);
            exposure_schedule(ratio, gain, saturation, manifest_.photon_unit, passes, rows.data());
            return rows;
        };
        request.put<float>("PHOTON_GAIN", {1}, {rows(1)[0]});  // of the first pass: the same for any number of passes
        for (const std::string& name : request.outputs()) {
            int passes = name.compare(0, 6, "STEPS_") == 0 ? atoi(name.c_str() + 6) : 0;
            if (passes >= 1 && passes <= MOST_PASSES) request.put<float>(name.c_str(), {passes, 4}, rows(passes));
        }
    }

    Manifest manifest_;
};

}  // namespace

std::unique_ptr<Model> make_pack(const std::string& engine) { return std::make_unique<Pack>(engine); }
