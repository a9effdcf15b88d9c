// Planes back to the mosaic that a sensor with the same levels would have recorded.
#include "admission.h"
#include "models.h"
#include "sensor.h"

namespace {

class Unpack : public Model {
  public:
    void answer(Request& request) override {
        Leaving leaving{request.has("TICKET") ? request.values<uint64_t>("TICKET", 1)[0] : 0};
        Tensor<float> clean = request.input<float>("CLEAN", 4);
        std::vector<int32_t> size = request.values<int32_t>("SIZE", 2);
        Sensor sensor(request);
        int64_t h = clean.shape[2], w = clean.shape[3];
        if (clean.shape[0] != 1 || clean.shape[1] != 4 || size[0] < 1 || size[1] < 1 || 2 * h < size[0] || 2 * w < size[1])
            throw Refusal(sentence("SIZE is %dx%d; it must be at least 1x1 and fit CLEAN, 1x4xhxw", size[0], size[1]));
        Layout layout = sensor.layout(size[0], size[1], h, w);
        for (int i = 0; i < 4; i++) layout.factor[i] = sensor.white - sensor.black[i];
        if (uint16_t* mosaic = request.output<uint16_t>("DENOISED", {size[0], size[1]}))
            request.device().unpack(request.on_device(clean), layout, mosaic);
    }

  private:
    struct Leaving {  // answered or refused
        uint64_t ticket;
        ~Leaving() { admission().leave(ticket); }
    };
};

}  // namespace

std::unique_ptr<Model> make_unpack() { return std::make_unique<Unpack>(); }
