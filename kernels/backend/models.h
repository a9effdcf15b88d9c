// The four models of the repository. One object an instance; Triton calls an instance from one thread at a time.
#pragma once
#include <memory>
#include <string>

#include "request.h"

class Model {
  public:
    virtual ~Model() = default;
    virtual void answer(Request& request) = 0;  // throws Refusal, or any other exception for an internal error
};

// op: pack, denoise, expose or unpack. engine: folder of the engine whose manifest tells photon unit and padding.
// threads: of this instance. Throws std::runtime_error, one sentence.
std::unique_ptr<Model> make_model(const std::string& op, const std::string& engine, int threads);
