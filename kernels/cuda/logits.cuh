// A row of logits [rows, width] float32, width a multiple of four, of which the first `classes` columns take part: how
// a block reads it, which of its numbers is larger, the sums of its exponentials, and what is said of it with them.
#pragma once
#include "common.cuh"

// No token, no class.
constexpr unsigned NOBODY = 0xffffffff;
// Values that a thread has read before it looks at them: four times four, so that enough are on their way.
constexpr unsigned TILE = 16;

// What has no share in a maximum nor in a sum of exponentials: -inf.
__device__ __forceinline__ float left_out() { return __uint_as_float(0xff800000); }

struct Row {
    const float* logits;
    size_t start;
    unsigned classes;

    __device__ __forceinline__ float at(unsigned id) const { return logits[start + id]; }
};

// The row of this block.
__device__ __forceinline__ Row row_of_block(const float* logits, unsigned classes, unsigned width) {
    return {logits, size_t(blockIdx.x) * width, classes};
}

// The class of value i of a tile.
__device__ __forceinline__ unsigned class_at(unsigned first, unsigned stride, unsigned i) {
    return first + i / 4 * stride + i % 4;
}

// Four classes from `first` on, four from first + stride on, and so on; -inf where there is no class.
__device__ __forceinline__ void read_tile(const Row& row, unsigned first, unsigned stride, float (&z)[TILE]) {
    const float none = left_out();
    UNROLL for (unsigned four = 0; four < TILE / 4; four++) {
        const unsigned at = first + four * stride;
        const float4 x = at < row.classes ? load4(row.logits, row.start + at) : float4{none, none, none, none};
        z[4 * four] = x.x;
        z[4 * four + 1] = x.y;
        z[4 * four + 2] = x.z;
        z[4 * four + 3] = x.w;
    }
    if (class_at(first, stride, TILE - 1) < row.classes) return;
    UNROLL for (unsigned i = 0; i < TILE; i++)
        if (class_at(first, stride, i) >= row.classes) z[i] = none;
}

// Calls `body(first, stride)` for every tile of a row that is this thread's: the threads of a block side by side.
template <class Body>
__device__ __forceinline__ void each_tile(const Row& row, Body body) {
    const unsigned stride = 4 * blockDim.x;
    for (unsigned first = 4 * threadIdx.x; first < row.classes; first += TILE / 4 * stride) body(first, stride);
}

// An integer in the order of the logits, -0 below +0 (the map of Rust's f32::total_cmp), and back.
__device__ __forceinline__ unsigned order_key(float z) {
    const unsigned bits = __float_as_uint(z);
    return bits ^ (unsigned(int(bits) >> 31) | 0x80000000);
}
__device__ __forceinline__ float of_key(unsigned key) {
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000 : 0xffffffff));
}

template <unsigned COUNT>
__device__ __forceinline__ float largest_of(const float (&z)[COUNT]) {
    float largest = z[0];
    UNROLL for (unsigned i = 1; i < COUNT; i++) largest = fmaxf(largest, z[i]);
    return largest;
}

// Bits of |z|: in the order of the sizes, those of what is infinite or NaN behind all others.
__device__ __forceinline__ unsigned size_bits(float z) { return __float_as_uint(z) & 0x7fffffff; }
constexpr unsigned INFINITE = 0x7f800000;

// Where the logit of a class of this tile is NaN or infinite, and the class comes before `broken`, it is that one.
__device__ __forceinline__ void note_broken(const Row& row, unsigned first, unsigned stride, const float (&z)[TILE],
                                            unsigned& broken) {
    unsigned largest = 0;
    UNROLL for (unsigned i = 0; i < TILE; i++) largest = size_bits(z[i]) > largest ? size_bits(z[i]) : largest;
    if (largest < INFINITE) return;
    UNROLL for (unsigned i = 0; i < TILE; i++) {
        const unsigned id = class_at(first, stride, i);
        if (size_bits(z[i]) >= INFINITE && id < row.classes && id < broken) broken = id;
    }
}

// The largest over the lanes of a warp, in all of them.
template <class T>
__device__ __forceinline__ T warp_largest(T x) {
    for (unsigned lane = WARP_LANES / 2; lane > 0; lane /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, x, lane);
        if (other > x) x = other;
    }
    return x;
}

// The largest over the threads of a block of whole warps, in all of them; `room` as block_sum's.
template <class T>
__device__ __forceinline__ T block_largest(T x, T* room) {
    x = warp_largest(x);
    if (threadIdx.x % WARP_LANES == 0) room[threadIdx.x / WARP_LANES] = x;
    __syncthreads();
    for (unsigned warp = 0; warp < blockDim.x / WARP_LANES; warp++)
        if (room[warp] > x) x = room[warp];
    __syncthreads();
    return x;
}

// The sum over the lanes up to this one; the tree is the same for every launch.
template <class T>
__device__ __forceinline__ T warp_running_sum(T x) {
    for (unsigned by = 1; by < WARP_LANES; by *= 2) {
        const T lower = __shfl_up_sync(ALL_LANES, x, by);
        if (threadIdx.x % WARP_LANES >= by) x += lower;
    }
    return x;
}

// The temperature: logits are divided by it. Where it is 1 one exponential serves for both sums.
struct Temperature {
    double t;
    float inverse;

    __device__ __forceinline__ explicit Temperature(double t) : t(t), inverse(float(1.0 / t)) {}
    __device__ __forceinline__ bool is_one() const { return inverse == 1.0f; }
};

// Sums over logits z relative to the largest of them, or what was taken for it and is no larger: Σ exp(z - largest) and
// Σ exp((z - largest) / T), the latter left 0 where T is 1. Exponentials are float32, of four of them a sum is double.
struct ExpSums {
    float largest;
    double at_one, at_t;

