// What follows for a position whose teacher says all, once all its classes were heard, in float64: the losses and the
// coefficients of the gradient (model::ops::head::full). A thread a position.
#include "head_divergence.cuh"
#include "head_full.cuh"

namespace head {

// The losses [7, positions], `measures` the teacher's own too.
__device__ __forceinline__ void put_losses(const Both& both, const Divergence& of, double temperature, bool measures,
                                           float* losses, unsigned position, unsigned positions) {
    const Side &student = both.student, &teacher = both.teacher;
    // log(q_norm / p_norm)
    const double apart = log_at_t(student.sums, temperature) - log_at_t(teacher.sums, temperature);
    const Apart sums = of.kind == JSD
        ? Apart{both.teacher_from_middle, both.student_from_middle}
        : Apart{teacher.apart / teacher.sums.at_t + apart, student.apart / student.sums.at_t - apart};
    const double kl = value_of(of, sums);
    auto loss = [&](Loss column, double value) { losses[size_t(column) * positions + position] = float(value); };
    loss(CE, log_at_one(student.sums) - student.of_target);
    // What lies below 0 is rounding; NaN stays.
    loss(KL, kl < 0.0 ? 0.0 : kl);
    loss(TEACHER_MASS, 1.0);
    loss(STUDENT_MASS, 1.0);
    loss(KL_REST, 0.0);
    loss(TEACHER_ENTROPY, log(teacher.sums.at_t) - teacher.below / teacher.sums.at_t);
    loss(TEACHER_CE, measures ? log_at_one(teacher.sums) - teacher.of_target : NAN);
}

__device__ __forceinline__ Coefficients coefficients_of(const Both& both, const Divergence& of, double temperature,
                                                        double ce_weight, double kl_weight) {
    const Side &student = both.student, &teacher = both.teacher;
    const double m = point(student.sums.max), n = point(teacher.sums.max);
    const double plain = ce_weight * exp(m - log_at_one(student.sums));
    const double tempered = kl_weight * exp(m / temperature - log_at_t(student.sums, temperature));
    if (of.kind == JSD)
        return {float(m), float(n), float(plain), float(kl_weight * (1.0 - of.beta)), 0.0f, 0.0f,
                float(both.student_from_middle), 0.0f};
    const double share = of.kind == FORWARD ? 0.0 : of.kind == REVERSE ? 1.0 : of.beta;
    const double mean = student.apart / student.sums.at_t;
    return {float(m), float(n), float(plain), float(tempered * (1.0 - share)), float(tempered * share),
            float(kl_weight * (1.0 - share) / teacher.sums.at_t), float(mean), float(mean - double(float(mean)))};
}

}  // namespace head

KERNEL head_full_heard(const double* both, float* losses, float* coefficients, unsigned positions, unsigned kind,
                       double beta, unsigned measures, double temperature, double ce_weight, double kl_weight) {
    const unsigned position = blockIdx.x * blockDim.x + threadIdx.x;
    if (position >= positions) return;
    const head::Both& known = reinterpret_cast<const head::Both*>(both)[position];
    const head::Divergence of{kind, beta};
    head::put_losses(known, of, temperature, measures != 0, losses, position, positions);
    reinterpret_cast<head::Coefficients*>(coefficients)[position] =
        head::coefficients_of(known, of, temperature, ce_weight, kl_weight);
}
EXPORT(head_full_heard)
