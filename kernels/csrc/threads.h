// Work on several threads of a CPU, of which the caller is one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

// Calls work(t) for t from 0 to below `threads`, at least for 0, at once where threads can be had.
template <class Work>
inline void on_threads(int32_t threads, Work work) {
    std::vector<std::thread> others;
    others.reserve(std::max(threads, 1));
    for (int32_t t = 1; t < threads; t++) {
        try {
            others.emplace_back(work, t);
        } catch (const std::exception&) {  // no thread to be had, or no memory for it: do its work here
            work(t);
        }
    }
    work(0);
    for (auto& other : others) other.join();
}
