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
// random variables": a proposal from u in (-0.5, 0.5), and whether v in (0, 1) accepts it, where that is told at once.
struct Proposal {
    float k;
    bool accepted, rejected;
};

struct Hat {
    float a, b;
};

HD Hat hat_over(float mean) {
    float b = 0.931f + 2.53f * sqrtf(mean);
    return {-0.059f + 0.02483f * b, b};
}

HD Proposal propose(float mean, float u, float v) {
    Hat hat = hat_over(mean);
    float s = 0.5f - fabsf(u);
    float k = floorf((2.0f * hat.a / s + hat.b) * u + mean + 0.43f);
    bool accepted = s >= 0.07f && v <= 0.9277f - 3.6224f / (hat.b - 2.0f);
    return {k, accepted, !accepted && (k < 0.0f || (s < 0.013f && v > s))};
}

// Whether v accepts k where it is not told at once; in all, fewer than 30 % are rejected.
HD bool accepts(float mean, float u, float v, float k) {
    Hat hat = hat_over(mean);
    float s = 0.5f - fabsf(u), inverse_alpha = 1.1239f + 1.1328f / (hat.b - 3.4f);
    float left = log_positive(v * inverse_alpha / (hat.a / (s * s) + hat.b));
    return left <= (k < 1.0f ? -mean : log_pmf(k, mean));
}

enum { MOST_ATTEMPTS = 64 };  // then the mean is taken; no stream is known that needs so many

HD float poisson_by_rejection(float mean, Stream& stream) {
    for (int attempt = 0; attempt < MOST_ATTEMPTS; attempt++) {
        float u = stream.growing() - 0.5f, v = stream.uniform();
        Proposal proposal = propose(mean, u, v);
        if (proposal.accepted || (!proposal.rejected && accepts(mean, u, v, proposal.k))) return proposal.k;
    }
    return floorf(mean);
}

HD float poisson(float mean, Stream stream) {
    if (!(mean > 0.0f)) return 0.0f;
    return mean < INVERSION_BELOW ? poisson_by_inversion(mean, stream) : poisson_by_rejection(mean, stream);
}
