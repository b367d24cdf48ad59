// What a teacher says of a position: the k largest logits of its row, or those of k tokens that somebody named, and the
// mass of the rest (the signal is distill::signal::TopK). A block a row.
//
// The k largest in two reads. The first takes the largest value of each of 4,096 groups of classes, eight a thread: the
// k-th largest of these is a floor that k values reach at least, and by few more. The second gathers what reaches it and
// sums the exponentials of all others, with a scale of their own. Where more reach it than there is room for (equal
// values without end, or many large ones in few groups), the floor is found digit by digit, with a read for each.
#include "logits.cuh"

constexpr unsigned GROUPS_OF_THREAD = 8;
// A digit of the search for a floor has eight bits. Behind the counts of its values lie what was found.
constexpr unsigned DIGITS = 256;
constexpr unsigned FOUND_DIGIT = DIGITS, FOUND_ABOVE = DIGITS + 1, FOUND_REACHING = DIGITS + 2;

// The memory of the block: a double for each warp, candidates [room], and DIGITS + 4 counts.
struct SelectMemory {
    double* sums;
    uint64_t* candidates;
    unsigned* counts;
    unsigned room;
};

// Larger for a larger logit, then for a lower id: no two classes are equal.
__device__ __forceinline__ uint64_t candidate(float z, unsigned id) {
    return uint64_t(order_key(z)) << 32 | uint64_t(~id);
}
__device__ __forceinline__ unsigned id_of(uint64_t candidate) { return ~unsigned(candidate); }
__device__ __forceinline__ float logit_of(uint64_t candidate) { return of_key(unsigned(candidate >> 32)); }

// In which digit, from the highest on, the k-th largest is, of which `above` are larger in the digits before. A warp.
__device__ __forceinline__ void find_digit(unsigned* counts, unsigned k, unsigned above) {
    constexpr unsigned EACH = DIGITS / WARP_LANES;
    unsigned digit = DIGITS - 1 - EACH * threadIdx.x, mine = 0;
    for (unsigned i = 0; i < EACH; i++) mine += counts[digit - i];
    const unsigned through = above + warp_running_sum(mine);
    unsigned before = through - mine;
    if (before >= k || through < k) return;
    while (before + counts[digit] < k) before += counts[digit--];
    counts[FOUND_DIGIT] = digit;
    counts[FOUND_ABOVE] = before;
    counts[FOUND_REACHING] = before + counts[digit];
}

// A floor that k numbers reach at least: of the digits down to the one at bit `lowest` those of the k-th largest, but no
// more of them once `enough` numbers reach it at most. `each` calls what it is given with every number of this thread.
template <class Each>
__device__ __forceinline__ uint64_t floor_of(unsigned k, unsigned enough, unsigned lowest, unsigned* counts,
                                             Each each) {
    uint64_t floor = 0;
    unsigned above = 0;
    for (unsigned shift = 56;; shift -= 8) {
        for (unsigned i = threadIdx.x; i < DIGITS; i += blockDim.x) counts[i] = 0;
        __syncthreads();
        each([&](uint64_t number) {
            if (number >> shift >> 8 == floor >> shift >> 8)
                atomicAdd(&counts[unsigned(number >> shift) % DIGITS], 1u);
        });
        __syncthreads();
        if (threadIdx.x < WARP_LANES) find_digit(counts, k, above);
        __syncthreads();
        floor |= uint64_t(counts[FOUND_DIGIT]) << shift;
        above = counts[FOUND_ABOVE];
        if (counts[FOUND_REACHING] <= enough || shift == lowest) return floor;
    }
}

