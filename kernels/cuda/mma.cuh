// Words of PTX that CUDA has no plain ones for: products on tensor cores, their operands, and copies that run beside
// them (sm_80 and newer). How fragments lie over a warp's lanes is said in emulate_mma.h.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__

// An address in the block's memory as PTX wants it.
__device__ __forceinline__ unsigned block_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// d [16, 8] += a [16, 16] · b [16, 8], of bfloat16, summed in float32.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices from the block's memory; lane i gives where row i % 8 of matrix i / 8 begins, a multiple of 16
// bytes.
__device__ __forceinline__ void ldmatrix(unsigned (&to)[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(block_address(row))
                 : "memory");
}
// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_trans(unsigned (&to)[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(block_address(row))
                 : "memory");
}

// A copy of 16 or 4 bytes to the block's memory, of zeros where nothing is there. It belongs to the group that the
// thread closes next, is there for the thread once it has waited for it, and for the others behind a barrier.
template <unsigned BYTES>
__device__ __forceinline__ void cp_async(void* to, const void* from, bool there) {
    static_assert(BYTES == 16 || BYTES == 4);
    const unsigned bytes = there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(block_address(to)), "l"(from),
                     "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(block_address(to)), "l"(from), "r"(bytes)
                     : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all of this thread's groups but so many of the last.
template <unsigned LEFT>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Two values rounded to bfloat16, the first in the lower half.
__device__ __forceinline__ unsigned pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}
// 4, 8 or 16 bytes from one place to another, both at multiples of their size.
template <unsigned BYTES>
__device__ __forceinline__ void copy_words(void* to, const void* from) {
    static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4);
    if constexpr (BYTES == 16)
        *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
    else if constexpr (BYTES == 8)
        *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
    else
        *static_cast<unsigned*>(to) = *static_cast<const unsigned*>(from);
}
// 2^x to two units in the last place; 0 where that is below 2^-126.
__device__ __forceinline__ float exp2_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include "emulate_mma.h"
#endif
