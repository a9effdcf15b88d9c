// One pixel of the photon injection. The definition is exposure/denoise.py, expose().
#pragma once
#include "bayer.cuh"
#include "poisson.cuh"

struct Injection {
    float photons, keep, per_photon;
};

HD float photons_of(float clean, Injection step) { return step.photons * clamp01(clean); }

HD float with_photons(float original, float count, Injection step) {
    return step.keep * original + step.per_photon * count;
}
