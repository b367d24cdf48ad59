// Logits turned into their gradient in place, beside those of a teacher that says all: model::ops::head::full.
#include "head_divergence.cuh"
#include "head_full.cuh"
#include "head_in_place.cuh"

namespace head {

// Of each side.
constexpr unsigned FULL_GRADIENT_LOADS = 2;

// Four logits of both sides.
struct Pair {
    float4 z, y;
};

// g = a e^(z - m) + e^((z - m) / T) (b + c ((z - y) / T - mean)) - d e^((y - n) / T): the forward divergence has no c,
// the reverse one neither b nor d.
template <unsigned KIND>
__device__ __forceinline__ float slope_at(const Coefficients& by, float inverse_t, float z, float y) {
    const float below = z - by.m, of_student = expf(below * inverse_t);
    float g = by.tempered;
    if (KIND != FORWARD) {
        // Rounded as the sums round it.
        const float apart = (__fmul_rn(z - y, inverse_t) - by.mean_high) - by.mean_low;
        g = g + by.apart * apart;
    }
    g = by.plain * expf(below) + of_student * g;
    return KIND == REVERSE ? g : g - by.of_teacher * expf((y - by.n) * inverse_t);
}

// A block a position. coefficients [positions, 8].
template <class Activation>
__device__ __forceinline__ void turn_rows(float* logits, const float* teacher, const unsigned* targets,
                                          const Both* both, const Coefficients* coefficients, const Classes& at,
                                          const Divergence& of, double temperature, float of_target) {
    const size_t start = size_t(blockIdx.x) * at.width;
    const float* z = logits + start;
    const float* y = teacher + start;
    const Coefficients by = coefficients[blockIdx.x];
    const float inverse_t = float(1.0 / temperature);
    const unsigned target = targets[blockIdx.x] - at.first;
    auto turn = [&](auto slope) {
        in_place<FULL_GRADIENT_LOADS, Activation>(
            logits + start, at.width, [=](unsigned column) { return Pair{load4(z, column), load4(y, column)}; },
            [=](const Pair& x, unsigned column) {
                return finished(each(x.z, x.y, slope), column, at.columns, target, of_target);
            });
    };
    switch (of.kind) {
    case FORWARD: return turn([=](float z, float y) { return slope_at<FORWARD>(by, inverse_t, z, y); });
    case REVERSE: return turn([=](float z, float y) { return slope_at<REVERSE>(by, inverse_t, z, y); });
    case MIXTURE: return turn([=](float z, float y) { return slope_at<MIXTURE>(by, inverse_t, z, y); });
    default: {
        const Middle middle(both[blockIdx.x], temperature, of.beta);
        turn([=](float z, float y) {
            const Middle::Class there = middle.of(z, y);
            return by.plain * expf(z - by.m) + by.tempered * (there.q * (there.log_q_over_m - by.mean_high));
        });
    }
    }
}

}  // namespace head

#define HEAD_FULL_GRADIENT(name, Activation)                                                                        \
    KERNEL __launch_bounds__(head::THREADS, 3)                                                                      \
        name(float* logits, const float* teacher, const unsigned* targets, const double* both,                      \
             const float* coefficients, unsigned first, unsigned columns, unsigned width, unsigned kind,            \
             double beta, double temperature, float of_target) {                                                    \
        head::turn_rows<Activation>(logits, teacher, targets, reinterpret_cast<const head::Both*>(both),            \
                                    reinterpret_cast<const head::Coefficients*>(coefficients),                      \
                                    {first, columns, width}, {kind, beta}, temperature, of_target);                 \
    }                                                                                                               \
    EXPORT(name)
HEAD_FULL_GRADIENT(head_full_gradient_f32, float)
HEAD_FULL_GRADIENT(head_full_gradient_bf16, __nv_bfloat16)
