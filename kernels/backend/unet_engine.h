// The U-Net on a CPU by our own kernels (csrc/unet.h): the weights of an OpenVINO model, and Winograd's convolutions.
#pragma once
#include <memory>
#include <string>

#include "../csrc/unet.h"
#include "engine.h"

class UNetEngine : public Engine {
  public:
    // folder: model.xml as installed; checkpoint: that it was built from; usual_pixels: of the planes whose memory is kept
    // between requests; threads: of this instance. Throws std::runtime_error, one sentence, or std::bad_alloc.
    UNetEngine(const std::string& folder, const std::string& checkpoint, int64_t usual_pixels, int threads);

    void infer(const float* image, const float* photon_gain, const float* original, int64_t height, int64_t width,
               float* clean) override;

    bool wants_original() const override { return exposure_unet_inputs(unet_.get()) == 12; }

  private:
    std::shared_ptr<const UNet> unet_;  // of all instances
    std::unique_ptr<UNetMemory, void (*)(UNetMemory*)> memory_;
    int64_t kept_;
    int threads_;
};
