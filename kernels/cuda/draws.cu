// Draws from the probabilities of a row of logits, beside k classes that are given as they are (the signal is
// distill::signal::Draws). A block a row.
//
// The exponentials of every segment of classes are summed relative to its largest, by a warp, and the segments put
// together one after another: so it is known in which segment each draw falls and how far into it, and of that segment
// alone the logits are read again. Sums are double, in an order that is always the same.
#include "logits.cuh"

// Classes that a warp sums at a time: a tile of every lane.
constexpr unsigned SEGMENT = TILE * WARP_LANES;
// The largest number below 1.
constexpr double ALMOST_ONE = 1.0 - 1.0 / 9007199254740992.0;

// The largest of the classes of a segment that are not marked, -inf where there is none, and relative to it the sum of
// exp((z - largest) / T), in double. A warp, its lanes side by side.
__device__ __forceinline__ double segment_sum(const Row& row, unsigned segment, const Marks& marks,
                                              const Temperature& temperature, float& largest) {
    const unsigned first = segment * SEGMENT + 4 * (threadIdx.x % WARP_LANES), stride = 4 * WARP_LANES;
    float z[TILE];
    read_tile(row, first, stride, z);
    marks.leave_out(row, first, stride, z);
    largest = warp_largest(largest_of(z));
    if (largest == left_out()) return 0.0;
    double sum = 0.0;
    UNROLL for (unsigned i = 0; i < TILE; i++) sum += double(expf((z[i] - largest) * temperature.inverse));
    return warp_sum(sum);
}

// exp((z - largest) / T) of four classes from `first` on, 0 of those that are marked.
__device__ __forceinline__ void four_exps(const Row& row, unsigned first, const Marks& marks,
                                          const Temperature& temperature, float largest, float (&exps)[4]) {
    UNROLL for (unsigned i = 0; i < 4; i++) {
        const unsigned id = first + i;
        const bool takes_part = id < row.classes && !marks.has(id);
        exps[i] = takes_part ? expf((row.at(id) - largest) * temperature.inverse) : 0.0f;
    }
}

// The first class of a segment at which the sum exceeds `share`, below 1, of all of it, which is not nothing. A warp,
// four classes a lane.
__device__ __forceinline__ unsigned find_class(const Row& row, unsigned segment, const Marks& marks,
                                               const Temperature& temperature, float largest, double share) {
    constexpr unsigned STEP = 4 * WARP_LANES;
    const unsigned first = segment * SEGMENT + 4 * (threadIdx.x % WARP_LANES), end = (segment + 1) * SEGMENT;
    double sum = 0.0;
    for (unsigned at = first; at < end; at += STEP) {
        float exps[4];
        four_exps(row, at, marks, temperature, largest, exps);
        for (unsigned i = 0; i < 4; i++) sum += double(exps[i]);
    }
    const double beyond = share * warp_sum(sum);
    // A class without a share is none to be drawn: it is not the first beyond, nor the last where rounding has made the
    // running sum end at what is not beyond.
    unsigned last = 0;
    double before = 0.0;
    for (unsigned at = first; at < end; at += STEP) {
        float exps[4];
        four_exps(row, at, marks, temperature, largest, exps);
        const double of_lane = double(exps[0]) + double(exps[1]) + double(exps[2]) + double(exps[3]);
        const double through = before + warp_running_sum(of_lane);
        double running = through - of_lane;
        unsigned found = NOBODY;
        UNROLL for (unsigned i = 0; i < 4; i++) {
            running += double(exps[i]);
            if (exps[i] == 0.0f) continue;
            last = at + i;
            if (running > beyond && found == NOBODY) found = last;
        }
        // The lowest of all: the largest of their complements.
        found = ~warp_largest(~found);
        if (found != NOBODY) return found;
        before = __shfl_sync(ALL_LANES, through, WARP_LANES - 1);
    }
    return warp_largest(last);
}

// The first segment whose end in the running sums `ends` [segments] is beyond.
__device__ __forceinline__ unsigned find_segment(const double* ends, unsigned segments, double beyond) {
    unsigned low = 0, high = segments - 1;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (ends[middle] > beyond)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

// drawn [rows, draws]: for each of uniforms [rows, draws], in 0..1, the first class by id at which the sum of the
// probabilities of those that are not among `exact` [rows, k] exceeds it; nobody where there are no others, and in rows
// that are `broken`, as top_k or named have said. Memory: a double for each warp, a double and a float for each
// segment, a bit for each class.
KERNEL __launch_bounds__(512, 2) draw(const float* logits, const unsigned* exact, const unsigned* broken,
                                   const double* uniforms, unsigned* drawn, unsigned classes, unsigned width,
                                   unsigned k, unsigned draws, double t) {
    BLOCK_MEMORY(double, of_warps);
    const unsigned warp = threadIdx.x / WARP_LANES, warps = blockDim.x / WARP_LANES;
    const unsigned segments = (classes + SEGMENT - 1) / SEGMENT;
    double* ends = of_warps + warps;
    float* largest = reinterpret_cast<float*>(ends + segments);
    const Marks marks{reinterpret_cast<unsigned*>(largest + segments)};
    const Row row = row_of_block(logits, classes, width);
    const Temperature temperature(t);
    uniforms += size_t(blockIdx.x) * draws;
    drawn += size_t(blockIdx.x) * draws;
    marks.clear(classes);
    __syncthreads();
    marks.set(exact + size_t(blockIdx.x) * k, k);
    __syncthreads();
    float largest_of_all = left_out();
    for (unsigned segment = warp; segment < segments; segment += warps) {
        float top;
        const double sum = segment_sum(row, segment, marks, temperature, top);
        largest_of_all = fmaxf(largest_of_all, top);
        if (threadIdx.x % WARP_LANES != 0) continue;
        ends[segment] = sum;
        largest[segment] = top;
    }
    largest_of_all = block_largest(largest_of_all, reinterpret_cast<float*>(of_warps));
    if (broken[2 * size_t(blockIdx.x)] != NOBODY || largest_of_all == left_out()) {
        for (unsigned i = threadIdx.x; i < draws; i += blockDim.x) drawn[i] = NOBODY;
        return;
    }
    for (unsigned segment = threadIdx.x; segment < segments; segment += blockDim.x)
        ends[segment] *= exp((double(largest[segment]) - double(largest_of_all)) / t);
    __syncthreads();
    // One after another: such sums never fall.
    if (threadIdx.x == 0)
        for (unsigned segment = 1; segment < segments; segment++) ends[segment] += ends[segment - 1];
    __syncthreads();
    for (unsigned i = warp; i < draws; i += warps) {
        const double beyond = fmin(uniforms[i], ALMOST_ONE) * ends[segments - 1];
        const unsigned segment = find_segment(ends, segments, beyond);
        const double before = segment == 0 ? 0.0 : ends[segment - 1];
        const double share = fmin((beyond - before) / (ends[segment] - before), ALMOST_ONE);
        const unsigned found = find_class(row, segment, marks, temperature, largest[segment], share);
        if (threadIdx.x % WARP_LANES == 0) drawn[i] = found;
    }
}
EXPORT(draw)
