// Kernels around tensor cores and copies that arrive later, sound ones and ones with errors in them: what the emulation
// of `mma.cuh` is tested with.
#include "mma.cuh"

// x [2, 16, 16]: a and b; y [16, 16] = a · b, the operands put together element by element as PTX ISA counts them
// ("Matrix Fragments for mma.m16n8k16 with floating point type"). Element i of a lies in row lane / 4, 8 further for i =
// 2, 3, 6, 7, at k = 2 (lane % 4) + i % 2, 8 further for i > 3; of b at k = 2 (lane % 4) + i % 2, 8 further for i > 1, in
// column lane / 4; of d in row lane / 4, 8 further for i > 1, in column 2 (lane % 4) + i % 2. `swapped`: with a's second
// and third register exchanged.
__device__ __forceinline__ void product_of_elements(const float* x, float* y, bool swapped) {
    const float *a = x, *b = x + 256;
    const unsigned row = threadIdx.x >> 2, two = (threadIdx.x & 3) << 1;
    float of_a[8], of_b[4];
    for (unsigned i = 0; i < 8; i++) {
        const unsigned down = i % 4 > 1 ? 8 : 0, right = i > 3 ? 8 : 0;
        of_a[i] = a[(row + down) * 16 + two + (i & 1) + right];
    }
    unsigned regs[4];
    for (unsigned i = 0; i < 4; i++) regs[i] = pack(of_a[2 * i], of_a[2 * i + 1]);
    if (swapped) std::swap(regs[1], regs[2]);
    for (unsigned first = 0; first < 16; first += 8) {
        for (unsigned i = 0; i < 4; i++) of_b[i] = b[(two + (i & 1) + (i > 1 ? 8 : 0)) * 16 + first + row];
        float d[4] = {};
        mma(d, regs, pack(of_b[0], of_b[1]), pack(of_b[2], of_b[3]));
        for (unsigned i = 0; i < 4; i++) y[(row + (i > 1 ? 8 : 0)) * 16 + first + two + (i & 1)] = d[i];
    }
}
KERNEL planted_mma(const float* x, float* y) { product_of_elements(x, y, false); }
EXPORT(planted_mma)
KERNEL planted_mma_swapped(const float* x, float* y) { product_of_elements(x, y, true); }
EXPORT(planted_mma_swapped)

// The same product of rows in the block's memory, b as it lies (its rows are k) or turned first; `off` elements beyond
// where rows begin.
__device__ __forceinline__ void product_of_rows(const float* x, float* y, bool turned, unsigned off) {
    BLOCK_MEMORY(__nv_bfloat16, room);
    const unsigned lane = threadIdx.x;
    for (unsigned i = lane; i < 512; i += WARP_LANES) {
        const unsigned row = i / 16 % 16, column = i % 16;
        narrow(i < 256 || !turned ? x[i] : x[256 + column * 16 + row], room[i]);
    }
    __syncwarp();
    unsigned a[4], b[4];
    ldmatrix(a, room + lane % 16 * 16 + lane / 16 * 8 + off);
    if (turned)
        ldmatrix(b, room + 256 + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
    else
        ldmatrix_trans(b, room + 256 + lane % 16 * 16 + lane / 16 * 8);
    for (unsigned half = 0; half < 2; half++) {
        float d[4] = {};
        mma(d, a, b[2 * half], b[2 * half + 1]);
        for (unsigned i = 0; i < 4; i++) y[(lane / 4 + i / 2 * 8) * 16 + 8 * half + lane % 4 * 2 + i % 2] = d[i];
    }
}
KERNEL planted_ldmatrix(const float* x, float* y) { product_of_rows(x, y, true, 0); }
EXPORT(planted_ldmatrix)
KERNEL planted_ldmatrix_trans(const float* x, float* y) { product_of_rows(x, y, false, 0); }
EXPORT(planted_ldmatrix_trans)
KERNEL planted_ldmatrix_off(const float* x, float* y) { product_of_rows(x, y, true, 2); }
EXPORT(planted_ldmatrix_off)

// A row that does not lie in the block's memory.
KERNEL planted_ldmatrix_elsewhere(const float* x, float* y) {
    unsigned a[4];
    ldmatrix(a, reinterpret_cast<const __nv_bfloat16*>(x));
    y[threadIdx.x] = __uint_as_float(a[0]);
}
EXPORT(planted_ldmatrix_elsewhere)

// A product that some lanes never come to.
KERNEL planted_mma_lanes_missing(const float* x, float* y) {
    if (threadIdx.x % WARP_LANES == 5) return;
    product_of_elements(x, y, false);
}
EXPORT(planted_mma_lanes_missing)

// Two values a thread to the block's memory, in two groups; then those of the thread behind. `left` groups are not
// waited for, and there is a barrier or not.
template <unsigned LEFT>
__device__ __forceinline__ void copied(const float* x, float* y, bool barrier) {
    BLOCK_MEMORY(float, room);
    for (unsigned group = 0; group < 2; group++) {
        const unsigned at = group * blockDim.x + threadIdx.x;
        cp_async<4>(room + at, x + at, true);
        cp_async_commit();
    }
    cp_async_wait<LEFT>();
    if (barrier) __syncthreads();
    for (unsigned group = 0; group < 2; group++) {
        const unsigned at = group * blockDim.x;
        y[at + threadIdx.x] = room[at + (threadIdx.x + 1) % blockDim.x];
    }
}
KERNEL planted_copies(const float* x, float* y) { copied<0>(x, y, true); }
EXPORT(planted_copies)
KERNEL planted_copies_no_wait(const float* x, float* y) { copied<2>(x, y, true); }
EXPORT(planted_copies_no_wait)
KERNEL planted_copies_one_wait(const float* x, float* y) { copied<1>(x, y, true); }
EXPORT(planted_copies_one_wait)
KERNEL planted_copies_no_barrier(const float* x, float* y) { copied<0>(x, y, false); }
EXPORT(planted_copies_no_barrier)

// A copy to where others still read: it may arrive at once.
KERNEL planted_copies_too_early(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    room[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = room[(threadIdx.x + 1) % blockDim.x];
    cp_async<4>(room + threadIdx.x, x + blockDim.x + threadIdx.x, true);
    cp_async_commit();
    __syncthreads();
    cp_async_wait<0>();
    y[blockDim.x + threadIdx.x] = room[threadIdx.x];
}
EXPORT(planted_copies_too_early)

// Sixteen bytes to a place that is no multiple of sixteen.
KERNEL planted_copies_off(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    cp_async<16>(room + threadIdx.x, x, true);
    y[threadIdx.x] = 0.0f;
}
EXPORT(planted_copies_off)
