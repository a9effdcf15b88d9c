// How many pixels of requests the server holds at once. Triton would take any number: each waits with its planes, 16 bytes
// a pixel, until memory ends.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
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
    // Passes are computed by others, on a card, and are not seen here: what is quiet for longer only is over.
    void passes_are_not_seen() { quiet_ = std::chrono::seconds(10); }

    // A request of so many pixels begins; alone, one of any size may. Returns the ticket that it leaves with. Throws Busy,
    // and then keeps those of other sizes from the room that the one so refused waits for, though nothing else be under
    // way: else a large one would ask in vain for as long as small ones come.
    uint64_t enter(int64_t pixels, Clock::time_point now = Clock::now());
    // It has been answered, or has failed.
    void leave(uint64_t ticket);
    // A model behind `pack` computes from `began` to `ended`. Requests that are cancelled, fail on their way, or ask for no
    // more than CHECKPOINT, so that Triton leaves `unpack` out, never leave; `enter` forgets them in two ways. In each pass
    // at most the limit of other pixels is ahead of a request: once several times that has been answered since it entered,
    // it is gone. And once nothing has been let in and nothing computed for a while, nothing is under way.
    void began();
    void ended(Clock::time_point now = Clock::now());

  private:
    struct Entry {
        int64_t pixels, answered;  // answered: pixels that had been when it came
    };

    void forget(std::map<uint64_t, Entry>::iterator entry);
    void forget_all();

    std::mutex lock_;
    std::map<uint64_t, Entry> entries_;  // by ticket: the oldest first
    uint64_t tickets_ = 0;
    int64_t limit_ = 1000000 * DEFAULT_MEGAPIXELS, under_way_ = 0, answered_ = 0;
    int64_t waiting_ = 0;  // pixels of the first that was refused, while it asks again
    Clock::time_point waits_until_ = Clock::now();
    int computing_ = 0;
    std::chrono::seconds quiet_{2};  // longer than Triton needs from one model of an ensemble to the next
    Clock::time_point last_ = Clock::now();
};

Admission& admission();  // the one of this process
