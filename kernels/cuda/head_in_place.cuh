// A row of logits turned into its gradient where it lies, in float32 or, half as wide, in bfloat16.
#pragma once

#include "head.cuh"

namespace head {

// What f(value) makes of each of four.
template <class F>
__device__ __forceinline__ float4 each(float4 x, F f) {
    return {f(x.x), f(x.y), f(x.z), f(x.w)};
}

// What f makes of each of four and of the one beside it.
template <class F>
__device__ __forceinline__ float4 each(float4 x, float4 y, F f) {
    return {f(x.x, y.x), f(x.y, y.y), f(x.z, y.z), f(x.w, y.w)};
}

// The gradients of the four columns from `at` on: less `of_target` at the target, and 0 past the columns, where logits
// may be anything.
__device__ __forceinline__ float4 finished(float4 g, unsigned at, unsigned columns, unsigned target, float of_target) {
    if (target - at < 4) {
        if (target == at) g.x -= of_target;
        if (target == at + 1) g.y -= of_target;
        if (target == at + 2) g.z -= of_target;
        if (target == at + 3) g.w -= of_target;
    }
    if (at >= columns) g.x = 0.0f;
    if (at + 1 >= columns) g.y = 0.0f;
    if (at + 2 >= columns) g.z = 0.0f;
    if (at + 3 >= columns) g.w = 0.0f;
    return g;
}

// Writes turn(load(at), at) for the four columns from each `at` of a row of `width` float32 over it, as To: element j
// lies at j · sizeof(To) of the row. A row is one block's. Of To half as wide, what is written lies over the first half
// of what was read so far, which all threads must have read.
template <unsigned LOADS, class To, class Load, class Turn>
__device__ __forceinline__ void in_place(float* row, unsigned width, Load load, Turn turn) {
    static_assert(2 * sizeof(To) == sizeof(float) || sizeof(To) == sizeof(float));
    To* to = reinterpret_cast<To*>(row);
    const unsigned stride = 4 * blockDim.x;
    unsigned read_by_all = 0;
    for (unsigned start = 0; start < width; start += LOADS * stride) {
        decltype(load(0u)) x[LOADS] = {};
        UNROLL for (unsigned number = 0; number < LOADS; number++) {
            const unsigned at = start + number * stride + 4 * threadIdx.x;
            if (at < width) x[number] = load(at);
        }
        const unsigned end = start + LOADS * stride;
        if (sizeof(To) < sizeof(float) && end > 2 * read_by_all) {
            __syncthreads();
            read_by_all = end;
        }
        UNROLL for (unsigned number = 0; number < LOADS; number++) {
            const unsigned at = start + number * stride + 4 * threadIdx.x;
            if (at < width) store4(to, at, turn(x[number], at));
        }
    }
}

}  // namespace head
