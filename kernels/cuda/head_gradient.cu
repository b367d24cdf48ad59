// Logits turned into their gradient in place, where a teacher lists tokens or there is none: g_j = a e^(z_j - m) +
// b e^((z_j - m) / T), less the target's; the listed tokens have their own (model::ops::head::row).
#include "head_in_place.cuh"

namespace head {

constexpr unsigned GRADIENT_LOADS = 4;

// A block a position. coefficients [positions, 3] m, a, b.
template <class Activation>
__device__ __forceinline__ void turn_row(float* row, const unsigned* targets, const float* coefficients,
                                         const Classes& at, double temperature, float of_target) {
    const float* of_row = coefficients + size_t(blockIdx.x) * 3;
    const float m = of_row[0], a = of_row[1], b = of_row[2];
    const unsigned target = targets[blockIdx.x] - at.first;
    auto load = [=](unsigned column) { return load4(row, column); };
    auto finish = [=](float4 g, unsigned column) { return finished(g, column, at.columns, target, of_target); };
    const Powers e(temperature);
    if (temperature == 1.0)
        in_place<GRADIENT_LOADS, Activation>(row, at.width, load, [=](float4 x, unsigned column) {
            return finish(each(x, [=](float z) { return (a + b) * e.one(z - m); }), column);
        });
    else
        in_place<GRADIENT_LOADS, Activation>(row, at.width, load, [=](float4 x, unsigned column) {
            return finish(each(x, [=](float z) { return a * e.one(z - m) + b * e.tempered(z - m); }), column);
        });
}

// The listed tokens' own over what was written for them: theirs is not the scale of the others.
template <class Activation>
__device__ __forceinline__ void put_back(float* row, const Listed& listed, const float* gradient, const Classes& at) {
    Activation* to = reinterpret_cast<Activation*>(row);
    const unsigned end = listed.end(blockIdx.x);
    __syncthreads();
    for (unsigned entry = listed.begin(blockIdx.x) + threadIdx.x; entry < end; entry += blockDim.x) {
        const unsigned id = listed.ids[entry];
        if (at.has(id)) narrow(gradient[entry], to[id - at.first]);
    }
}

}  // namespace head

#define HEAD_GRADIENT(name, of_listed, Activation)                                                                  \
    KERNEL __launch_bounds__(head::THREADS, 4)                                                                      \
        name(float* logits, const unsigned* targets, const float* coefficients, unsigned first, unsigned columns,   \
             unsigned width, float of_target) {                                                                     \
        float* row = logits + size_t(blockIdx.x) * width;                                                           \
        head::turn_row<Activation>(row, targets, coefficients, {first, columns, width}, 1.0, of_target);            \
    }                                                                                                               \
    EXPORT(name)                                                                                                    \
    KERNEL __launch_bounds__(head::THREADS, 4)                                                                      \
        of_listed(float* logits, const unsigned* targets, const float* coefficients, const unsigned* ends,          \
                  const unsigned* ids, const float* gradient, unsigned first, unsigned columns, unsigned width,     \
                  double temperature, float of_target) {                                                            \
        float* row = logits + size_t(blockIdx.x) * width;                                                           \
        const head::Classes at{first, columns, width};                                                              \
        head::turn_row<Activation>(row, targets, coefficients, at, temperature, of_target);                         \
        head::put_back<Activation>(row, {ends, ids}, gradient, at);                                                 \
    }                                                                                                               \
    EXPORT(of_listed)
HEAD_GRADIENT(head_gradient_f32, head_gradient_listed_f32, float)
HEAD_GRADIENT(head_gradient_bf16, head_gradient_listed_bf16, __nv_bfloat16)
