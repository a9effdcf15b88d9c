// How many threads are worth starting: the cores that this process may run on, and no more than its quota.
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#include "kernels.h"

static double allowed_by_affinity() {
    cpu_set_t set;  // of 1024 cores; the call fails where there are more
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
    return std::max(1u, std::thread::hardware_concurrency());
}

// Cores that a control group's quota is worth, or `unlimited`: cpu.max of version 2, cpu.cfs_*_us of version 1.
static double quota_of(const std::string& group, double unlimited) {
    double quota, period;
    std::ifstream both(group + "/cpu.max");
    if (both >> quota >> period) return quota / period;  // without a limit it begins with "max"
    std::ifstream first(group + "/cpu.cfs_quota_us"), second(group + "/cpu.cfs_period_us");
    return first >> quota && second >> period && quota > 0 ? quota / period : unlimited;
}

// A group's threads all stop, many times a second, when together they have used its quota up (cgroups(7)): what waits
// for its slowest thread, as a pass does, must not have more of them. The groups above count too; in a container, whose
// own group is the root that it sees, they end there.
int32_t exposure_cpu_cores(const char* root) {
    double cores = allowed_by_affinity();
    std::ifstream groups(std::string(root) + "/proc/self/cgroup");  // lines of number:controllers:path
    for (std::string line; std::getline(groups, line);) {
        size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
        if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
        std::string mount = std::string(root) + "/sys/fs/cgroup/" + controllers;  // version 2 names no controllers
        for (;; path.resize(path.rfind('/'))) {
            cores = std::min(cores, quota_of(mount + path, cores));
            if (path.find('/') == std::string::npos) break;
        }
    }
    return std::max(1, (int32_t)std::ceil(cores));
}
