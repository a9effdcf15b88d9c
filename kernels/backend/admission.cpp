#include "admission.h"

#include "request.h"

static const int64_t ROUNDS = 4;  // passes of the longest ensemble: how often a request waits behind all others

static const std::chrono::seconds PATIENCE(4);  // clients ask again after one at most, and have to send the frame

uint64_t Admission::enter(int64_t pixels, Clock::time_point now) {
    std::lock_guard<std::mutex> held(lock_);
    if (computing_ == 0 && now - last_ > quiet_) forget_all();
    auto gone = [&](const Entry& entry) { return answered_ - entry.answered > ROUNDS * (limit_ + entry.pixels); };
    while (!entries_.empty() && gone(entries_.begin()->second)) forget(entries_.begin());
    if (now > waits_until_) waiting_ = 0;
    bool full = under_way_ > 0 && under_way_ + pixels > limit_;
    bool in_the_way = waiting_ > 0 && pixels != waiting_ && under_way_ + pixels + waiting_ > limit_;
    if (in_the_way && !full)
        throw Busy(sentence("the server is busy: an earlier request of %.1f megapixels waits for its turn; ask again later",
                            waiting_ / 1e6));
    if (full) {
        if (waiting_ == 0) waiting_ = pixels;
        if (waiting_ == pixels) waits_until_ = now + PATIENCE;
        throw Busy(sentence("the server is busy: requests of %.1f megapixels are under way, and it takes %.1f; ask again "
                            "later", under_way_ / 1e6, limit_ / 1e6));
    }
    if (waiting_ == pixels) waiting_ = 0;
    entries_[++tickets_] = {pixels, answered_};
    under_way_ += pixels;
    last_ = now;
    return tickets_;
}

void Admission::leave(uint64_t ticket) {
    std::lock_guard<std::mutex> held(lock_);
    auto entry = entries_.find(ticket);
    if (entry == entries_.end()) return;
    answered_ += entry->second.pixels;
    forget(entry);
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

void Admission::forget(std::map<uint64_t, Entry>::iterator entry) {
    under_way_ -= entry->second.pixels;
    entries_.erase(entry);
}

void Admission::forget_all() {
    entries_.clear();
    under_way_ = 0;
}

Admission& admission() {
    static Admission one;
    return one;
}
