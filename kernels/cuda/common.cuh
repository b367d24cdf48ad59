// The words all kernels use: CUDA's where nvcc reads them, the host's where a test does.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cstdint>
#define KERNEL extern "C" __global__ void
#define EXPORT(name)
extern __shared__ __align__(128) unsigned char block_memory[];
#define BLOCK_MEMORY(type, name) type* name = reinterpret_cast<type*>(block_memory)
#define UNROLL _Pragma("unroll")
#else
#include "emulate.h"
#define UNROLL
#endif

constexpr unsigned WARP_LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

// Values of any stored type as float32, and back.
__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// Four values that begin at a multiple of four of an array whose start is a multiple of 16 bytes, and two that begin at a
// multiple of two.
#ifdef __CUDACC__
__device__ __forceinline__ float4 load4(const float* from, size_t at) {
    return *reinterpret_cast<const float4*>(from + at);
}
__device__ __forceinline__ float4 load4(const __nv_bfloat16* from, size_t at) {
    const uint2 two = *reinterpret_cast<const uint2*>(from + at);
    return {__uint_as_float(two.x << 16), __uint_as_float(two.x & 0xffff0000), __uint_as_float(two.y << 16),
            __uint_as_float(two.y & 0xffff0000)};
}
__device__ __forceinline__ void store4(float* to, size_t at, float4 x) { *reinterpret_cast<float4*>(to + at) = x; }
__device__ __forceinline__ void store4(__nv_bfloat16* to, size_t at, float4 x) {
    __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
    *reinterpret_cast<uint2*>(to + at) = *reinterpret_cast<const uint2*>(pairs);
}
__device__ __forceinline__ float2 load2(const float* from, size_t at) {
    return *reinterpret_cast<const float2*>(from + at);
}
__device__ __forceinline__ float2 load2(const __nv_bfloat16* from, size_t at) {
    const unsigned two = *reinterpret_cast<const unsigned*>(from + at);
    return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000)};
}
__device__ __forceinline__ void store2(float* to, size_t at, float2 x) { *reinterpret_cast<float2*>(to + at) = x; }
__device__ __forceinline__ void store2(__nv_bfloat16* to, size_t at, float2 x) {
    *reinterpret_cast<__nv_bfloat162*>(to + at) = __floats2bfloat162_rn(x.x, x.y);
}
#else
template <class T>
float4 load4(const T* from, size_t at) {
    EMULATED_CHECK(at % 4 == 0, "four values are read together at a place that is no multiple of four");
    return {wide(from[at]), wide(from[at + 1]), wide(from[at + 2]), wide(from[at + 3])};
}
template <class T>
void store4(T* to, size_t at, float4 x) {
    EMULATED_CHECK(at % 4 == 0, "four values are written together at a place that is no multiple of four");
    narrow(x.x, to[at]);
    narrow(x.y, to[at + 1]);
    narrow(x.z, to[at + 2]);
    narrow(x.w, to[at + 3]);
}
template <class T>
float2 load2(const T* from, size_t at) {
    EMULATED_CHECK(at % 2 == 0, "two values are read together at a place that is no multiple of two");
    return {wide(from[at]), wide(from[at + 1])};
}
template <class T>
void store2(T* to, size_t at, float2 x) {
    EMULATED_CHECK(at % 2 == 0, "two values are written together at a place that is no multiple of two");
    narrow(x.x, to[at]);
    narrow(x.y, to[at + 1]);
}
#endif

// Four columns from `at` on, a multiple of four, of the row of `width` that begins at `start`; 0 past its end. Together
// where rows begin at multiples of four: with an access for each column it is instructions that kernels of rows wait for.
template <class T>
__device__ __forceinline__ float4 read4(const T* from, size_t start, unsigned at, unsigned width) {
    if (width % 4 == 0) return load4(from, start + at);
    auto one = [=](unsigned column) { return column < width ? wide(from[start + column]) : 0.0f; };
    return {one(at), one(at + 1), one(at + 2), one(at + 3)};
}
template <class T>
__device__ __forceinline__ void write4(T* to, size_t start, unsigned at, unsigned width, float4 x) {
    if (width % 4 == 0) return store4(to, start + at, x);
    narrow(x.x, to[start + at]);
    if (at + 1 < width) narrow(x.y, to[start + at + 1]);
    if (at + 2 < width) narrow(x.z, to[start + at + 2]);
    if (at + 3 < width) narrow(x.w, to[start + at + 3]);
}

// The sum over the lanes of a warp, in all of them; the tree is the same for every launch.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
    for (unsigned lane = WARP_LANES / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

// The sum over the threads of a block of whole warps, in all of them. `room` holds one for each warp and is free again
// behind it.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* room) {
    x = warp_sum(x);
    if (threadIdx.x % WARP_LANES == 0) room[threadIdx.x / WARP_LANES] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / WARP_LANES; warp++) sum += room[warp];
    __syncthreads();
    return sum;
}
