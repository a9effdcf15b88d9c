// Poisson counts for means from 0 to 2^24, as exact as FP32 and its uniforms are.
#pragma once
#include <cmath>

#include "philox.cuh"

#define INVERSION_BELOW 10.0f

// Sequential search of the distribution function for the first value that is not below u.
struct Search {
    float k, term, sum;  // P(k), and P(0) + ... + P(k)
};

HD Search search_from_0(float mean) { return {0.0f, exp_negative(mean), exp_negative(mean)}; }

// One further, where that is needed. The sum of all terms, rounded, may lie below the largest u: where it no longer grows,
// the search is over, however often it is asked to advance.
HD bool advance(Search& at, float u, float mean) {
    float k = at.k + 1.0f, term = at.term * (mean / k), sum = at.sum + term;
    bool further = u > at.sum;
    at.k = further ? k : at.k;
    at.term = further ? term : at.term;
    at.sum = further ? (sum != at.sum ? sum : 1.0f) : at.sum;
    return further;
}

HD float poisson_by_inversion(float mean, Stream& stream) {
    float u = stream.growing();
    Search at = search_from_0(mean);
    while (advance(at, u, mean)) {
    }
    return at.k;
}

// log k! - log of Stirling's approximation to it (Loader, "Fast and accurate computation of binomial probabilities").
HD float stirling_error(float k) {
    float inverse = 1.0f / k, square = inverse * inverse;
    return inverse * (0.083333336f - square * (0.0027777778f - square * (0.00079365080f - square * 0.00059523810f)));
}

// k log(k / mean) + mean - k without cancellation (Loader's deviance).
HD float deviance(float k, float mean) {
    float difference = k - mean;
    if (fabsf(difference) >= 0.1f * (k + mean)) return k * log_positive(k / mean) - difference;
    float v = difference / (k + mean), square = v * v;
    float term = 2.0f * k * v, sum = difference * v;
    for (int j = 1; j < 8; j++) {  // v^2 < 0.01: eight terms reach 1e-16
        term *= square;
        sum += term / (float)(2 * j + 1);
    }
    return sum;
}

// log of the probability of k, k >= 1.
HD float log_pmf(float k, float mean) {
    return -stirling_error(k) - deviance(k, mean) - 0.5f * log_positive(6.2831853f * k);
}

// Transformed rejection with squeeze (PTRS), Hoermann 1993, "The transformed rejection method for generating Poisson
// random variables": a proposal from u in (-0.5, 0.5), and whether v in (0, 1) accepts it; fewer than 30 % are rejected.
struct Proposal {
    float k;
    bool accepted;
};

HD Proposal propose(float mean, float u, float v) {
    float b = 0.931f + 2.53f * sqrtf(mean);
    float a = -0.059f + 0.02483f * b;
    float s = 0.5f - fabsf(u);
    float k = floorf((2.0f * a / s + b) * u + mean + 0.43f);
    if (s >= 0.07f && v <= 0.9277f - 3.6224f / (b - 2.0f)) return {k, true};
    if (k < 0.0f || (s < 0.013f && v > s)) return {k, false};
    float inverse_alpha = 1.1239f + 1.1328f / (b - 3.4f);
    float left = log_positive(v * inverse_alpha / (a / (s * s) + b));
    return {k, left <= (k < 1.0f ? -mean : log_pmf(k, mean))};
}

HD float poisson_by_rejection(float mean, Stream& stream) {
    for (int attempt = 0; attempt < 64; attempt++) {
        float u = stream.growing() - 0.5f, v = stream.uniform();
        Proposal proposal = propose(mean, u, v);
        if (proposal.accepted) return proposal.k;
    }
    return floorf(mean);
}

HD float poisson(float mean, Stream stream) {
    if (!(mean > 0.0f)) return 0.0f;
    return mean < INVERSION_BELOW ? poisson_by_inversion(mean, stream) : poisson_by_rejection(mean, stream);
}
