// The gated activation between the projections of the feed-forward block (arXiv 2002.05202).
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// a = silu(gate) · up with silu(x) = x · sigmoid(x): rows [gate, up] of gate_up [rows, 2 width], a [rows, width]. A
// thread an element; the blocks of a row along y.
template <class Activation>
__device__ __forceinline__ void gate(const Activation* gate_up, Activation* a, unsigned width) {
    const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const size_t row = blockIdx.x;
    const float x = wide(gate_up[2 * row * width + i]), up = wide(gate_up[(2 * row + 1) * width + i]);
    narrow(x * sigmoid(x) * up, a[row * width + i]);
}

// The gradient of gate_up in its place: silu'(x) = s · (1 + x · (1 - s)) with s = sigmoid(x).
template <class Activation>
__device__ __forceinline__ void gate_backward(const Activation* da, Activation* gate_up, unsigned width) {
    const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const size_t row = blockIdx.x;
    Activation &at_gate = gate_up[2 * row * width + i], &at_up = gate_up[(2 * row + 1) * width + i];
    const float x = wide(at_gate), up = wide(at_up), of_a = wide(da[row * width + i]), s = sigmoid(x);
    narrow(of_a * up * (s * (1.0f + x * (1.0f - s))), at_gate);
    narrow(of_a * (x * s), at_up);
}

#define SWIGLU(name, Activation)                                                                           \
    KERNEL name(const Activation* gate_up, Activation* a, unsigned width) { gate(gate_up, a, width); }     \
    EXPORT(name)
SWIGLU(swiglu_f32, float)
SWIGLU(swiglu_bf16, __nv_bfloat16)

#define SWIGLU_BACKWARD(name, Activation)                                                                  \
    KERNEL name(const Activation* da, Activation* gate_up, unsigned width) {                               \
        gate_backward(da, gate_up, width);                                                                 \
    }                                                                                                      \
    EXPORT(name)
SWIGLU_BACKWARD(swiglu_backward_f32, float)
SWIGLU_BACKWARD(swiglu_backward_bf16, __nv_bfloat16)
