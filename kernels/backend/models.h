// The four models of the repository, each in a file of its own. One object an instance; Triton calls an instance from one
// thread at a time. Where the pixels are computed is the device's affair.
#pragma once
#include <memory>
#include <string>

#include "request.h"

constexpr float MOST_ELECTRONS = 16777216.0f;  // 2^24, as in exposure/schedule.py
constexpr int64_t MOST_PIXELS = 1 << 26;       // of a mosaic in one request, 67 MP; larger frames are sent in tiles
// Pixels of a plane, once padded: what a square mosaic of so many may come to, and a long strip may not.
inline int64_t most_padded(int64_t multiple) { return (4096 + multiple) * (4096 + multiple); }

class Model {
  public:
    virtual ~Model() = default;
    virtual void answer(Request& request) = 0;  // throws Refusal, or any other exception for an internal error
};

// engine: folder of the engine whose manifest tells photon unit, padding and checkpoint. threads: of this instance.
// gives_original: whether the model's configuration has ORIGIN_IMAGE. Throw std::runtime_error, one sentence.
std::unique_ptr<Model> make_pack(const std::string& engine);
std::unique_ptr<Model> make_denoise(const std::string& engine, int threads, bool gives_original);
std::unique_ptr<Model> make_expose();
std::unique_ptr<Model> make_unpack();
