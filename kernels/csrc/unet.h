// The C ABI of the U-Net on a CPU. All of it FP32; nothing here throws.
#pragma once
#include <cstdint>

struct UNet;  // never changes once made: any number of threads may run it
struct UNetMemory;

// widths: channels of the five levels; inputs: 4, 8 (photon planes) or 12 (and the original); outputs: 9 or 4.
struct UNetShape {
    int32_t widths[5];
    int32_t inputs, outputs;
};

enum { UNET_LAYERS = 23 };  // in the order of exposure/networks/unet.py: conv1_1 .. conv5_2, upv6, conv6_1 .. conv10_1

extern "C" {
// Floats of a vector on this processor: 16, 8, or 0 where it cannot run the U-Net (it needs AVX2 and FMA).
int32_t exposure_unet_lanes();
// Whether these are the sizes of a network's parameters. floats: of weight and bias of each layer.
int32_t exposure_unet_takes(const UNetShape* shape, const int64_t* floats);
// parameters: weight and bias of each layer as torch holds them, copied. most_lanes: of the vectors, 16 but for tests.
// Returns nullptr where memory does not suffice or the processor cannot run it.
UNet* exposure_unet_new(const UNetShape* shape, const float* const* parameters, int32_t most_lanes);
int32_t exposure_unet_inputs(const UNet* unet);  // of its shape
void exposure_unet_free(UNet* unet);
// Where passes keep their images between layers, so that the next one need not ask the system again: one for all passes
// that run one after the other, of whatever network. nullptr where there is no memory.
UNetMemory* exposure_unet_memory_new();
void exposure_unet_memory_free(UNetMemory* memory);
// One pass. image, original, clean: [4, height, width], sides multiples of 16; original is read where inputs are 12. More
// memory than that of `kept` pixels is given back. Returns whether memory sufficed.
int32_t exposure_unet_run(const UNet* unet, UNetMemory* memory, const float* image, float photon_gain,
                          const float* original, int64_t height, int64_t width, float* clean, int32_t threads,
                          int64_t kept);
// What the stages of the last pass took: putting the inputs together, then each layer in order, the last two as one.
// seconds: room for UNET_LAYERS. Returns how many there are.
int32_t exposure_unet_seconds(const UNetMemory* memory, double* seconds);
}