// Gathers what reaches the floor, as far as there is room, and adds all else to `others`. Gives how many reach it.
__device__ __forceinline__ unsigned gather_candidates(const Row& row, uint64_t floor, const SelectMemory& memory,
                                           const Temperature& temperature, ExpSums& others) {
    unsigned& count = memory.counts[DIGITS + 3];
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    // As a number that can be compared: digits not searched for are 0.
    const unsigned lowest = order_key(left_out()), key = unsigned(floor >> 32);
    const float least = of_key(key > lowest ? key : lowest);
    each_tile(row, [&](unsigned first, unsigned stride) {
        float z[TILE];
        read_tile(row, first, stride, z);
        if (largest_of(z) >= least) UNROLL for (unsigned i = 0; i < TILE; i++) {
            const unsigned id = class_at(first, stride, i);
            if (!(z[i] >= least) || id >= row.classes || candidate(z[i], id) < floor) continue;
            const unsigned at = atomicAdd(&count, 1u);
            if (at < memory.room) memory.candidates[at] = candidate(z[i], id);
            z[i] = left_out();
        }
        others.add(z, temperature);
    });
    __syncthreads();
    return count;
}

// Sorts the candidates [count], the largest first: a bitonic network, in which what came in any order has one.
__device__ __forceinline__ void sort_candidates(uint64_t* candidates, unsigned count) {
    unsigned all = 1;
    while (all < count) all *= 2;
    for (unsigned i = count + threadIdx.x; i < all; i += blockDim.x) candidates[i] = 0;
    __syncthreads();
    for (unsigned run = 2; run <= all; run *= 2)
        for (unsigned far = run / 2; far > 0; far /= 2) {
            for (unsigned pair = threadIdx.x; pair < all / 2; pair += blockDim.x) {
                const unsigned a = 2 * pair - pair % far, b = a + far;
                const uint64_t of_a = candidates[a], of_b = candidates[b];
                if ((of_a < of_b) != ((a & run) == 0)) continue;
                candidates[a] = of_b;
                candidates[b] = of_a;
            }
            __syncthreads();
        }
}

// The first read: the largest of each group of this thread, and its first class that is not finite.
__device__ __forceinline__ unsigned group_maxima(const Row& row, float (&maxima)[GROUPS_OF_THREAD]) {
    UNROLL for (unsigned group = 0; group < GROUPS_OF_THREAD; group++) maxima[group] = left_out();
    unsigned broken = NOBODY;
    each_tile(row, [&](unsigned first, unsigned stride) {
        float z[TILE];
        read_tile(row, first, stride, z);
        note_broken(row, first, stride, z, broken);
        UNROLL for (unsigned i = 0; i < TILE; i++)
            maxima[i % GROUPS_OF_THREAD] = fmaxf(maxima[i % GROUPS_OF_THREAD], z[i]);
    });
    return broken;
}

// The candidates of a row, sorted, k of them at least; all else is added to `others`. Gives how many there are.
__device__ __forceinline__ unsigned select_candidates(const Row& row, const float (&maxima)[GROUPS_OF_THREAD],
                                                      unsigned k, const SelectMemory& memory, const Temperature& temperature,
                                           ExpSums& others) {
    const auto each_group = [&](auto count) {
        UNROLL for (unsigned group = 0; group < GROUPS_OF_THREAD; group++)
            count(uint64_t(order_key(maxima[group])) << 32);
    };
    uint64_t floor = floor_of(k, k, 32, memory.counts, each_group);
    // The largest of a group that does not reach the floor is one of the others: nearly as large as they come.
    UNROLL for (unsigned group = 0; group < GROUPS_OF_THREAD; group++)
        if (order_key(maxima[group]) < floor >> 32) others.largest = fmaxf(others.largest, maxima[group]);
    const ExpSums none = others;
    unsigned count = gather_candidates(row, floor, memory, temperature, others);
    if (count > memory.room) {
        const auto each_class = [&](auto count) {
            each_tile(row, [&](unsigned first, unsigned stride) {
                float z[TILE];
                read_tile(row, first, stride, z);
                UNROLL for (unsigned i = 0; i < TILE; i++) {
                    const unsigned id = class_at(first, stride, i);
                    if (id < row.classes) count(candidate(z[i], id));
                }
            });
        };
        floor = floor_of(k, memory.room, 0, memory.counts, each_class);
        others = none;
        count = gather_candidates(row, floor, memory, temperature, others);
    }
    sort_candidates(memory.candidates, count);
    return count;
}

