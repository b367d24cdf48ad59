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
    for (unsigned at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) {
        const float4 of_x = read4(x, row, at, width);
        squares += (of_x.x * of_x.x + of_x.y * of_x.y) + (of_x.z * of_x.z + of_x.w * of_x.w);
    }
    const float scale = rsqrtf(block_sum(squares, room) / float(width) + eps);
    for (unsigned at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) {
        const float4 of_x = read4(x, row, at, width), of_w = read4(w, 0, at, width);
        write4(y, row, at, width, {of_x.x * scale * of_w.x, of_x.y * scale * of_w.y, of_x.z * scale * of_w.z,
                                   of_x.w * scale * of_w.w});
    }
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
}

// What one column adds to the gradients of x and w, `normed` its x̂.
__device__ __forceinline__ void add_gradients(float& dx, float& dw, float dy, float w, float normed, float scale,
                                              float mean) {
    dx += scale * (dy * w - normed * mean);
    dw += dy * normed;
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
    for (unsigned at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x)
        write4(dw, 0, at, width, {0.0f, 0.0f, 0.0f, 0.0f});
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const size_t start = size_t(row) * width;
        const float scale = rstd[row];
        float product = 0.0f;
        for (unsigned at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) {
            const float4 of_y = read4(dy, start, at, width), of_w = read4(w, 0, at, width);
            const float4 of_x = read4(x, start, at, width);
            product += (of_y.x * of_w.x * (of_x.x * scale) + of_y.y * of_w.y * (of_x.y * scale))
                + (of_y.z * of_w.z * (of_x.z * scale) + of_y.w * of_w.w * (of_x.w * scale));
        }
        const float mean = block_sum(product, room) / float(width);
        for (unsigned at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) {
            const float4 of_y = read4(dy, start, at, width), of_w = read4(w, 0, at, width);
            const float4 of_x = read4(x, start, at, width);
            float4 to_x = read4(dx, start, at, width), to_w = read4(dw, 0, at, width);
            add_gradients(to_x.x, to_w.x, of_y.x, of_w.x, of_x.x * scale, scale, mean);
            add_gradients(to_x.y, to_w.y, of_y.y, of_w.y, of_x.y * scale, scale, mean);
            add_gradients(to_x.z, to_w.z, of_y.z, of_w.z, of_x.z * scale, scale, mean);
            add_gradients(to_x.w, to_w.w, of_y.w, of_w.w, of_x.w * scale, scale, mean);
            write4(dx, start, at, width, to_x);
            write4(dw, 0, at, width, to_w);
        }
    }
    for (unsigned at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x)
        write4(shares, size_t(blockIdx.x) * width, at, width, read4(dw, 0, at, width));
}

// Shares that a thread has read before it adds the first.
constexpr unsigned SHARES_AT_ONCE = 8;

// sum [width] += the columns first..first + width of shares [count, stride]. A block 32 columns, each warp every so
// many shares of them, whose sums are added warp after warp. Memory: a float for each thread.
KERNEL add_shares(const float* shares, float* sum, unsigned count, unsigned stride, unsigned first, unsigned width) {
    BLOCK_MEMORY(float, room);
    const unsigned warp = threadIdx.x / WARP_LANES, warps = blockDim.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    const unsigned column = blockIdx.x * WARP_LANES + lane;
    float total = 0.0f;
    const float* from = shares + first + column;
    if (column < width)
        for (unsigned share = warp; share < count; share += SHARES_AT_ONCE * warps) {
            float x[SHARES_AT_ONCE];
            UNROLL for (unsigned i = 0; i < SHARES_AT_ONCE; i++) {
                const unsigned at = share + i * warps;
                x[i] = at < count ? from[size_t(at) * stride] : 0.0f;
            }
            UNROLL for (unsigned i = 0; i < SHARES_AT_ONCE; i++) total += x[i];
        }
    room[threadIdx.x] = total;
    __syncthreads();
    if (warp > 0 || column >= width) return;
    for (unsigned other = 1; other < warps; other++) total += room[other * WARP_LANES + lane];
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
