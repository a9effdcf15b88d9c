// One pass of the network: on a CPU, wherever its inputs lie.
#include <stdexcept>

#include "manifest.h"
#include "models.h"
#include "openvino_engine.h"
#include "unet_engine.h"

namespace {

std::unique_ptr<Engine> opened(const std::string& folder, const Manifest& manifest, int threads) {
    OpenVinoEngine::Size usual{manifest.usual_height, manifest.usual_width};
    if (manifest.convolutions == "winograd" && exposure_unet_lanes() > 0)
        return std::make_unique<UNetEngine>(folder, manifest.checkpoint, usual.first * usual.second, threads);
    return std::make_unique<OpenVinoEngine>(folder, manifest.precision == "bf16", usual, threads);
}

class Denoise : public Model {
  public:
    Denoise(const std::string& engine, int threads, bool gives_original)
        : manifest_(read_manifest(engine)),
          engine_(opened(engine, manifest_, threads)) {
        if (engine_->wants_original() && !gives_original)
            throw std::runtime_error("the engine in " + engine + " takes ORIGIN_IMAGE, and this model's configuration does " +
                                     "not; write it anew with: python export/build_engine.py");
    }

    void answer(Request& request) override {
        Tensor<float> image = request.input<float>("IMAGE", 4);
        if (image.shape[0] != 1 || image.shape[1] != 4) throw Refusal("IMAGE must be 1x4xhxw");
        if (image.shape[2] % manifest_.multiple || image.shape[3] % manifest_.multiple)
            throw Refusal(sentence("IMAGE is %lldx%lld; both sides must be multiples of %d", (long long)image.shape[2],
                                   (long long)image.shape[3], manifest_.multiple));
        if (image.shape[2] * image.shape[3] > most_padded(manifest_.multiple))
            throw Refusal(sentence("IMAGE is %lldx%lld; its planes hold at most %lld pixels each", (long long)image.shape[2],
                                   (long long)image.shape[3], (long long)most_padded(manifest_.multiple)));
        const float* original = nullptr;
        if (engine_->wants_original()) {
            Tensor<float> given = request.input<float>("ORIGIN_IMAGE", 4);
            if (given.shape != image.shape) throw Refusal("ORIGIN_IMAGE has another shape than IMAGE");
            original = request.on_device(given);
        }
        std::vector<float> photon_gain = request.values<float>("PHOTON_GAIN", 1);
        if (float* clean = request.output<float>("CLEAN", image.shape))
            engine_->infer(request.on_device(image), photon_gain.data(), original, image.shape[2], image.shape[3], clean);
    }

  private:
    Manifest manifest_;
    std::unique_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<Model> make_denoise(const std::string& engine, int threads, bool gives_original) {
    return std::make_unique<Denoise>(engine, threads, gives_original);
}
