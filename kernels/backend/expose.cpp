// The photon injection between two passes.
#include <cmath>

#include "models.h"

namespace {

class Expose : public Model {
  public:
    void answer(Request& request) override {
        Tensor<float> clean = request.input<float>("CLEAN", 4), original = request.input<float>("ORIGIN_IMAGE", 4);
        Tensor<float> steps = request.input<float>("STEPS", 2);
        if (original.shape != clean.shape) throw Refusal("ORIGIN_IMAGE has another shape than CLEAN");
        if (clean.shape[0] != 1 || clean.shape[1] != 4 || steps.shape[1] != 4)
            throw Refusal("CLEAN must be 1x4xhxw and STEPS must have four columns");
        int32_t pass = request.values<int32_t>("PASS", 1)[0];
        if (pass < 0 || pass >= steps.shape[0] - 1)  // pass + 1 may not be a number
            throw Refusal(sentence("PASS is %d; STEPS has %lld rows", pass, (long long)steps.shape[0]));
        std::vector<float> rows = request.values(steps);
        const float* row = rows.data() + 4 * (int64_t)pass;
        Injection step{row[1], row[2], row[3]};
        if (!(step.photons >= 0 && step.photons <= MOST_ELECTRONS && std::isfinite(step.keep + step.per_photon)))
            throw Refusal(sentence("STEPS has a row of %g photons, keep %g, %g per photon; it is no schedule", step.photons,
                                   step.keep, step.per_photon));
        std::vector<int32_t> origin = request.values<int32_t>("ORIGIN", 2);
        Field field{request.values<uint64_t>("SEED", 1)[0], (uint32_t)pass, origin[0] / 2, origin[1] / 2,
                    (int32_t)clean.shape[2], (int32_t)clean.shape[3]};
        if (float* next = request.output<float>("IMAGE", clean.shape))
            request.device().expose(request.on_device(clean), request.on_device(original), step, field, next);
        request.put<float>("PHOTON_GAIN", {1}, {row[4]});  // of the following row
        request.put<int32_t>("NEXT_PASS", {1}, {pass + 1});
    }
};

}  // namespace

std::unique_ptr<Model> make_expose() { return std::make_unique<Expose>(); }
