// Kernels with errors in them: what the emulation is tested with.
#include "common.cuh"

// Backwards through the block's memory, with no barrier before it is read.
KERNEL planted_no_barrier(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    room[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}
EXPORT(planted_no_barrier)

// The same with it: nothing is wrong.
KERNEL planted_nothing(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    room[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}
EXPORT(planted_nothing)

// The memory is used again before all have read it.
KERNEL planted_used_again(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    for (unsigned round = 0; round < 2; round++) {
        room[threadIdx.x] = x[threadIdx.x] + float(round);
        __syncthreads();
        y[round * blockDim.x + threadIdx.x] = room[(threadIdx.x + 1) % blockDim.x];
    }
}
EXPORT(planted_used_again)

// A sum of the block, twice, whose room is used again before every warp has read it: warps are together at their own
// shuffles in between.
KERNEL planted_one_barrier_of_two(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    for (unsigned round = 0; round < 2; round++) {
        const float of_warp = warp_sum(x[threadIdx.x] + float(round));
        if (threadIdx.x % WARP_LANES == 0) room[threadIdx.x / WARP_LANES] = of_warp;
        __syncthreads();
        float sum = 0.0f;
        for (unsigned warp = 0; warp < blockDim.x / WARP_LANES; warp++) sum += room[warp];
        y[round * blockDim.x + threadIdx.x] = sum;
    }
}
EXPORT(planted_one_barrier_of_two)

// One element too far: read, written, and in the block's memory.
KERNEL planted_reads_beyond(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
EXPORT(planted_reads_beyond)
KERNEL planted_writes_beyond(const float* x, float* y) { y[threadIdx.x + 1] = x[threadIdx.x]; }
EXPORT(planted_writes_beyond)
KERNEL planted_block_beyond(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    room[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = room[threadIdx.x + 1];
}
EXPORT(planted_block_beyond)

// What is only read, written to.
KERNEL planted_writes_input(const float* x, float* y) { const_cast<float*>(x)[threadIdx.x] = y[threadIdx.x]; }
EXPORT(planted_writes_input)

// A barrier that only half of the threads come to, while the others stand at another.
KERNEL planted_barriers_apart(const float* x, float* y) {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
    } else {
        y[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
    }
}
EXPORT(planted_barriers_apart)

// A warp's sum that some of its lanes never come to.
KERNEL planted_lanes_missing(const float* x, float* y) {
    if (threadIdx.x % WARP_LANES >= 20) return;
    y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
EXPORT(planted_lanes_missing)

// A sum over half of the lanes only.
KERNEL planted_half_a_sum(const float* x, float* y) {
    float sum = x[threadIdx.x];
    for (unsigned lane = WARP_LANES / 4; lane > 0; lane /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lane);
    y[threadIdx.x] = sum;
}
EXPORT(planted_half_a_sum)

// The block's memory read before anybody has written to it.
KERNEL planted_never_written(const float* x, float* y) {
    BLOCK_MEMORY(float, room);
    y[threadIdx.x] = x[threadIdx.x] + room[threadIdx.x];
}
EXPORT(planted_never_written)

// Blocks that add to one number without waiting for each other: right here, in another order other bits.
KERNEL planted_sum_in_any_order(const float* x, float* y) { atomicAdd(y, x[blockIdx.x * blockDim.x + threadIdx.x]); }
EXPORT(planted_sum_in_any_order)

// Values in slots that a counter gives out: every value is there, in the order in which the threads came.
KERNEL planted_slots_in_any_order(const float* x, float* y) {
    BLOCK_MEMORY(unsigned, count);
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    y[atomicAdd(count, 1u)] = x[threadIdx.x];
}
EXPORT(planted_slots_in_any_order)

// A running sum over a warp in which the lowest lanes, with none below them, add their own once more.
KERNEL planted_running_sum(const float* x, float* y) {
    float sum = x[threadIdx.x];
    for (unsigned by = 1; by < WARP_LANES; by *= 2) sum += __shfl_up_sync(ALL_LANES, sum, by);
    y[threadIdx.x] = sum;
}
EXPORT(planted_running_sum)
