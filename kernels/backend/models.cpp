#include "models.h"

#include <algorithm>
#include <cmath>

#include "../csrc/kernels.h"
#include "manifest.h"
#include "openvino_engine.h"

static const int SMALLEST_SIDE = 32, MOST_PASSES = 4;
static const float MOST_ELECTRONS = 16777216.0f;  // 2^24: beyond, FP32 cannot count; a hundred times the deepest photosite
static const int64_t MOST_PIXELS = 1 << 26;       // of a mosaic in one request, 67 MP; larger frames are sent in tiles

// The sensor of a request. The definition is exposure/sensor.py, Sensor.
struct Sensor {
    float black[4], white;
    int32_t position[4];  // cell position of each plane: R, G in red's row, B, G in blue's row

    explicit Sensor(Request& request) {
        const uint8_t* pattern = request.input_of<uint8_t>("CFA", 4);
        const uint8_t cfa[4] = {pattern[0], pattern[1], pattern[2], pattern[3]};
        int red = -1, blue = -1, greens = 0;
        for (int i = 0; i < 4; i++) {
            if (cfa[i] == 0) red = i;
            if (cfa[i] == 1) greens++;
            if (cfa[i] == 2) blue = i;
        }
        if (red < 0 || blue != 3 - red || greens != 2)
            throw Refusal(sentence("CFA is [%d, %d, %d, %d]; a Bayer cell has red and blue on one diagonal and green on "
                                   "the other", cfa[0], cfa[1], cfa[2], cfa[3]));
        position[0] = red, position[1] = red ^ 1, position[2] = blue, position[3] = blue ^ 1;

        const float* given = request.input_of<float>("BLACK", 4);  // may be shared memory: read once
        const float levels[4] = {given[0], given[1], given[2], given[3]};
        white = *request.input_of<float>("WHITE", 1);
        float highest = 0;
        for (int i = 0; i < 4; i++) {
            if (!(std::isfinite(levels[i]) && levels[i] >= 0))
                throw Refusal(sentence("BLACK is [%g, %g, %g, %g]; it must be four levels of 0 DN or more", levels[0],
                                       levels[1], levels[2], levels[3]));
            black[i] = levels[i];
            highest = std::max(highest, levels[i]);
        }
        if (!(white > highest && white <= 65535))
            throw Refusal(sentence("WHITE is %g; it must lie above black (%g), up to 65535", white, highest));
    }

    double saturation() const {
        return (double)white - ((double)black[0] + black[1] + black[2] + black[3]) / 4;
    }

    Layout layout(int64_t height, int64_t width, int64_t plane_height, int64_t plane_width) const {
        Layout layout{(int32_t)height, (int32_t)width, (int32_t)plane_height, (int32_t)plane_width, {}, {}, {}};
        for (int i = 0; i < 4; i++) {
            layout.position[i] = position[i];
            layout.black[i] = black[i];
        }
        return layout;
    }
};

// A checked request in, network planes and the exposure schedule out.
class Pack : public Model {
  public:
    Pack(const std::string& engine, int threads) : manifest_(read_manifest(engine)), threads_(threads) {}

    void answer(Request& request) override {
        Tensor<uint16_t> mosaic = request.input<uint16_t>("MOSAIC", 2);
        int64_t height = mosaic.shape[0], width = mosaic.shape[1];
        if (std::min(height, width) < SMALLEST_SIDE)
            throw Refusal(sentence("MOSAIC is %lldx%lld; both sides must be at least %d", (long long)height,
                                   (long long)width, SMALLEST_SIDE));
        if (height * width > MOST_PIXELS)
            throw Refusal(sentence("MOSAIC is %lldx%lld; a request holds at most %lld pixels, larger frames go in tiles",
                                   (long long)height, (long long)width, (long long)MOST_PIXELS));
        const int32_t* origin = request.input_of<int32_t>("ORIGIN", 2);
        if (std::min(origin[0], origin[1]) < 0)
            throw Refusal(sentence("ORIGIN is [%d, %d]; it must lie in the frame, at 0 or more", origin[0], origin[1]));
        Sensor sensor(request);
        double ratio = *request.input_of<float>("RATIO", 1), gain = *request.input_of<float>("GAIN", 1);
        check_physics(ratio, gain, sensor.saturation());

        int64_t h = padded(height), w = padded(width);
        Layout layout = sensor.layout(height, width, h, w);
        for (int i = 0; i < 4; i++) layout.factor[i] = (float)(ratio / ((double)sensor.white - sensor.black[i]));
        float* image = request.output<float>("IMAGE", {1, 4, h, w});
        if (image) exposure_cpu_pack(mosaic.data, &layout, image, PLANES_FP32, threads_);
        if (int32_t* size = request.output<int32_t>("SIZE", {2})) size[0] = (int32_t)height, size[1] = (int32_t)width;
        if (int32_t* pass = request.output<int32_t>("PASS", {1})) *pass = 0;
        schedule(request, ratio, gain, sensor.saturation());
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
    }

    void schedule(Request& request, double ratio, double gain, double saturation) const {
        double unit = manifest_.photon_unit;
        float only[4];
        exposure_schedule(ratio, gain, saturation, unit, 1, only);
        if (float* first = request.output<float>("PHOTON_GAIN", {1})) *first = only[0];  // the same for any passes
        for (int passes = 2; passes <= MOST_PASSES; passes++) {
            std::string name = "STEPS_" + std::to_string(passes);
            if (float* rows = request.output<float>(name.c_str(), {passes, 4}))
                exposure_schedule(ratio, gain, saturation, unit, passes, rows);
        }
    }

