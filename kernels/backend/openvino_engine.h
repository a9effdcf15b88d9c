// The network on a CPU: the engine of export/openvino_engine.py, run on the server's own memory.
#pragma once
#include <list>
#include <map>
#include <string>
#include <utility>

#include <openvino/openvino.hpp>

class OpenVinoEngine {
  public:
    using Size = std::pair<int64_t, int64_t>;  // height, width of the planes

    // folder: model.xml as installed; bf16: the gate allows BF16 where nothing is marked; usual: compiled at once, unless 0;
    // threads: of this instance, which is one of several where they are not all of the machine's.
    OpenVinoEngine(const std::string& folder, bool bf16, Size usual, int threads);

    // image, original: [1, 4, height, width]; photon_gain: [1]; original may be nullptr where the network needs none.
    void infer(const float* image, const float* photon_gain, const float* original, int64_t height, int64_t width,
               float* clean);

    bool wants_original() const { return wants_original_; }

  private:
    ov::InferRequest& compiled(Size size);
    ov::InferRequest compile(Size size);
    void forget(Size size);

    std::shared_ptr<ov::Model> network_;  // as it was when the server started, whatever is installed since
    bool bf16_, wants_original_ = false;
    int threads_;
    int64_t bound_;  // packed pixels of all sizes that are kept
    std::map<Size, ov::InferRequest> compiled_;
    std::list<Size> recent_;  // most recently used first
};
