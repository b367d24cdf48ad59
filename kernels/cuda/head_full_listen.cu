// What a position's logits and its teacher's tell of the output layer's loss, side by side: in one pass over a block of
// classes, and in a second one for the divergence whose middle asks for both sides' sums first.
#include "head_full.cuh"

namespace head {

// Of each side.
constexpr unsigned FULL_LOADS = 2;

// What one thread has heard of both rows. Either side's sums are relative to its own ear's reference.
struct Ears {
    Ear student, teacher;
    float back = 0.0f, apart = 0.0f, below = 0.0f;
};

// Moves the references up to these.
__device__ __forceinline__ void move_up(Ears& ears, float largest_z, float largest_y, float inverse_t, float slack) {
    if (largest_z > ears.student.reference + slack) {
        const float down = ears.student.reference - largest_z, at_t = expf(down * inverse_t);
        ears.student.at_one *= expf(down);
        ears.student.at_t *= at_t;
        ears.back *= at_t;
        ears.student.reference = largest_z;
    }
    if (largest_y > ears.teacher.reference + slack) {
        const float down = ears.teacher.reference - largest_y, at_t = expf(down * inverse_t);
        // Of nothing so far the depth is no number.
        if (ears.teacher.at_t != 0.0f) ears.below += ears.teacher.at_t * (down * inverse_t);
        ears.below *= at_t;
        ears.apart *= at_t;
        ears.teacher.at_t *= at_t;
        ears.teacher.at_one *= expf(down);
        ears.teacher.reference = largest_y;
    }
}

// A class more.
template <bool TEMPERED, bool MEASURED>
__device__ __forceinline__ void hear_class(Ears& ears, float z, float y, float inverse_t) {
    const float below_z = z - ears.student.reference, below_y = y - ears.teacher.reference;
    const float of_student = expf(below_z * inverse_t), depth = below_y * inverse_t, of_teacher = expf(depth);
    // Rounded as the gradient rounds it.
    const float apart = __fmul_rn(y - z, inverse_t);
    ears.student.at_t += of_student;
    if (TEMPERED) ears.student.at_one += expf(below_z);
    ears.back -= of_student * apart;
    ears.teacher.at_t += of_teacher;
    if (TEMPERED && MEASURED) ears.teacher.at_one += expf(below_y);
    ears.apart += of_teacher * apart;
    // What is nothing to the sum is nothing here too, where 0 times -inf is no number.
    ears.below += of_teacher > 0.0f ? of_teacher * depth : 0.0f;
}

template <bool TEMPERED, bool MEASURED>
__device__ __forceinline__ Ears hear_rows(const float* row, const float* teacher, const Classes& at,
                                          double temperature) {
    Ears ears;
    const float inverse_t = float(1.0 / temperature), slack = slack_of(temperature);
    const unsigned stride = 4 * blockDim.x;
    for (unsigned start = 4 * threadIdx.x; start < at.columns; start += FULL_LOADS * stride) {
        float4 z[FULL_LOADS], y[FULL_LOADS];
        UNROLL for (unsigned load = 0; load < FULL_LOADS; load++) {
            z[load] = four(row, start + load * stride, at.columns);
            y[load] = four(teacher, start + load * stride, at.columns);
        }
        UNROLL for (unsigned load = 0; load < FULL_LOADS; load++) {
            const unsigned column = start + load * stride;
            const float largest_z = largest_of(z[load]), largest_y = largest_of(y[load]);
            note_best(ears.student, largest_z, column);
            note_best(ears.teacher, largest_y, column);
            move_up(ears, largest_z, largest_y, inverse_t, slack);
            if (column < at.columns) hear_class<TEMPERED, MEASURED>(ears, z[load].x, y[load].x, inverse_t);
            if (column + 1 < at.columns) hear_class<TEMPERED, MEASURED>(ears, z[load].y, y[load].y, inverse_t);
            if (column + 2 < at.columns) hear_class<TEMPERED, MEASURED>(ears, z[load].z, y[load].z, inverse_t);
            if (column + 3 < at.columns) hear_class<TEMPERED, MEASURED>(ears, z[load].w, y[load].w, inverse_t);
        }
    }
    // At T = 1 the two sums are one.
    if (!TEMPERED) {
        ears.student.at_one = ears.student.at_t;
        ears.teacher.at_one = ears.teacher.at_t;
    }
    return ears;
}

// How far a thread's reference lies below the largest logit, at T. Of nothing the depth is no number.
__device__ __forceinline__ double depth_of(const Ear& ear, float best, double temperature) {
    return ear.at_t == 0.0f ? 0.0 : (double(ear.reference) - point(best)) / temperature;
}

// What all threads of a block heard of one side, whose largest logit is `best`, but for the depth of the teacher's.
__device__ __forceinline__ Side side_of(const Ear& ear, float apart, float best, double temperature, double* room) {
    const double factor = exp(depth_of(ear, best, temperature));
    return {sums_of(ear, best, temperature, room), block_sum(double(apart) * factor, room), 0.0, NAN};
}

// Adds what a block of classes told of a side, whose logits are x.
__device__ __forceinline__ void add(Side& known, Side more, const float* x, unsigned target, const Classes& at,
                                    double temperature) {
    more.of_target = at.has(target) ? x[target - at.first] : known.of_target;
    if (known.sums.at_t == 0.0) {
        known = more;
        return;
    }
    const Sums sums = join(known.sums, more.sums, temperature);
    const double down = (point(known.sums.max) - point(sums.max)) / temperature;
    const double down_more = more.sums.at_t == 0.0 ? 0.0 : (point(more.sums.max) - point(sums.max)) / temperature;
    const double factor = exp(down), factor_more = exp(down_more);
    known = {sums, known.apart * factor + more.apart * factor_more,
             (known.below + known.sums.at_t * down) * factor + (more.below + more.sums.at_t * down_more) * factor_more,
             more.of_target};
}

// Takes note of a block of classes; blocks come in order, and the first begins anew. argmax [2, positions]: the
// student's, and the teacher's where it is measured. A block a position; memory: a double for each warp.
template <bool MEASURED>
__device__ __forceinline__ void listen(const float* logits, const float* teacher, const unsigned* targets, Both* both,
                                       unsigned* argmax, const Classes& at, double t) {
    BLOCK_MEMORY(double, room);
    const unsigned position = blockIdx.x;
    const float *z = logits + size_t(position) * at.width, *y = teacher + size_t(position) * at.width;
    const Ears ears = t == 1.0 ? hear_rows<false, MEASURED>(z, y, at, 1.0) : hear_rows<true, MEASURED>(z, y, at, t);
    const float best_z = block_max(ears.student.best, room), best_y = block_max(ears.teacher.best, room);
    const unsigned id_z = class_of(ears.student, best_z, z, at, room);
    const unsigned id_y = MEASURED ? class_of(ears.teacher, best_y, y, at, room) : UINT_MAX;
    const Side student = side_of(ears.student, ears.back, best_z, t, room);
    Side of_teacher = side_of(ears.teacher, ears.apart, best_y, t, room);
    const double depth = depth_of(ears.teacher, best_y, t);
    of_teacher.below = block_sum((double(ears.below) + double(ears.teacher.at_t) * depth) * exp(depth), room);
    if (threadIdx.x != 0) return;
    const Side nothing{{-INFINITY, 0.0, 0.0}, 0.0, 0.0, NAN};
    Both known = at.first == 0 ? Both{nothing, nothing, 0.0, 0.0} : both[position];
    if (at.first == 0 || best_z > known.student.sums.max) argmax[position] = id_z;
    if (at.first == 0 || best_y > known.teacher.sums.max) argmax[gridDim.x + position] = id_y;
    add(known.student, student, z, targets[position], at, t);
    add(known.teacher, of_teacher, y, targets[position], at, t);
    both[position] = known;
}

// Takes note of a block of classes once more, all of them heard. Only Jensen-Shannon's divergence asks for it. A block
// a position; memory: a double for each warp.
__device__ __forceinline__ void listen_again(const float* logits, const float* teacher, Both* both, const Classes& at,
                                             double temperature, double beta) {
    BLOCK_MEMORY(double, room);
    const size_t start = size_t(blockIdx.x) * at.width;
    const Middle middle(both[blockIdx.x], temperature, beta);
    const unsigned stride = 4 * blockDim.x;
    float of_student = 0.0f, of_teacher = 0.0f;
    for (unsigned first = 4 * threadIdx.x; first < at.columns; first += FULL_LOADS * stride) {
        float4 z[FULL_LOADS], y[FULL_LOADS];
        UNROLL for (unsigned load = 0; load < FULL_LOADS; load++) {
            z[load] = four(logits + start, first + load * stride, at.columns);
            y[load] = four(teacher + start, first + load * stride, at.columns);
        }
        UNROLL for (unsigned load = 0; load < FULL_LOADS; load++) {
            const unsigned column = first + load * stride;
            auto add = [&](unsigned at_column, float of_z, float of_y) {
                if (at_column >= at.columns) return;
                const Middle::Class there = middle.of(of_z, of_y);
                of_student += there.q * there.log_q_over_m;
                of_teacher += there.p * there.log_p_over_m;
            };
            add(column, z[load].x, y[load].x);
            add(column + 1, z[load].y, y[load].y);
            add(column + 2, z[load].z, y[load].z);
            add(column + 3, z[load].w, y[load].w);
        }
    }
    const double student = block_sum(double(of_student), room), their = block_sum(double(of_teacher), room);
    if (threadIdx.x != 0) return;
    Both& known = both[blockIdx.x];
    known.student_from_middle += student;
    known.teacher_from_middle += their;
}

}  // namespace head

#define HEAD_FULL_LISTEN(name, MEASURED)                                                                            \
    KERNEL __launch_bounds__(head::THREADS, 3)                                                                      \
        name(const float* logits, const float* teacher, const unsigned* targets, double* both, unsigned* argmax,    \
             unsigned first, unsigned columns, unsigned width, double temperature) {                                \
        head::listen<MEASURED>(logits, teacher, targets, reinterpret_cast<head::Both*>(both), argmax,               \
                               {first, columns, width}, temperature);                                               \
    }                                                                                                               \
    EXPORT(name)
HEAD_FULL_LISTEN(head_full_listen, false)
HEAD_FULL_LISTEN(head_full_listen_measured, true)

KERNEL __launch_bounds__(head::THREADS, 3)
    head_full_listen_again(const float* logits, const float* teacher, double* both, unsigned first, unsigned columns,
                           unsigned width, double temperature, double beta) {
    head::listen_again(logits, teacher, reinterpret_cast<head::Both*>(both), {first, columns, width}, temperature,
                       beta);
}
EXPORT(head_full_listen_again)
