// The gated activation between the projections of the feed-forward block (arXiv 2002.05202).
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// silu(x) · up with silu(x) = x · sigmoid(x).
__device__ __forceinline__ float gated(float x, float up) { return x * sigmoid(x) * up; }

// The gradients of gate and up in their place, silu'(x) = s · (1 + x · (1 - s)) with s = sigmoid(x), and what they gave in
// that of its gradient.
__device__ __forceinline__ void gated_backward(float& a, float& x, float& up) {
    const float s = sigmoid(x), da = a, of_gate = da * up * (s * (1.0f + x * (1.0f - s)));
    a = x * s * up;
    up = da * (x * s);
    x = of_gate;
}

// a = gated(gate, up): rows [gate, up] of gate_up [rows, 2 width], a [rows, width]. A thread four elements, together
// where rows begin at a multiple of four; the blocks of a row along y.
template <class Activation>
__device__ __forceinline__ void gate(const Activation* gate_up, Activation* a, unsigned width) {
    const unsigned first = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (first >= width) return;
    const size_t gates = size_t(blockIdx.x) * 2 * width, ups = gates + width, to = size_t(blockIdx.x) * width;
    if (width % 4 == 0) {
        const float4 x = load4(gate_up, gates + first), up = load4(gate_up, ups + first);
        store4(a, to + first, {gated(x.x, up.x), gated(x.y, up.y), gated(x.z, up.z), gated(x.w, up.w)});
        return;
    }
    for (unsigned i = first; i < min(first + 4, width); i++)
        narrow(gated(wide(gate_up[gates + i]), wide(gate_up[ups + i])), a[to + i]);
}

// The gradient of gate_up in its place, and in that of da what gate made of it: the product that asks for it comes behind,
// and nothing is read a second time.
template <class Activation>
__device__ __forceinline__ void gate_backward(Activation* da, Activation* gate_up, unsigned width) {
    const unsigned first = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (first >= width) return;
    const size_t gates = size_t(blockIdx.x) * 2 * width, ups = gates + width, from = size_t(blockIdx.x) * width;
    if (width % 4 == 0) {
        float4 x = load4(gate_up, gates + first), up = load4(gate_up, ups + first);
        float4 of_a = load4(da, from + first);
        gated_backward(of_a.x, x.x, up.x);
        gated_backward(of_a.y, x.y, up.y);
        gated_backward(of_a.z, x.z, up.z);
        gated_backward(of_a.w, x.w, up.w);
        store4(gate_up, gates + first, x);
        store4(gate_up, ups + first, up);
        store4(da, from + first, of_a);
        return;
    }
    for (unsigned i = first; i < min(first + 4, width); i++) {
        float of_a = wide(da[from + i]), x = wide(gate_up[gates + i]), up = wide(gate_up[ups + i]);
        gated_backward(of_a, x, up);
        narrow(x, gate_up[gates + i]);
        narrow(up, gate_up[ups + i]);
        narrow(of_a, da[from + i]);
    }
}

#define SWIGLU(name, Activation)                                                                           \
    KERNEL name(const Activation* gate_up, Activation* a, unsigned width) { gate(gate_up, a, width); }     \
    EXPORT(name)
SWIGLU(swiglu_f32, float)
SWIGLU(swiglu_bf16, __nv_bfloat16)

#define SWIGLU_BACKWARD(name, Activation)                                                                  \
    KERNEL name(Activation* da, Activation* gate_up, unsigned width) {                                     \
        gate_backward(da, gate_up, width);                                                                 \
    }                                                                                                      \
    EXPORT(name)
SWIGLU_BACKWARD(swiglu_backward_f32, float)
SWIGLU_BACKWARD(swiglu_backward_bf16, __nv_bfloat16)