    template <unsigned COUNT>
    __device__ __forceinline__ void add(const float (&z)[COUNT], const Temperature& temperature) {
        const float top = largest_of(z);
        if (top == left_out()) return;
        if (top > largest) {
            const float far = largest - top;
            at_one *= double(expf(far));
            at_t *= double(expf(far * temperature.inverse));
            largest = top;
        }
        float one = 0.0f, tempered = 0.0f;
        UNROLL for (unsigned i = 0; i < COUNT; i++) {
            one += expf(z[i] - largest);
            if (!temperature.is_one()) tempered += expf((z[i] - largest) * temperature.inverse);
            if (i % 4 < 3 && i + 1 < COUNT) continue;
            at_one += double(one);
            at_t += double(tempered);
            one = tempered = 0.0f;
        }
    }
};

// The sums over no logits.
__device__ __forceinline__ ExpSums no_sums() { return {left_out(), 0.0, 0.0}; }

// log Σ exp(z) and log Σ exp(z / T); -inf of nothing.
struct LogSums {
    double at_one, at_t;
};

// Of the sums of all threads of the block, in all of them.
__device__ __forceinline__ LogSums block_log_sums(const ExpSums& sums, const Temperature& temperature,
                                                  double* room) {
    const float largest = block_largest(sums.largest, reinterpret_cast<float*>(room));
    if (largest == left_out()) return {double(largest), double(largest)};
    const double far = double(sums.largest) - double(largest);
    const double at_one = log(block_sum(sums.at_one * exp(far), room));
    if (temperature.is_one()) return {double(largest) + at_one, double(largest) + at_one};
    const double at_t = log(block_sum(sums.at_t * exp(far / temperature.t), room));
    return {double(largest) + at_one, double(largest) / temperature.t + at_t};
}

// log(exp(a) + exp(b)) where one of them at least is finite.
__device__ __forceinline__ double log_of_both(double a, double b) {
    return fmax(a, b) + log1p(exp(fmin(a, b) - fmax(a, b)));
}

// A logarithm of a probability: at most 0, and finite but of nothing at all.
__device__ __forceinline__ float as_log(double log_p) {
    if (log_p == double(left_out())) return left_out();
    return float(fmax(fmin(log_p, 0.0), -3.4028234663852886e38));
}

// What is said of the rows with their sums: `sums` [4, rows] float32, row after row log_z at T, the log of the mass at T
// outside the k, and the log-probabilities at 1 and at T of the token that follows, NaN where none does; `broken`
// [rows, 2]: the first class whose logit is NaN or infinite, and the bits of that logit. Nobody has such in a sound row.
struct Said {
    float* sums;
    unsigned* broken;

    __device__ __forceinline__ void write(const float (&of_row)[4]) const {
        for (unsigned i = 0; i < 4; i++) sums[size_t(i) * gridDim.x + blockIdx.x] = of_row[i];
    }

    // Whether the row is broken, which is then all that is said of it; `first` is this thread's first such class.
    __device__ __forceinline__ bool refuse(const Row& row, unsigned first, double* room) const {
        // The lowest of all: the largest of their complements.
        first = ~block_largest(~first, reinterpret_cast<unsigned*>(room));
        const bool refused = first != NOBODY;
        if (threadIdx.x != 0) return refused;
        broken[2 * size_t(blockIdx.x)] = first;
        broken[2 * size_t(blockIdx.x) + 1] = refused ? __float_as_uint(row.at(first)) : 0;
        const float nan = __uint_as_float(0x7fc00000);
        if (refused) write({nan, nan, nan, nan});
        return refused;
    }

    // Writes the sums of a row of which the k and the others have these, and gives log_z. `next` [rows].
    __device__ __forceinline__ double tell(const Row& row, const LogSums& kept, const LogSums& others,
                                           const unsigned* next, const Temperature& temperature) const {
        const double log_z = log_of_both(kept.at_t, others.at_t);
        if (threadIdx.x != 0) return log_z;
        const unsigned follows = next[blockIdx.x];
        float logprob = __uint_as_float(0x7fc00000), logprob_t = logprob;
        if (follows != NOBODY) {
            const double z = double(row.at(follows));
            logprob = float(z - log_of_both(kept.at_one, others.at_one));
            logprob_t = float(z / temperature.t - log_z);
        }
        write({float(log_z), as_log(others.at_t - log_z), logprob, logprob_t});
        return log_z;
    }
};

// Marks [classes] of a row, a bit each, in the memory of the block.
struct Marks {
    unsigned* words;

    // Of no class. Barriers behind it and behind `set` are the caller's.
    __device__ __forceinline__ void clear(unsigned classes) const {
        for (unsigned i = threadIdx.x; i < (classes + 31) / 32; i += blockDim.x) words[i] = 0;
    }
    // Of the classes `ids` [k] too.
    __device__ __forceinline__ void set(const unsigned* ids, unsigned k) const {
        for (unsigned i = threadIdx.x; i < k; i += blockDim.x) atomicOr(&words[ids[i] / 32], 1u << ids[i] % 32);
    }

    __device__ __forceinline__ bool has(unsigned id) const { return words[id / 32] >> id % 32 & 1; }

    // Leaves the marked classes out of a tile.
    __device__ __forceinline__ void leave_out(const Row& row, unsigned first, unsigned stride,
                                              float (&z)[TILE]) const {
        UNROLL for (unsigned four = 0; four < TILE / 4; four++) {
            const unsigned at = first + four * stride;
            if (at >= row.classes) continue;
            const unsigned marked = words[at / 32] >> at % 32;
            UNROLL for (unsigned i = 0; i < 4; i++)
                if (marked >> i & 1) z[4 * four + i] = left_out();
        }
    }
};
