// What the kernels of the output layer's loss share: where logits lie, sums of their exponentials, folds over a block
// of threads. The formulas stand in model::ops::head.
#pragma once

#include "common.cuh"

#include <cfloat>
#include <climits>

namespace head {

// 2^x in one operation: at most 2^-22 of itself from it, and 0 where it would be below the smallest normal number (PTX,
// ex2.approx.ftz). The host's is as far off, one way or the other.
#ifdef __CUDACC__
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
inline float exp2_approx(float x) {
    const float off = std::bit_cast<uint32_t>(x) & 1 ? 0x1p-22f : -0x1p-22f, y = std::exp2(x);
    return y < FLT_MIN ? 0.0f : y * (1.0f + off);
}
#endif

// exp(x) and exp(x / T) as powers of 2, in two operations where expf has nine: reading the logits is then what takes
// the time. The product is rounded, so that a power is off by 2^-24 |x| of itself more. A sum of such powers, of x = z -
// max, is off by at most 2^-22 + 2^-24 Σ q_j |x_j| of itself, and Σ q_j |x_j| is at most ln V: below 10^-6 of 151,936
// classes, were all of them to err the same way.
struct Powers {
    float at_one, at_t;

    __device__ __forceinline__ explicit Powers(double temperature)
        : at_one(float(LOG2_E)), at_t(float(LOG2_E / temperature)) {}
    __device__ __forceinline__ float one(float x) const { return exp2_approx(x * at_one); }
    __device__ __forceinline__ float tempered(float x) const { return exp2_approx(x * at_t); }

  private:
    static constexpr double LOG2_E = 1.4426950408889634;
};

// Of a block that has a row of logits to itself.
constexpr unsigned THREADS = 256;

// Rows of `width` logits, a multiple of four, of the classes from `first` on. The columns past `columns` stand for no
// class: they pad the vocabulary.
struct Classes {
    unsigned first, columns, width;

    __device__ __forceinline__ bool has(unsigned id) const { return id - first < columns; }
};

// The tokens a signal lists: those of position s end at ends[s]. None where `ends` is null.
struct Listed {
    const unsigned *ends, *ids;

    __device__ __forceinline__ unsigned begin(unsigned position) const {
        return ends && position > 0 ? ends[position - 1] : 0;
    }
    __device__ __forceinline__ unsigned end(unsigned position) const { return ends ? ends[position] : 0; }
};

// Sums over logits x, relative to the largest of them, or to 0 where all are -inf.
struct Sums {
    // The largest, -inf where there is none; NaN does not count.
    double max;
    // Σ exp(x - max).
    double at_one;
    // Σ exp((x - max) / T): at least 1 unless all are -inf, NaN where one is NaN or +inf.
    double at_t;
};

__device__ __forceinline__ double point(double max) { return max == -INFINITY ? 0.0 : max; }

// The sums over both.
__device__ __forceinline__ Sums join(const Sums& a, const Sums& b, double temperature) {
    if (b.at_t == 0.0) return a;
    if (a.at_t == 0.0) return b;
    const double max = fmax(a.max, b.max);
    const double down_a = point(a.max) - point(max), down_b = point(b.max) - point(max);
    return {max, a.at_one * exp(down_a) + b.at_one * exp(down_b),
            a.at_t * exp(down_a / temperature) + b.at_t * exp(down_b / temperature)};
}

__device__ __forceinline__ double log_at_one(const Sums& sums) { return point(sums.max) + log(sums.at_one); }
__device__ __forceinline__ double log_at_t(const Sums& sums, double temperature) {
    return point(sums.max) / temperature + log(sums.at_t);
}

// What is known of a position whose teacher lists tokens, or is none: [positions, 4] float64.
struct Heard {
    // Over the tokens that are not listed.
    Sums others;
    // NaN until it was heard.
    double of_target;
};

// What one thread has heard of a row in float32: its sums are relative to `reference`, which stays behind the largest
// logit by no more than the slack: most moves of a running maximum would change no digit, and cost exponentials.
struct Ear {
    float reference = -FLT_MAX, at_one = 0.0f, at_t = 0.0f;
    float best = -INFINITY;
    // The column of the first four values that `best` is among.
    unsigned best_at = UINT_MAX;
};

// exp of what the reference may stay behind, at 1 and at T, is far from the largest float32.
__device__ __forceinline__ float slack_of(double temperature) { return 8.0f * fminf(float(temperature), 1.0f); }

__device__ __forceinline__ float largest_of(float4 x) { return fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)); }

// Four values of a row from column `at` on; -inf for those past the columns.
__device__ __forceinline__ float4 four(const float* row, unsigned at, unsigned columns) {
    if (at >= columns) return {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    float4 x = load4(row, at);
    if (at + 1 >= columns) x.y = -INFINITY;
    if (at + 2 >= columns) x.z = -INFINITY;
    if (at + 3 >= columns) x.w = -INFINITY;
    return x;
}

// Takes note of the largest of the four values at `at`; columns come in order.
__device__ __forceinline__ void note_best(Ear& ear, float largest, unsigned at) {
    if (largest > ear.best) {
        ear.best = largest;
        ear.best_at = at;
    }
}

// x folded over the threads of a block of whole warps, in all of them. `room` holds one for each warp and is free
// again behind it.
template <class T, class Fold>
__device__ __forceinline__ T block_fold(T x, T* room, Fold fold) {
    for (unsigned lane = WARP_LANES / 2; lane > 0; lane /= 2) x = fold(x, __shfl_xor_sync(ALL_LANES, x, lane));
    if (threadIdx.x % WARP_LANES == 0) room[threadIdx.x / WARP_LANES] = x;
    __syncthreads();
    T folded = room[0];
    for (unsigned warp = 1; warp < blockDim.x / WARP_LANES; warp++) folded = fold(folded, room[warp]);
    __syncthreads();
    return folded;
}

__device__ __forceinline__ float block_max(float x, double* room) {
    return block_fold(x, reinterpret_cast<float*>(room), [](float a, float b) { return fmaxf(a, b); });
}

// The lowest class of the row whose logit is `best`, the largest that any thread heard; UINT_MAX where there is none.
__device__ __forceinline__ unsigned class_of(const Ear& ear, float best, const float* row, const Classes& at,
                                             double* room) {
    unsigned id = UINT_MAX;
    if (ear.best == best && ear.best_at != UINT_MAX) {
        const float4 x = four(row, ear.best_at, at.columns);
        id = at.first + ear.best_at + (x.x == best ? 0 : x.y == best ? 1 : x.z == best ? 2 : 3);
    }
    return block_fold(id, reinterpret_cast<unsigned*>(room), [](unsigned a, unsigned b) { return a < b ? a : b; });
}

// The sums of all threads of a block, whose largest logit is `best`.
__device__ __forceinline__ Sums sums_of(const Ear& ear, float best, double temperature, double* room) {
    const double down = double(ear.reference) - point(best);
    const double at_one = block_sum(double(ear.at_one) * exp(down), room);
    return {best, at_one, temperature == 1.0 ? at_one : block_sum(double(ear.at_t) * exp(down / temperature), room)};
}

// Columns of the losses [columns, positions], float32.
enum Loss : unsigned { CE, KL, TEACHER_MASS, STUDENT_MASS, KL_REST, TEACHER_ENTROPY, TEACHER_CE };

}  // namespace head
