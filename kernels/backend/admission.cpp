#include "admission.h"

#include <algorithm>

#include "request.h"

// Longer than Triton needs from one model of an ensemble to the next; a TensorRT engine, whose passes are not seen, is
// expected to take less, too.
static const std::chrono::seconds QUIET(2);

void Admission::enter(int64_t pixels, Clock::time_point now) {
    std::lock_guard<std::mutex> held(lock_);
    if (computing_ == 0 && now - last_ > QUIET) under_way_ = 0;
    if (under_way_ > 0 && under_way_ + pixels > limit_)
        throw Busy(sentence("the server is busy: requests of %.1f megapixels are under way, and it takes %.1f; ask again later",
                            under_way_ / 1e6, limit_ / 1e6));
    under_way_ += pixels;
    last_ = now;
}

void Admission::leave(int64_t pixels) {
    std::lock_guard<std::mutex> held(lock_);
    under_way_ = std::max<int64_t>(0, under_way_ - pixels);
}

void Admission::began() {
    std::lock_guard<std::mutex> held(lock_);
    computing_++;
}

void Admission::ended(Clock::time_point now) {
    std::lock_guard<std::mutex> held(lock_);
    computing_--;
    last_ = now;
}

Admission& admission() {
    static Admission one;
    return one;
}
