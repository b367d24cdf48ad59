// Biases of projections, and their gradients.
#include "common.cuh"

// x [rows, width] += b [width]. A row of x a block along x, its columns along y.
template <class Activation>
__device__ __forceinline__ void add_to_rows(Activation* x, const Activation* b, unsigned width) {
    const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    Activation& at = x[size_t(blockIdx.x) * width + i];
    narrow(wide(at) + wide(b[i]), at);
}

// Into shares [gridDim.x, width] the sums of dy's columns over the rows of a share: every gridDim.x-th.
template <class Activation>
__device__ __forceinline__ void sum_rows(const Activation* dy, float* shares, unsigned rows, unsigned width) {
    const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    float sum = 0.0f;
    for (size_t row = blockIdx.x; row < rows; row += gridDim.x) sum += wide(dy[row * width + i]);
    shares[size_t(blockIdx.x) * width + i] = sum;
}

#define BIAS(forward, backward, Activation)                                                                \
    KERNEL forward(Activation* x, const Activation* b, unsigned width) { add_to_rows(x, b, width); }       \
    EXPORT(forward)                                                                                        \
    KERNEL backward(const Activation* dy, float* shares, unsigned rows, unsigned width) {                  \
        sum_rows(dy, shares, rows, width);                                                                 \
    }                                                                                                      \
    EXPORT(backward)
BIAS(add_bias_f32, bias_shares_f32, float)
BIAS(add_bias_bf16, bias_shares_bf16, __nv_bfloat16)
