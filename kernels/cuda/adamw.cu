// AdamW and clipping by the global norm over flat float32 arrays (torch.optim.AdamW, single-tensor form; the formulas
// stand in model::ops::adamw).
#include "common.cuh"

// Into shares [blocks] the sum of the squares of g [count] over this block's elements, in double. Memory: a double for
// each warp.
KERNEL squares(const float* g, double* shares, unsigned count) {
    BLOCK_MEMORY(double, room);
    double sum = 0.0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        sum += double(g[i]) * double(g[i]);
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) shares[blockIdx.x] = sum;
}
EXPORT(squares)

// In place of a factor where the gradients are not finite: the step is then none.
constexpr float NO_STEP = -1.0f;

// From the shares, in their order: the norm, and what gradients are multiplied with so that it is at most max_norm
// (torch.nn.utils.clip_grad_norm_). One thread.
KERNEL clip(const double* shares, float* norm, float* scale, unsigned count, float max_norm) {
    double sum = 0.0;
    for (unsigned share = 0; share < count; share++) sum += shares[share];
    const double root = sqrt(sum);
    *norm = float(root);
    *scale = isfinite(root) ? float(fmin(double(max_norm) / (root + 1e-6), 1.0)) : NO_STEP;
}
EXPORT(clip)

// What is the same for every element of a step.
struct Step {
    float scale, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction2, epsilon, step_size;
};

__device__ __forceinline__ void update(float& p, float& m, float& v, float g, const Step& s) {
    g *= s.scale;
    m += s.one_minus_beta1 * (g - m);
    v = s.beta2 * v + s.one_minus_beta2 * (g * g);
    p = p * s.decay - s.step_size * (m / (sqrtf(v) / s.root_correction2 + s.epsilon));
}

// A step of the parameters p [count] with their moments m and v; where there is room for them, the new ones rounded
// to what products read.
template <class Rounded>
__device__ __forceinline__ void step(float* p, float* m, float* v, const float* g, Rounded* rounded, const Step& s,
                                     unsigned count) {
    if (s.scale == NO_STEP) return;
    const size_t stride = 4 * size_t(gridDim.x) * blockDim.x;
    for (size_t at = 4 * (size_t(blockIdx.x) * blockDim.x + threadIdx.x); at < count; at += stride) {
        if (at + 4 > count) {
            for (size_t i = at; i < count; i++) {
                update(p[i], m[i], v[i], g[i], s);
                if (rounded) narrow(p[i], rounded[i]);
            }
            return;
        }
        float4 of_p = load4(p, at), of_m = load4(m, at), of_v = load4(v, at);
        const float4 of_g = load4(g, at);
        update(of_p.x, of_m.x, of_v.x, of_g.x, s);
        update(of_p.y, of_m.y, of_v.y, of_g.y, s);
        update(of_p.z, of_m.z, of_v.z, of_g.z, s);
        update(of_p.w, of_m.w, of_v.w, of_g.w, s);
        store4(p, at, of_p);
        store4(m, at, of_m);
        store4(v, at, of_v);
        if (rounded) store4(rounded, at, of_p);
    }
}

KERNEL adamw_f32(float* p, float* m, float* v, const float* g, const float* scale, unsigned count, float decay,
                 float one_minus_beta1, float beta2, float one_minus_beta2, float root_correction2, float epsilon,
                 float step_size) {
    const Step s{*scale, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction2, epsilon, step_size};
    step<float>(p, m, v, g, nullptr, s, count);
}
EXPORT(adamw_f32)

KERNEL adamw_bf16(float* p, float* m, float* v, const float* g, const float* scale, unsigned count, float decay,
                  float one_minus_beta1, float beta2, float one_minus_beta2, float root_correction2, float epsilon,
                  float step_size, __nv_bfloat16* rounded) {
    const Step s{*scale, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction2, epsilon, step_size};
    step(p, m, v, g, rounded, s, count);
}
EXPORT(adamw_bf16)
