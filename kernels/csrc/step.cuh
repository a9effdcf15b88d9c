// One pixel of the photon injection. The definition is exposure/denoise.py, expose().
#pragma once
#include "bayer.cuh"
#include "poisson.cuh"

struct Injection {
    float photons, keep, per_photon;
};

HD float exposed(float clean, float original, Injection step, Stream stream) {
    return step.keep * original + step.per_photon * poisson(step.photons * clamp01(clean), stream);
}
