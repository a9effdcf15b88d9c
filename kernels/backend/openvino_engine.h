// The network on a CPU: the engine of export/openvino_engine.py, run on the server's own memory.
#pragma once
#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <openvino/openvino.hpp>

class OpenVinoEngine {
  public:
    using Size = std::pair<int64_t, int64_t>;  // height, width of the planes

    // folder: the parts as installed; usual: compiled at once, unless 0; threads: of this instance, which is one of several
    // where they are not all of the machine's. Throws std::runtime_error where there is no part.
    OpenVinoEngine(const std::string& folder, Size usual, int threads);

    // image, original: [1, 4, height, width]; photon_gain: [1]; original may be nullptr where the network needs none.
    void infer(const float* image, const float* photon_gain, const float* original, int64_t height, int64_t width,
               float* clean);

    bool wants_original() const { return wants_original_; }

  private:
    struct Part {
        std::shared_ptr<ov::Model> model;  // as it was when the server started, whatever is installed since
        ov::element::Type precision;
    };

    std::vector<ov::InferRequest>& compiled(Size size);
    std::vector<ov::InferRequest> compile(Size size);
    ov::InferRequest request(const std::shared_ptr<ov::Model>& model, ov::element::Type precision);

    std::vector<Part> network_;  // one in FP32; or BF16 between two in FP32
    std::string cache_;
    bool wants_original_ = false;
    int threads_;
    std::map<Size, std::vector<ov::InferRequest>> compiled_;
    std::list<Size> recent_;  // most recently used first
};
