// What is known of a position whose teacher says all, and the Jensen-Shannon divergence's middle between its two sides.
// The formulas stand in model::ops::head::{full, apart, middle}.
#pragma once

#include "head.cuh"

namespace head {

// What is known of one side's logits x beside the other's o.
struct Side {
    // At 1 of the teacher only where it is measured.
    Sums sums;
    // With e = exp((x - max) / T): Σ e_j (x_j - o_j) / T, and of the teacher Σ e_j (x_j - max) / T.
    double apart, below;
    // NaN until it was heard.
    double of_target;
};

// [positions, 14] float64.
struct Both {
    Side student, teacher;
    // Σ q_j log(q_j / m_j) and Σ p_j log(p_j / m_j), where Jensen-Shannon's divergence asks for them.
    double student_from_middle, teacher_from_middle;
};

// The coefficients of a position's gradient, [positions, 8] float32: what exp(z - m) counts, what exp((z - m) / T) does
// by itself and times (z - y) / T - mean, and what exp((y - n) / T) does, with m and n the two largest logits. Under
// Jensen-Shannon's divergence `tempered` is what q (log(q / m) - mean) counts.
struct Coefficients {
    float m, n, plain, tempered, apart, of_teacher;
    // In two parts: where one class has nearly all of the mass the mean is its own value, and nothing may be left of
    // it.
    float mean_high, mean_low;
};

// Both sides' normalisers at T, and their shares of the middle m = beta p + (1 - beta) q.
struct Middle {
    float student_max, teacher_max, student_log_sum, teacher_log_sum, inverse_t, student_share, teacher_share;

    __device__ __forceinline__ Middle(const Both& both, double temperature, double beta)
        : student_max(point(both.student.sums.max)),
          teacher_max(point(both.teacher.sums.max)),
          student_log_sum(log(both.student.sums.at_t)),
          teacher_log_sum(log(both.teacher.sums.at_t)),
          inverse_t(1.0 / temperature),
          student_share(1.0 - beta),
          teacher_share(beta) {}

    // What there is of a class with logits z and y.
    struct Class {
        float q, p, log_q_over_m, log_p_over_m;
    };

    // m over the larger of p and q lies between the larger one's share and 1: nothing overflows, and its logarithm
    // carries the rounding of a number of about 1.
    __device__ __forceinline__ Class of(float z, float y) const {
        const float log_q = (z - student_max) * inverse_t - student_log_sum;
        const float log_p = (y - teacher_max) * inverse_t - teacher_log_sum;
        const float apart = fabsf(log_q - log_p);
        const bool student_has_more = log_q - log_p > 0.0f;
        const float larger = expf(student_has_more ? log_q : log_p), e = expf(-apart), smaller = larger * e;
        const float share = student_has_more ? student_share : teacher_share;
        const float other_share = student_has_more ? teacher_share : student_share;
        const float larger_over_m = -logf(share + other_share * e), smaller_over_m = larger_over_m - apart;
        if (student_has_more) return {larger, smaller, larger_over_m, smaller_over_m};
        return {smaller, larger, smaller_over_m, larger_over_m};
    }
};

}  // namespace head
