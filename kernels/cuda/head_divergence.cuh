// Divergences of the student from the teacher over outcomes whose log-probabilities are known, and their slopes:
// distill::reference::Divergence::over, where the formulas stand, an outcome at a time.
#pragma once

#include "common.cuh"

namespace head {

enum Kind : unsigned { FORWARD, REVERSE, JSD, MIXTURE };

struct Divergence {
    unsigned kind;
    // The teacher's share of the middle, or the weight of the reverse divergence.
    double beta;
};

// exp(log_weight) factor, 0 where the weight is 0 whatever the factor.
__device__ __forceinline__ double term(double log_weight, double factor) {
    return log_weight == -INFINITY ? 0.0 : exp(log_weight) * factor;
}

// p log(p / q), 0 for what the teacher rules out.
__device__ __forceinline__ double kl_term(double log_p, double log_q) {
    const double p = exp(log_p);
    return p > 0.0 ? p * (log_p - log_q) : 0.0;
}

// log(1 - share + share e^d), to the last digits near d = 0 and at a small share.
__device__ __forceinline__ double log_of_mixed(double share, double d) {
    // e^709 is the last that float64 holds.
    return d > 700.0 ? d + log(share + (1.0 - share) * exp(-d)) : log1p(share * expm1(d));
}

// The sums a divergence and its slopes are made of: of p log(p / q) and q log(q / p), with the middle m in place of
// the other side where it is Jensen-Shannon's; 0 where the divergence does not ask for it.
struct Apart {
    double of_teacher, of_student;
};

__device__ __forceinline__ double below_middle(double log_q, double log_p, double beta) {
    return -log_of_mixed(beta, log_p - log_q);
}

// What an outcome adds.
__device__ __forceinline__ Apart apart_of(const Divergence& of, double log_p, double log_q) {
    switch (of.kind) {
    case FORWARD: return {kl_term(log_p, log_q), 0.0};
    case REVERSE: return {0.0, term(log_q, log_q - log_p)};
    case JSD:
        return {term(log_p, below_middle(log_p, log_q, 1.0 - of.beta)),
                term(log_q, below_middle(log_q, log_p, of.beta))};
    default: return {term(log_p, log_p - log_q), term(log_q, log_q - log_p)};
    }
}

// The divergence.
__device__ __forceinline__ double value_of(const Divergence& of, const Apart& sums) {
    switch (of.kind) {
    case FORWARD: return sums.of_teacher;
    case REVERSE: return sums.of_student;
    case JSD: return of.beta * sums.of_teacher + (1.0 - of.beta) * sums.of_student;
    default: return (1.0 - of.beta) * sums.of_teacher + of.beta * sums.of_student;
    }
}

// The derivative of another than the forward one with respect to the outcome's logit divided by T. The forward one's is
// the difference of the probabilities, which callers know to more digits.
__device__ __forceinline__ double slope_of(const Divergence& of, const Apart& sums, double log_p, double log_q) {
    if (of.kind == JSD)
        return (1.0 - of.beta) * term(log_q, below_middle(log_q, log_p, of.beta) - sums.of_student);
    const double reverse = term(log_q, log_q - log_p - sums.of_student);
    return of.kind == REVERSE ? reverse : (1.0 - of.beta) * (exp(log_q) - exp(log_p)) + of.beta * reverse;
}

}  // namespace head
