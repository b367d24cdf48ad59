// AdamW and clipping by the global norm over flat float32 arrays (torch.optim.AdamW, single-tensor form; the formulas
// stand in model::ops::adamw).
#include "common.cuh"

// Where nothing is.
constexpr unsigned NOWHERE = 0xffffffff;

// The least over the lanes of a warp, in all of them.
__device__ __forceinline__ unsigned warp_min(unsigned x) {
    for (unsigned lane = WARP_LANES / 2; lane > 0; lane /= 2) x = min(x, __shfl_xor_sync(ALL_LANES, x, lane));
    return x;
}

// Of this block's elements of g [count]: into shares [blocks] the sum of their squares, in double, and into places
// [blocks] where the first one is that is not finite, or NOWHERE. Memory: a double for each warp.
KERNEL squares(const float* g, double* shares, unsigned* places, unsigned count) {
    BLOCK_MEMORY(double, room);
    double sum = 0.0;
    unsigned place = NOWHERE;
    auto take = [&](float x, size_t at) {
        sum += double(x) * double(x);
        if (!isfinite(x)) place = min(place, unsigned(at));
    };
    const size_t stride = 4 * size_t(gridDim.x) * blockDim.x;
    for (size_t at = 4 * (size_t(blockIdx.x) * blockDim.x + threadIdx.x); at < count; at += stride) {
        if (at + 4 > count) {
            for (size_t i = at; i < count; i++) take(g[i], i);
            break;
        }
        const float4 four = load4(g, at);
        take(four.x, at);
        take(four.y, at + 1);
        take(four.z, at + 2);
        take(four.w, at + 3);
    }
    sum = block_sum(sum, room);
    unsigned* first = reinterpret_cast<unsigned*>(room);
    place = warp_min(place);
    if (threadIdx.x % WARP_LANES == 0) first[threadIdx.x / WARP_LANES] = place;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (unsigned warp = 1; warp < blockDim.x / WARP_LANES; warp++) place = min(place, first[warp]);
    shares[blockIdx.x] = sum;
    places[blockIdx.x] = place;
}
EXPORT(squares)

// Sets halted [1] where one of values [count] is not finite: no step is made from then on. One block; memory: a number
// for each warp.
KERNEL halt(const float* values, unsigned* halted, unsigned count) {
    BLOCK_MEMORY(unsigned, room);
    unsigned broken = 0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) broken += !isfinite(values[i]);
    broken = block_sum(broken, room);
    if (threadIdx.x == 0 && broken > 0) *halted = 1;
}
EXPORT(halt)

// In place of a factor where no step is to be made.
constexpr float NO_STEP = -1.0f;

// From shares and places [count]: the norm, and what gradients are multiplied with so that it is at most max_norm
// (torch.nn.utils.clip_grad_norm_). A norm that is not finite halts, and what is halted makes no step. Into outcome [2]
// whether none is made, and the first place. One warp.
KERNEL clip(const double* shares, const unsigned* places, unsigned* halted, double* norm, unsigned* outcome,
            float* scale, unsigned count, float max_norm) {
    double sum = 0.0;
    unsigned place = NOWHERE;
    for (unsigned share = threadIdx.x; share < count; share += WARP_LANES) {
        sum += shares[share];
        place = min(place, places[share]);
    }
    const double root = sqrt(warp_sum(sum));
    place = warp_min(place);
    if (threadIdx.x > 0) return;
    if (!isfinite(root)) *halted = 1;
    const bool refused = *halted != 0;
    *norm = root;
    outcome[0] = refused;
    outcome[1] = place;
    *scale = refused ? NO_STEP : float(fmin(double(max_norm) / (root + 1e-6), 1.0));
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
