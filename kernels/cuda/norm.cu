// Root-mean-square norm of every row (arXiv 1910.07467), forward and backward.
#include "common.cuh"

// y = x · rstd · w with rstd = 1 / √(mean(x²) + eps): x [rows, width], w [width], y [rows, width], rstd [rows].
// A block a row; memory: a float for each warp.
template <class Activation>
__device__ __forceinline__ void norm_row(const float* x, const Activation* w, Activation* y, float* rstd,
                                         unsigned width, float eps) {
    BLOCK_MEMORY(float, room);
    const size_t row = size_t(blockIdx.x) * width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) squares += x[row + i] * x[row + i];
    const float scale = rsqrtf(block_sum(squares, room) / float(width) + eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        narrow(x[row + i] * scale * wide(w[i]), y[row + i]);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
}

// dx += rstd · (dy · w - x̂ · mean(dy · w · x̂)) with x̂ = x · rstd, and into shares [blocks, width] the sum of dy · x̂
// over this block's rows: every gridDim.x-th. Memory: a float for each warp, and one for each column.
template <class Activation>
__device__ __forceinline__ void norm_rows_backward(const Activation* dy, const float* x, const Activation* w,
                                                   const float* rstd, float* dx, float* shares, unsigned rows,
                                                   unsigned width) {
    BLOCK_MEMORY(float, room);
    float* dw = room + blockDim.x / WARP_LANES;
    // A column is one thread's throughout.
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) dw[i] = 0.0f;
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * width;
        const float scale = rstd[row];
        float product = 0.0f;
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
            product += wide(dy[start + i]) * wide(w[i]) * (x[start + i] * scale);
        const float mean = block_sum(product, room) / float(width);
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            const float normed = x[start + i] * scale, of_y = wide(dy[start + i]);
            dx[start + i] += scale * (of_y * wide(w[i]) - normed * mean);
            dw[i] += of_y * normed;
        }
    }
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        shares[size_t(blockIdx.x) * width + i] = dw[i];
}

// sum [width] += the columns first..first + width of shares [count, stride]. A block 32 columns, each warp every so
// many shares of them, whose sums are added warp after warp. Memory: a float for each thread.
KERNEL add_shares(const float* shares, float* sum, unsigned count, unsigned stride, unsigned first, unsigned width) {
    BLOCK_MEMORY(float, room);
    const unsigned warp = threadIdx.x / WARP_LANES, warps = blockDim.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    const unsigned column = blockIdx.x * WARP_LANES + lane;
    float total = 0.0f;
    if (column < width)
        for (unsigned share = warp; share < count; share += warps) total += shares[size_t(share) * stride + first + column];
    room[threadIdx.x] = total;
    __syncthreads();
    if (warp > 0 || column >= width) return;
    for (unsigned from = 1; from < warps; from++) total += room[from * WARP_LANES + lane];
    sum[column] += total;
}
EXPORT(add_shares)

#define NORM(name, Activation)                                                                             \
    KERNEL name(const float* x, const Activation* w, Activation* y, float* rstd, unsigned width,           \
                float eps) {                                                                               \
        norm_row(x, w, y, rstd, width, eps);                                                               \
    }                                                                                                      \
    EXPORT(name)
NORM(norm_f32, float)
NORM(norm_bf16, __nv_bfloat16)

#define NORM_BACKWARD(name, Activation)                                                                    \
    KERNEL name(const Activation* dy, const float* x, const Activation* w, const float* rstd, float* dx,   \
                float* shares, unsigned rows, unsigned width) {                                            \
        norm_rows_backward(dy, x, w, rstd, dx, shares, rows, width);                                       \
    }                                                                                                      \
    EXPORT(name)
NORM_BACKWARD(norm_backward_f32, float)
NORM_BACKWARD(norm_backward_bf16, __nv_bfloat16)
