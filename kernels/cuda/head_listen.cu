// What a position's logits tell of the output layer's loss, in one pass over a block of classes: sums of exponentials
// at 1 and at T of all tokens but those a signal lists, whose logits are taken out first. What is summed is then the
// mass of all others, with a scale of its own.
#include "head.cuh"

namespace head {

// Groups of four values that a thread reads before it works on the first: what hides the way to memory.
constexpr unsigned LISTEN_LOADS = 4;

// The listed tokens' logits into z; -inf is left. All are read before one is written.
__device__ __forceinline__ void take_out(float* row, const Listed& listed, float* z, const Classes& at) {
    const unsigned begin = listed.begin(blockIdx.x), end = listed.end(blockIdx.x);
    for (unsigned entry = begin + threadIdx.x; entry < end; entry += blockDim.x) {
        const unsigned id = listed.ids[entry];
        if (at.has(id)) z[entry] = row[id - at.first];
    }
    __syncthreads();
    for (unsigned entry = begin + threadIdx.x; entry < end; entry += blockDim.x) {
        const unsigned id = listed.ids[entry];
        if (at.has(id)) row[id - at.first] = -INFINITY;
    }
    __syncthreads();
}

// Four values more; at T = 1 the two sums are one.
template <bool TEMPERED>
__device__ __forceinline__ void hear(Ear& ear, float4 x, unsigned at, const Powers& e, float slack) {
    const float largest = largest_of(x);
    note_best(ear, largest, at);
    if (largest > ear.reference + slack) {
        const float down = ear.reference - largest;
        ear.at_one *= e.one(down);
        if (TEMPERED) ear.at_t *= e.tempered(down);
        ear.reference = largest;
    }
    x = {x.x - ear.reference, x.y - ear.reference, x.z - ear.reference, x.w - ear.reference};
    ear.at_one += (e.one(x.x) + e.one(x.y)) + (e.one(x.z) + e.one(x.w));
    if (TEMPERED) ear.at_t += (e.tempered(x.x) + e.tempered(x.y)) + (e.tempered(x.z) + e.tempered(x.w));
}

template <bool TEMPERED>
__device__ __forceinline__ Ear hear_row(const float* row, const Classes& at, double temperature) {
    Ear ear;
    const Powers e(temperature);
    const float slack = slack_of(temperature);
    const unsigned stride = 4 * blockDim.x;
    for (unsigned column = 4 * threadIdx.x; column < at.columns; column += LISTEN_LOADS * stride) {
        float4 x[LISTEN_LOADS];
        UNROLL for (unsigned load = 0; load < LISTEN_LOADS; load++)
            x[load] = four(row, column + load * stride, at.columns);
        UNROLL for (unsigned load = 0; load < LISTEN_LOADS; load++)
            hear<TEMPERED>(ear, x[load], column + load * stride, e, slack);
    }
    return ear;
}

// Takes note of a block of classes; blocks come in order, and the first begins anew. heard [positions]; argmax
// [positions]: of the tokens that are not listed; of_target: its logit if it is one of these classes, which may be
// taken out by now. A block a position; memory: a double for each warp.
__device__ __forceinline__ void listen(const float* row, float of_target, const unsigned* targets, Heard* heard,
                                       unsigned* argmax, const Classes& at, double temperature) {
    BLOCK_MEMORY(double, room);
    const Ear ear = temperature == 1.0 ? hear_row<false>(row, at, 1.0) : hear_row<true>(row, at, temperature);
    const float best = block_max(ear.best, room);
    const unsigned id = class_of(ear, best, row, at, room);
    const Sums sums = sums_of(ear, best, temperature, room);
    if (threadIdx.x != 0) return;
    Heard known = at.first == 0 ? Heard{{-INFINITY, 0.0, 0.0}, NAN} : heard[blockIdx.x];
    if (at.first == 0 || sums.max > known.others.max) argmax[blockIdx.x] = id;
    known.others = join(known.others, sums, temperature);
    if (at.has(targets[blockIdx.x])) known.of_target = of_target;
    heard[blockIdx.x] = known;
}

// The logit of a token; NaN where it is not one of these classes.
__device__ __forceinline__ float logit_of(const float* row, unsigned id, const Classes& at) {
    return at.has(id) ? row[id - at.first] : NAN;
}

}  // namespace head

// Without a signal.
KERNEL __launch_bounds__(head::THREADS, 4)
    head_listen(const float* logits, const unsigned* targets, double* heard, unsigned* argmax, unsigned first,
                unsigned columns, unsigned width) {
    const head::Classes at{first, columns, width};
    const float* row = logits + size_t(blockIdx.x) * width;
    const float of_target = head::logit_of(row, targets[blockIdx.x], at);
    head::listen(row, of_target, targets, reinterpret_cast<head::Heard*>(heard), argmax, at, 1.0);
}
EXPORT(head_listen)

// z [entries]: the listed tokens' logits.
KERNEL __launch_bounds__(head::THREADS, 4)
    head_listen_listed(float* logits, const unsigned* targets, const unsigned* ends, const unsigned* ids, float* z,
                       double* heard, unsigned* argmax, unsigned first, unsigned columns, unsigned width,
                       double temperature) {
    const head::Classes at{first, columns, width};
    float* row = logits + size_t(blockIdx.x) * width;
    const float of_target = head::logit_of(row, targets[blockIdx.x], at);
    head::take_out(row, {ends, ids}, z, at);
    head::listen(row, of_target, targets, reinterpret_cast<head::Heard*>(heard), argmax, at, temperature);
}
EXPORT(head_listen_listed)
