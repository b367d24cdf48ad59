// Biases of projections, and their gradients.
#include "common.cuh"

// x [rows, width] += b [width]. A row of x a block along x, its columns along y.
template <class To, class Weight>
__device__ __forceinline__ void add_to_rows(To* x, const Weight* b, unsigned width) {
    const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    To& at = x[size_t(blockIdx.x) * width + i];
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

#define ADD_BIAS(name, To, Weight)                                                                         \
    KERNEL name(To* x, const Weight* b, unsigned width) { add_to_rows(x, b, width); }                      \
    EXPORT(name)
ADD_BIAS(add_bias_f32, float, float)
ADD_BIAS(add_bias_bf16, __nv_bfloat16, __nv_bfloat16)
ADD_BIAS(add_bias_bf16_to_f32, float, __nv_bfloat16)

#define BIAS_SHARES(name, Activation)                                                                      \
    KERNEL name(const Activation* dy, float* shares, unsigned rows, unsigned width) {                      \
        sum_rows(dy, shares, rows, width);                                                                 \
    }                                                                                                      \
    EXPORT(name)
BIAS_SHARES(bias_shares_f32, float)
BIAS_SHARES(bias_shares_bf16, __nv_bfloat16)
