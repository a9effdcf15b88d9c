#include "unet_engine.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include <openvino/op/constant.hpp>
#include <openvino/openvino.hpp>

#include "openvino_engine.h"

namespace {

const std::string REBUILD = "; rebuild it with: python export/build_engine.py";

std::vector<std::string> names_of_layers() {
    std::vector<std::string> names;
    for (int level = 1; level <= 9; level++) {
        std::string number = std::to_string(level);
        if (level > 5) names.push_back("upv" + number);
        names.push_back("conv" + number + "_1");
        names.push_back("conv" + number + "_2");
    }
    names.push_back("conv10_1");
    return names;
}

using Constants = std::map<std::string, std::shared_ptr<ov::op::v0::Constant>>;

const ov::op::v0::Constant& found(const Constants& constants, const std::string& name) {
    auto constant = constants.find("network." + name);
    if (constant == constants.end() || constant->second->get_element_type() != ov::element::f32)
        throw std::runtime_error("the engine's model has no " + name + " in FP32" + REBUILD);
    return *constant->second;
}

std::shared_ptr<const UNet> made(const std::string& folder) {
    std::shared_ptr<ov::Model> model = openvino_core().read_model(folder + "/model.xml");
    Constants constants;
    for (const auto& op : model->get_ops())
        if (auto constant = std::dynamic_pointer_cast<ov::op::v0::Constant>(op)) constants[op->get_friendly_name()] = constant;
    std::vector<const float*> parameters;
    std::vector<int64_t> floats;
    for (const std::string& layer : names_of_layers())
        for (const char* kind : {".weight", ".bias"}) {
            const ov::op::v0::Constant& parameter = found(constants, layer + kind);
            parameters.push_back(parameter.get_data_ptr<float>());
            floats.push_back((int64_t)ov::shape_size(parameter.get_shape()));
        }
    UNetShape shape;
    for (int level = 0; level < 5; level++)
        shape.widths[level] = (int32_t)found(constants, "conv" + std::to_string(level + 1) + "_1.weight").get_shape()[0];
    shape.inputs = (int32_t)found(constants, "conv1_1.weight").get_shape()[1];
    shape.outputs = (int32_t)found(constants, "conv10_1.weight").get_shape()[0];
    if (!exposure_unet_takes(&shape, floats.data())) throw std::runtime_error("the engine's model is no U-Net" + REBUILD);
    UNet* unet = exposure_unet_new(&shape, parameters.data(), 16);
    if (!unet) throw std::bad_alloc();
    return {unet, [](const UNet* made) { exposure_unet_free(const_cast<UNet*>(made)); }};
}

// One for all instances of a process: a network in Winograd's domain is four times as large as its file.
std::shared_ptr<const UNet> shared(const std::string& folder, const std::string& checkpoint) {
    static std::mutex mutex;
    static std::map<std::string, std::weak_ptr<const UNet>> known;
    std::lock_guard<std::mutex> lock(mutex);
    std::weak_ptr<const UNet>& unet = known[folder + " of " + checkpoint];
    std::shared_ptr<const UNet> held = unet.lock();
    if (!held) unet = held = made(folder);
    return held;
}

}  // namespace

UNetEngine::UNetEngine(const std::string& folder, const std::string& checkpoint, int64_t usual_pixels, int threads)
    : unet_(shared(folder, checkpoint)),
      memory_(exposure_unet_memory_new(), exposure_unet_memory_free),
      kept_(std::max(KEPT_PIXELS, usual_pixels)),
      threads_(threads) {
    if (!memory_) throw std::bad_alloc();
}

void UNetEngine::infer(const float* image, const float* photon_gain, const float* original, int64_t height, int64_t width,
                       float* clean) {
    if (!exposure_unet_run(unet_.get(), memory_.get(), image, *photon_gain, original, height, width, clean, threads_, kept_))
        throw std::bad_alloc();
}
