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
    // folder: model.xml as installed; bf16: the gate allows a BF16 body; threads: of this instance, which is one of several
    // where they are not all of the machine's.
    OpenVinoEngine(const std::string& folder, bool bf16, int threads);

    // image, original: [1, 4, height, width]; photon_gain: [1]; original may be nullptr where the network needs none.
    void infer(const float* image, const float* photon_gain, const float* original, int64_t height, int64_t width,
               float* clean);

    bool wants_original() const { return wants_original_; }

  private:
    using Size = std::pair<int64_t, int64_t>;
    struct Compiled {
        std::vector<ov::InferRequest> parts;  // the network; or its body in BF16 and its tail in FP32
    };

    Compiled& compiled(Size size);
    Compiled compile(Size size);
    ov::InferRequest request(const std::shared_ptr<ov::Model>& model, ov::element::Type precision);

    std::shared_ptr<ov::Model> network_;  // as it was when the server started, whatever is installed since
    std::string cache_;
    bool bf16_, wants_original_ = false;
    int threads_;
    std::map<Size, Compiled> compiled_;
    std::list<Size> recent_;  // most recently used first
};