    Manifest manifest_;
    int threads_;
};

// One pass of the network.
class Denoise : public Model {
  public:
    Denoise(const std::string& engine, int threads)
        : manifest_(read_manifest(engine)), engine_(engine, manifest_.precision == "bf16", threads) {}

    void answer(Request& request) override {
        Tensor<float> image = request.input<float>("IMAGE", 4);
        if (image.shape[2] % manifest_.multiple || image.shape[3] % manifest_.multiple)
            throw Refusal(sentence("IMAGE is %lldx%lld; both sides must be multiples of %d", (long long)image.shape[2],
                                   (long long)image.shape[3], manifest_.multiple));
        const float* original = nullptr;
        if (engine_.wants_original()) original = same_shape(request, "ORIGIN_IMAGE", image);
        const float* photon_gain = request.input_of<float>("PHOTON_GAIN", 1);
        float* clean = request.output<float>("CLEAN", image.shape);
        if (clean) engine_.infer(image.data, photon_gain, original, image.shape[2], image.shape[3], clean);
    }

    static const float* same_shape(Request& request, const char* name, const Tensor<float>& image) {
        Tensor<float> other = request.input<float>(name, 4);
        if (other.shape != image.shape) throw Refusal(sentence("%s has another shape than the image", name));
        return other.data;
    }

  private:
    Manifest manifest_;
    OpenVinoEngine engine_;
};

// The photon injection between two passes.
class Expose : public Model {
  public:
    explicit Expose(int threads) : threads_(threads) {}

    void answer(Request& request) override {
        Tensor<float> clean = request.input<float>("CLEAN", 4), steps = request.input<float>("STEPS", 2);
        const float* original = Denoise::same_shape(request, "ORIGIN_IMAGE", clean);
        int32_t pass = *request.input_of<int32_t>("PASS", 1);
        if (clean.shape[0] != 1 || clean.shape[1] != 4 || steps.shape[1] != 4)
            throw Refusal("CLEAN must be 1x4xhxw and STEPS must have four columns");
        if (pass < 0 || pass + 1 >= steps.shape[0])
            throw Refusal(sentence("PASS is %d; STEPS has %lld rows", pass, (long long)steps.shape[0]));
        const float* row = steps.data + 4 * pass;
        const int32_t* origin = request.input_of<int32_t>("ORIGIN", 2);
        Injection step{row[1], row[2], row[3]};
        if (!(step.photons >= 0 && step.photons <= MOST_ELECTRONS && std::isfinite(step.keep + step.per_photon)))
            throw Refusal(sentence("STEPS has a row of %g photons, keep %g, %g per photon; it is no schedule", step.photons,
                                   step.keep, step.per_photon));
        Field field{*request.input_of<uint64_t>("SEED", 1), (uint32_t)pass, origin[0] / 2, origin[1] / 2,
                    (int32_t)clean.shape[2], (int32_t)clean.shape[3]};
        float* next = request.output<float>("IMAGE", clean.shape);
        if (next) exposure_cpu_expose(clean.data, original, &step, &field, next, PLANES_FP32, threads_);
        if (float* gain = request.output<float>("PHOTON_GAIN", {1})) *gain = row[4];  // of the following row
        if (int32_t* following = request.output<int32_t>("NEXT_PASS", {1})) *following = pass + 1;
    }

  private:
    int threads_;
};

// Planes back to the mosaic that a sensor with the same levels would have recorded.
class Unpack : public Model {
  public:
    explicit Unpack(int threads) : threads_(threads) {}

    void answer(Request& request) override {
        Tensor<float> clean = request.input<float>("CLEAN", 4);
        const int32_t* given = request.input_of<int32_t>("SIZE", 2);
        const int32_t size[2] = {given[0], given[1]};
        Sensor sensor(request);
        int64_t h = clean.shape[2], w = clean.shape[3];
        if (clean.shape[0] != 1 || clean.shape[1] != 4 || size[0] < 1 || size[1] < 1 || 2 * h < size[0] || 2 * w < size[1])
            throw Refusal(sentence("CLEAN is too small for SIZE %dx%d", size[0], size[1]));
        Layout layout = sensor.layout(size[0], size[1], h, w);
        for (int i = 0; i < 4; i++) layout.factor[i] = sensor.white - sensor.black[i];
        uint16_t* mosaic = request.output<uint16_t>("DENOISED", {size[0], size[1]});
        if (mosaic) exposure_cpu_unpack(clean.data, &layout, mosaic, threads_);
    }

  private:
    int threads_;
};

std::unique_ptr<Model> make_model(const std::string& op, const std::string& engine, int threads) {
    if (op == "pack") return std::make_unique<Pack>(engine, threads);
    if (op == "denoise") return std::make_unique<Denoise>(engine, threads);
    if (op == "expose") return std::make_unique<Expose>(threads);
    if (op == "unpack") return std::make_unique<Unpack>(threads);
    throw std::runtime_error("op is '" + op + "'; it must be pack, denoise, expose or unpack");
}
