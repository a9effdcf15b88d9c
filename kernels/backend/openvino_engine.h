// The network on a CPU: the engine of export/openvino_engine.py, run on the server's own memory.
#pragma once
#include <list>
#include <map>
#include <string>
#include <utility>

#include <openvino/openvino.hpp>

#include "engine.h"

// One for the process. What it reads it copies: a file that is mapped into memory would change the network of a running
// server when it is overwritten in place, and CHECKPOINT would not tell. Nothing compiled is kept on disk: compiling takes a
// tenth of a second, and OpenVINO does not notice when what it kept was damaged.
ov::Core& openvino_core();

class OpenVinoEngine : public Engine {
  public:
    using Size = std::pair<int64_t, int64_t>;  // height, width of the planes

    // folder: model.xml as installed; bf16: the gate allows BF16 where nothing is marked; usual: compiled at once, unless 0;
    // threads: of this instance, which is one of several where they are not all of the machine's.
    OpenVinoEngine(const std::string& folder, bool bf16, Size usual, int threads);

    void infer(const float* image, const float* photon_gain, const float* original, int64_t height, int64_t width,
               float* clean) override;

    bool wants_original() const override { return wants_original_; }

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