// ids [rows, k], and of each its z / T, or where `as_log_p` is not 0 its log-probability at T: entries [rows, k], in
// descending order. `k` is at most the room, which is a power of two.
KERNEL __launch_bounds__(512) top_k(const float* logits, const unsigned* next, unsigned* ids, float* entries,
                                    float* sums, unsigned* broken, unsigned classes, unsigned width, unsigned k,
                                    unsigned room, double t, unsigned as_log_p) {
    BLOCK_MEMORY(double, of_warps);
    uint64_t* candidates = reinterpret_cast<uint64_t*>(of_warps + blockDim.x / WARP_LANES);
    const SelectMemory memory{of_warps, candidates, reinterpret_cast<unsigned*>(candidates + room), room};
    const Row row = row_of_block(logits, classes, width);
    const Said said{sums, broken};
    const Temperature temperature(t);
    float maxima[GROUPS_OF_THREAD];
    const unsigned first_broken = group_maxima(row, maxima);
    if (said.refuse(row, first_broken, memory.sums)) return;
    ExpSums others = no_sums(), kept = no_sums();
    const unsigned count = select_candidates(row, maxima, k, memory, temperature, others);
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const float z[1] = {logit_of(candidates[i])};
        if (i < k)
            kept.add(z, temperature);
        else
            others.add(z, temperature);
    }
    const LogSums of_others = block_log_sums(others, temperature, memory.sums);
    const LogSums of_kept = block_log_sums(kept, temperature, memory.sums);
    const double log_z = said.tell(row, of_kept, of_others, next, temperature);
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        const double scaled = double(logit_of(candidates[i])) / t;
        ids[size_t(blockIdx.x) * k + i] = id_of(candidates[i]);
        entries[size_t(blockIdx.x) * k + i] = as_log_p ? as_log(scaled - log_z) : float(scaled);
    }
}
EXPORT(top_k)

// The same of the tokens `ids`: k of them, all different, those of each row `stride` behind those of the row before (k, or
// 0 where they are the same); entries [rows, k] are their z / T in their order. One read; k may be 0. Memory: a double
// for each warp and a bit for each class.
KERNEL __launch_bounds__(512) named(const float* logits, const unsigned* next, const unsigned* ids, float* entries,
                                    float* sums, unsigned* broken, unsigned classes, unsigned width, unsigned k,
                                    unsigned stride_of_ids, double t) {
    BLOCK_MEMORY(double, of_warps);
    const Marks marks{reinterpret_cast<unsigned*>(of_warps + blockDim.x / WARP_LANES)};
    const Row row = row_of_block(logits, classes, width);
    const Said said{sums, broken};
    const Temperature temperature(t);
    ids += size_t(blockIdx.x) * stride_of_ids;
    marks.clear(classes);
    __syncthreads();
    marks.set(ids, k);
    __syncthreads();
    ExpSums others = no_sums(), kept = no_sums();
    unsigned first_broken = NOBODY;
    each_tile(row, [&](unsigned first, unsigned stride) {
        float z[TILE];
        read_tile(row, first, stride, z);
        note_broken(row, first, stride, z, first_broken);
        marks.leave_out(row, first, stride, z);
        others.add(z, temperature);
    });
    if (said.refuse(row, first_broken, of_warps)) return;
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        const float z[1] = {row.at(ids[i])};
        kept.add(z, temperature);
        entries[size_t(blockIdx.x) * k + i] = float(double(z[0]) / t);
    }
    const LogSums of_others = block_log_sums(others, temperature, of_warps);
    const LogSums of_kept = block_log_sums(kept, temperature, of_warps);
    said.tell(row, of_kept, of_others, next, temperature);
}
EXPORT(named)
