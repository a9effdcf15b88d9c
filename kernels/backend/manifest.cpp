#include "manifest.h"
#include "sha256.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <vector>

#include <openvino/core/version.hpp>

static const char* REBUILD = "rebuild with: python export/build_engine.py";

std::string json_value(const std::string& json, const std::string& key) {
    std::smatch found;
    std::regex pattern("\"" + key + "\"\\s*:\\s*(?:\"((?:[^\"\\\\]|\\\\.)*)\"|([-+.0-9eE]+))"), escaped("\\\\([\"\\\\])");
    if (!std::regex_search(json, found, pattern)) return "";
    return std::regex_replace(found.str(1), escaped, "$1") + found.str(2);  // quotes and backslashes, of file names
}

// A function of a library that need not be here, or nullptr.
template <class Function>
static Function* found(std::initializer_list<const char*> libraries, const char* name) {
    for (const char* library : libraries)
        if (void* handle = dlopen(library, RTLD_NOW))
            if (void* function = dlsym(handle, name)) return reinterpret_cast<Function*>(function);
    return nullptr;
}

// The first NVIDIA card, as its driver tells it without a context; name and capability ("86") are empty without one.
static void card_here(std::string& name, std::string& capability) {
    auto init = found<int(unsigned)>({"libcuda.so.1"}, "cuInit");
    auto count = found<int(int*)>({"libcuda.so.1"}, "cuDeviceGetCount");
    auto get_name = found<int(char*, int, int)>({"libcuda.so.1"}, "cuDeviceGetName");
    auto attribute = found<int(int*, int, int)>({"libcuda.so.1"}, "cuDeviceGetAttribute");
    const int capability_major = 75, capability_minor = 76;  // CUdevice_attribute
    int cards = 0, major = 0, minor = 0;
    char text[256] = "";
    if (!init || !count || !get_name || !attribute || init(0) || count(&cards) || cards < 1) return;
    if (get_name(text, sizeof text, 0) || attribute(&major, capability_major, 0) || attribute(&minor, capability_minor, 0))
        return;
    name = text;
    capability = std::to_string(major) + std::to_string(minor);
}

// "10.14.1.48" to "10.14.1", "2026.4.1-23000-releases" to "2026.4.1".
static std::string three_parts(const std::string& version) {
    std::smatch parts;
    return std::regex_search(version, parts, std::regex("^\\d+\\.\\d+\\.\\d+")) ? parts.str(0) : version;
}

// Whether a version of three parts is beyond another; no version is not.
static bool newer(const std::string& version, const std::string& than) {
    int a[3] = {}, b[3] = {};
    if (sscanf(version.c_str(), "%d.%d.%d", a, a + 1, a + 2) != 3 || sscanf(than.c_str(), "%d.%d.%d", b, b + 1, b + 2) != 3)
        return false;
    return std::lexicographical_compare(b, b + 3, a, a + 3);
}

// Version of the library that runs engines of a target in this process; "" where it is not here.
static std::string library_here(const std::string& target) {
    if (target == "openvino") return three_parts(ov::get_openvino_version().buildNumber);
    auto version = found<int()>({"libnvinfer.so.11", "libnvinfer.so.10"}, "getInferLibVersion");
    if (!version) return "";
    int v = version();  // 101401 is 10.14.1
    return std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100);
}

static constexpr int AMPERE = 80;  // compute capability 8.0

// Why an engine cannot be trusted here, naming both sides; "" where it can. The definition is kernels/machine.py.
static std::string mismatch(const std::string& target, const std::string& runs_on) {
    std::string library = json_value(runs_on, "library"), wanted = json_value(runs_on, "library_version");
    bool portable = json_value(runs_on, "portable") == "yes";
    if (target != "tensorrt-rtx") {  // the denoiser's own process holds that library, and checks it
        std::string here = library_here(target);
        if (here != three_parts(wanted) && !(portable && newer(here, three_parts(wanted))))
            return "was built by " + library + " " + wanted + ", and this server has " +
                   (here.empty() ? "no " + library : library + " " + here);
    }
    std::string capabilities = json_value(runs_on, "compute_capability"), card = json_value(runs_on, "card");
    if (capabilities.empty()) return "";
    std::string name, capability, built = (card.empty() ? "cards" : card) + " of compute capability " + capabilities;
    card_here(name, capability);
    if (name.empty()) return "was built for " + built + ", and this machine has no NVIDIA card";
    bool later = portable && target == "tensorrt" && atoi(capability.c_str()) >= AMPERE;
    bool listed = (" " + capabilities + " ").find(" " + capability + " ") != std::string::npos;
    if ((!listed && !later) || (!card.empty() && card != name && !portable))
        return "was built for " + built + ", and this machine has " + name + " of " + capability;
    return "";
}

// A size of the profile, "usual" or "largest": height and width, 0 where the manifest names none.
static void profiled(const std::string& json, const std::string& size, int64_t& height, int64_t& width) {
    std::smatch sides;
    height = width = 0;
    std::regex pattern("\"" + size + "\"\\s*:\\s*\\[\\s*(\\d{1,5})\\s*,\\s*(\\d{1,5})\\s*\\]");
    if (std::regex_search(json, sides, pattern)) height = atoi(sides.str(1).c_str()), width = atoi(sides.str(2).c_str());
}

Manifest read_manifest(const std::string& folder) {
    std::ifstream file(folder + "/manifest.json");
    if (!file) throw std::runtime_error("no engine in " + folder + "; build one with: python export/build_engine.py");
    std::stringstream text;
    text << file.rdbuf();
    std::string json = text.str();
    Manifest manifest{atof(json_value(json, "photon_unit").c_str()), atoi(json_value(json, "multiple").c_str()),
                      json_value(json, "precision"), json_value(json, "convolutions")};
    size_t built_from = json.find("\"built_from\""), files = json.find("\"files\"");
    if (built_from != std::string::npos) manifest.checkpoint = json_value(json.substr(built_from), "checkpoint");
    profiled(json, "usual", manifest.usual_height, manifest.usual_width);
    if (json_value(json, "target").compare(0, 8, "tensorrt") == 0)
        profiled(json, "largest", manifest.largest_height, manifest.largest_width);
    if (!(manifest.photon_unit > 0) || manifest.multiple < 1 || files == std::string::npos)
        throw std::runtime_error(folder + "/manifest.json is not an engine manifest; " + REBUILD);
    std::string again = json_value(json, "rebuild"), rebuild = again.empty() ? REBUILD : "rebuild with: " + again;
    std::string listed = json.substr(files);
    std::regex entry("\"([^\"]+)\"\\s*:\\s*\"([0-9a-f]{64})\"");
    for (std::sregex_iterator it(listed.begin(), listed.end(), entry), end; it != end; ++it) {
        std::string name = folder + "/" + it->str(1);
        std::ifstream part(name, std::ios::binary);
        std::vector<uint8_t> content((std::istreambuf_iterator<char>(part)), std::istreambuf_iterator<char>());
        if (!part || sha256(content) != it->str(2))
            throw std::runtime_error(name + " is not the file that was built; " + rebuild);
    }
    size_t start = json.find("\"runs_on\""), end_of = json.find('}', start);
    if (start == std::string::npos || end_of == std::string::npos)
        throw std::runtime_error(folder + "/manifest.json is of an older version; " + REBUILD);
    std::string problem = mismatch(json_value(json, "target"), json.substr(start, end_of - start));
    if (!problem.empty()) throw std::runtime_error("the engine in " + folder + " " + problem + "; " + rebuild);
    return manifest;
}
