// How many pixels of requests the server holds at once. Triton would take any number: each waits with its planes, 16 bytes
// a pixel, until memory ends.
#pragma once
#include <chrono>
#include <cstdint>
#include <mutex>
#include <stdexcept>

constexpr int64_t DEFAULT_MEGAPIXELS = 128;  // 2 GB of planes

// A request that comes while enough are under way: answered with UNAVAILABLE and the sentence.
struct Busy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Admission {
  public:
    using Clock = std::chrono::steady_clock;

    void limit_to(int64_t megapixels) { limit_ = 1000000 * megapixels; }

    // A request of so many pixels begins; a single one always may. Throws Busy.
    void enter(int64_t pixels, Clock::time_point now = Clock::now());
    // It has been answered.
    void leave(int64_t pixels);
    // A model behind `pack` computes from `began` to `ended`. Requests that fail on their way never leave: where for a while
    // none was let in and none of these models computed, none is under way, however often others ask.
    void began();
    void ended(Clock::time_point now = Clock::now());

  private:
    std::mutex lock_;
    int64_t limit_ = 1000000 * DEFAULT_MEGAPIXELS, under_way_ = 0;
    int computing_ = 0;
    Clock::time_point last_ = Clock::now();
};

Admission& admission();  // the one of this process
