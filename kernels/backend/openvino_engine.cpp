#include "openvino_engine.h"

#include <algorithm>
#include <new>
#include <thread>

static const int64_t WEIGHTS = 50000;  // what each holds of its own, 35 MB, as pixels

static int64_t held(const OpenVinoEngine::Size& size) { return size.first * size.second + WEIGHTS; }

// Of OpenVINO's words for memory that it did not get; it lets no std::bad_alloc out.
static bool is_of_memory(const std::string& words) {
    for (const char* known : {"ailed to allocate", "can't allocate", "bad_alloc", "bad allocation"})
        if (words.find(known) != std::string::npos) return true;
    return false;
}

ov::Core& openvino_core() {
    static ov::Core core = [] {
        ov::Core made;
        made.set_property(ov::enable_mmap(false));
        return made;
    }();
    return core;
}

OpenVinoEngine::OpenVinoEngine(const std::string& folder, bool bf16, Size usual, int threads)
    : network_(openvino_core().read_model(folder + "/model.xml")),
      bf16_(false),
      threads_(threads),
      bound_(std::max(KEPT_PIXELS, held(usual))) {
    for (const std::string& capability : openvino_core().get_property("CPU", ov::device::capabilities))
        bf16_ = bf16_ || (bf16 && capability == "BF16");  // emulated BF16 is slower than FP32
    for (const auto& input : network_->inputs())
        wants_original_ = wants_original_ || input.get_any_name() == "ORIGIN_IMAGE";
    if (usual.first > 0) compiled(usual);  // at the server's start, so that no request waits for it
}

void OpenVinoEngine::infer(const float* image, const float* photon_gain, const float* original, int64_t height,
                           int64_t width, float* clean) {
    ov::Shape shape{1, 4, (size_t)height, (size_t)width};
    auto wrap = [&](const float* data) { return ov::Tensor(ov::element::f32, shape, const_cast<float*>(data)); };
    try {
        ov::InferRequest& request = compiled({height, width});
        request.set_tensor("IMAGE", wrap(image));
        request.set_tensor("PHOTON_GAIN", ov::Tensor(ov::element::f32, {1}, const_cast<float*>(photon_gain)));
        if (wants_original_) request.set_tensor("ORIGIN_IMAGE", wrap(original));
        request.set_tensor("CLEAN", wrap(clean));
        request.infer();
    } catch (const std::exception& error) {
        forget({height, width});
        if (is_of_memory(error.what())) throw std::bad_alloc();
        throw;
    }
    if (held({height, width}) > bound_) forget({height, width});
}

void OpenVinoEngine::forget(Size size) {
    compiled_.erase(size);
    recent_.remove(size);
}

ov::InferRequest& OpenVinoEngine::compiled(Size size) {
    auto found = compiled_.find(size);
    if (found == compiled_.end()) {
        int64_t pixels = held(size);
        for (const Size& kept : recent_) pixels += held(kept);
        for (; pixels > bound_ && !recent_.empty(); recent_.pop_back()) {
            pixels -= held(recent_.back());
            compiled_.erase(recent_.back());
        }
        found = compiled_.emplace(size, compile(size)).first;
    }
    recent_.remove(size);
    recent_.push_front(size);
    return found->second;
}

ov::InferRequest OpenVinoEngine::compile(Size size) {
    std::shared_ptr<ov::Model> model = network_->clone();
    std::map<ov::Output<ov::Node>, ov::PartialShape> shapes;
    for (const auto& input : model->inputs())
        shapes[input] = input.get_any_name() == "PHOTON_GAIN" ? ov::PartialShape{1}
                                                              : ov::PartialShape{1, 4, size.first, size.second};
    model->reshape(shapes);
    bool alone = threads_ == (int)std::thread::hardware_concurrency();
    ov::AnyMap properties{ov::hint::inference_precision(bf16_ ? ov::element::bf16 : ov::element::f32),
                          ov::inference_num_threads(threads_),
                          ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                          ov::hint::enable_cpu_pinning(alone)};  // others would pin to the same cores as well
    return openvino_core().compile_model(model, "CPU", properties).create_infer_request();
}
