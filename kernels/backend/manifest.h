// The manifest beside an engine, as kernels/manifest.py describes it, and the check that its files are the ones it names
// and that it was built for this server's library and this machine's card.
#pragma once
#include <cstdint>
#include <string>

// A key's value in JSON that this project or Triton wrote: the text of a string or number, "" where it is missing.
std::string json_value(const std::string& json, const std::string& key);

struct Manifest {
    double photon_unit;
    int multiple;
    std::string precision;
    std::string convolutions;  // "winograd" where the kernels of csrc/unet.h compute the network
    std::string checkpoint = "";  // SHA-256 of the file that the engine was built from, hexadecimal
    int64_t usual_height = 0, usual_width = 0;      // plane sides of the frame that the engine was made ready for; or 0
    int64_t largest_height = 0, largest_width = 0;  // plane sides that a plan takes at most; 0 where any size is taken
};

// Throws std::runtime_error, one sentence, when the engine is missing, is not what was built, or was built for another
// library or card.
Manifest read_manifest(const std::string& folder);
