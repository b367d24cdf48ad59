// What follows for a position once all its classes were heard, in float64: the losses, the gradient of the listed
// tokens, and the coefficients of that of all others (model::ops::head::row). A warp a position.
#include "head.cuh"
#include "head_divergence.cuh"

namespace head {

// What a signal says of its entries and of everything else together, before it is made to sum to 1.
struct TopK {
    // [entries], and [positions] each.
    const float *scaled, *log_z, *log_rest;
    // Whether the outcomes are all there are, and not an estimate of them.
    static constexpr bool TELLS_ALL = true;

    __device__ __forceinline__ double log_p(unsigned position, unsigned entry) const {
        return double(scaled[entry]) - double(log_z[position]);
    }
    __device__ __forceinline__ double log_p_rest(unsigned position) const { return log_rest[position]; }
};

// p [entries] sums to 1.
struct Draws {
    const double* p;
    static constexpr bool TELLS_ALL = false;

    __device__ __forceinline__ double log_p(unsigned, unsigned entry) const { return log(p[entry]); }
    __device__ __forceinline__ double log_p_rest(unsigned) const { return -INFINITY; }
};

// What the loss is, and the weights of its parts in the gradient: scale (1 - alpha) and scale alpha T.
struct Settings {
    Divergence divergence;
    // Whether the listed tokens alone are made to sum to 1.
    bool renormalise;
    double temperature, ce_weight, kl_weight;
};

// Sums `of(entry)` over the entries from `begin` to `end`, in all lanes.
template <class Of>
__device__ __forceinline__ double sum_entries(unsigned begin, unsigned end, Of of) {
    double sum = 0.0;
    for (unsigned entry = begin + threadIdx.x % WARP_LANES; entry < end; entry += WARP_LANES) sum += of(entry);
    return warp_sum(sum);
}

// The sum over everything at a temperature: exp(largest) · sum. Probabilities made of the two sum to 1 to the last
// digits of float64, however far from 0 the logits are.
struct Normaliser {
    double temperature, largest, sum;

    __device__ __forceinline__ double log_z() const { return largest + log(sum); }
    __device__ __forceinline__ double q(float z) const { return exp(double(z) / temperature - largest) / sum; }
};

// Of the listed tokens' logits beside others that come to `log_rest` together; NaN where a logit is no number, or all
// are -inf.
__device__ __forceinline__ Normaliser normaliser(const float* z, unsigned begin, unsigned end, double temperature,
                                                 double log_rest) {
    double largest = log_rest;
    for (unsigned entry = begin + threadIdx.x % WARP_LANES; entry < end; entry += WARP_LANES)
        largest = fmax(largest, double(z[entry]) / temperature);
    for (unsigned lane = WARP_LANES / 2; lane > 0; lane /= 2)
        largest = fmax(largest, __shfl_xor_sync(ALL_LANES, largest, lane));
    const double sum =
        sum_entries(begin, end, [&](unsigned entry) { return exp(double(z[entry]) / temperature - largest); });
    return {temperature, largest, sum + exp(log_rest - largest)};
}

// The token with the largest logit, the lower id among equals: `id` is it of those that are not listed, with logit z.
__device__ __forceinline__ unsigned best_of(const float* logits, const unsigned* ids, unsigned begin, unsigned end,
                                            double z, unsigned id) {
    auto prefer = [&](double other_z, unsigned other) {
        if (other_z > z || (other_z == z && other < id)) {
            z = other_z;
            id = other;
        }
    };
    for (unsigned entry = begin + threadIdx.x % WARP_LANES; entry < end; entry += WARP_LANES)
        prefer(logits[entry], ids[entry]);
    for (unsigned lane = WARP_LANES / 2; lane > 0; lane /= 2) {
        const double other_z = __shfl_xor_sync(ALL_LANES, z, lane);
        const unsigned other = __shfl_xor_sync(ALL_LANES, id, lane);
        prefer(other_z, other);
    }
    return id;
}

// What the teacher's side comes to: log p = log_p(entry) - shift.
struct Teacher {
    double shift, log_p_rest, mass, entropy;
};

template <class Said>
__device__ __forceinline__ Teacher teacher_of(const Said& said, unsigned position, unsigned begin, unsigned end,
                                              bool renormalise) {
    Teacher teacher{0.0, said.log_p_rest(position), 0.0, NAN};
    auto sum_p = [&] {
        return sum_entries(begin, end, [&](unsigned e) { return exp(said.log_p(position, e) - teacher.shift); });
    };
    if (Said::TELLS_ALL) {
        // What rounding on the way here took from the sum is given back in proportion.
        teacher.shift = log(sum_p() + exp(teacher.log_p_rest));
        teacher.log_p_rest -= teacher.shift;
        auto p_log_p = [](double log_p) { return exp(log_p) > 0.0 ? exp(log_p) * log_p : 0.0; };
        const double of_listed = sum_entries(
            begin, end, [&](unsigned entry) { return p_log_p(said.log_p(position, entry) - teacher.shift); });
        teacher.entropy = -(of_listed + p_log_p(teacher.log_p_rest));
    }
    teacher.mass = sum_p();
    if (renormalise) {
        teacher.shift += log(teacher.mass);
        teacher.log_p_rest = -INFINITY;
    }
    return teacher;
}

// Where the results go: losses [7, positions], argmax [positions] as it was heard and then of all tokens, coefficients
// [positions, 3] (the others' largest logit, what exp(z - it) counts in the gradient, what exp((z - it) / T) counts),
// and for each entry its gradient.
struct Results {
    float* losses;
    unsigned* argmax;
    float *coefficients, *gradient;
};

template <class Said>
__device__ __forceinline__ void conclude(const Heard* heard, const unsigned* targets, const Listed& listed,
                                         const float* z, const Said& said, const Settings& s, const Results& to,
                                         unsigned positions) {
    const unsigned position = blockIdx.x * (blockDim.x / WARP_LANES) + threadIdx.x / WARP_LANES;
    if (position >= positions) return;
    const unsigned begin = listed.begin(position), end = listed.end(position), target = targets[position];
    const Heard known = heard[position];
    const Sums& others = known.others;
    const double t = s.temperature;
    const Teacher teacher = teacher_of(said, position, begin, end, s.renormalise);
    const double log_rest = log_at_t(others, t);
    const Normaliser at_t = normaliser(z, begin, end, t, log_rest);
    const Normaliser at_one = t == 1.0 ? at_t : normaliser(z, begin, end, 1.0, log_at_one(others));
    const double log_z_t = at_t.log_z(), log_z_one = at_one.log_z(), log_q_rest = log_rest - log_z_t;
    auto log_p = [&](unsigned entry) { return said.log_p(position, entry) - teacher.shift; };
    auto log_q = [&](unsigned entry) { return double(z[entry]) / t - log_z_t; };

    const double student_mass = sum_entries(begin, end, [&](unsigned entry) { return at_t.q(z[entry]); });
    const Apart of_rest = apart_of(s.divergence, teacher.log_p_rest, log_q_rest);
    auto apart = [&](unsigned entry) { return apart_of(s.divergence, log_p(entry), log_q(entry)); };
    const Apart sums{
        of_rest.of_teacher + sum_entries(begin, end, [&](unsigned entry) { return apart(entry).of_teacher; }),
        of_rest.of_student + sum_entries(begin, end, [&](unsigned entry) { return apart(entry).of_student; })};
    for (unsigned entry = begin + threadIdx.x % WARP_LANES; entry < end; entry += WARP_LANES) {
        const double of_ce = at_one.q(z[entry]) - (listed.ids[entry] == target ? 1.0 : 0.0);
        const double of_kl = s.divergence.kind == FORWARD
            ? at_t.q(z[entry]) - exp(log_p(entry))
            : slope_of(s.divergence, sums, log_p(entry), log_q(entry));
        to.gradient[entry] = float(s.ce_weight * of_ce + s.kl_weight * of_kl);
    }
    const unsigned best = best_of(z, listed.ids, begin, end, others.max, to.argmax[position]);
    if (threadIdx.x % WARP_LANES != 0) return;
    // A student that leaves the others nothing at all leaves them no direction to grow in.
    auto shared = [&](double of_others) { return others.at_t == 0.0 ? 0.0 : of_others / others.at_t; };
    const double slope = s.divergence.kind == FORWARD
        ? exp(point(others.max) / t - log_z_t) - shared(exp(teacher.log_p_rest))
        : shared(slope_of(s.divergence, sums, teacher.log_p_rest, log_q_rest));
    float* coefficients = to.coefficients + size_t(position) * 3;
    coefficients[0] = float(point(others.max));
    coefficients[1] = float(s.ce_weight * exp(point(others.max) - log_z_one));
    coefficients[2] = float(s.kl_weight * slope);
    to.argmax[position] = best;
    auto loss = [&](Loss column, double value) { to.losses[size_t(column) * positions + position] = float(value); };
    loss(CE, log_z_one - known.of_target);
    loss(KL, value_of(s.divergence, sums));
    loss(TEACHER_MASS, teacher.mass);
    loss(STUDENT_MASS, student_mass);
    loss(KL_REST, s.divergence.kind == FORWARD ? of_rest.of_teacher : NAN);
    loss(TEACHER_ENTROPY, teacher.entropy);
    loss(TEACHER_CE, NAN);
}

}  // namespace head

// Without a signal: cross-entropy alone.
KERNEL head_heard(const double* heard, const unsigned* targets, float* losses, unsigned* argmax, float* coefficients,
                  unsigned positions, double ce_weight) {
    head::conclude(reinterpret_cast<const head::Heard*>(heard), targets, {nullptr, nullptr}, nullptr,
                   head::Draws{nullptr}, {{head::FORWARD, 0.0}, false, 1.0, ce_weight, 0.0},
                   {losses, argmax, coefficients, nullptr}, positions);
}
EXPORT(head_heard)

KERNEL head_heard_top_k(const double* heard, const unsigned* targets, const unsigned* ends, const unsigned* ids,
                        const float* z, const float* scaled, const float* log_z, const float* log_rest, float* losses,
                        unsigned* argmax, float* coefficients, float* gradient, unsigned positions, unsigned kind,
                        double beta, unsigned renormalise, double temperature, double ce_weight, double kl_weight) {
    head::conclude(reinterpret_cast<const head::Heard*>(heard), targets, {ends, ids}, z,
                   head::TopK{scaled, log_z, log_rest},
                   {{kind, beta}, renormalise != 0, temperature, ce_weight, kl_weight},
                   {losses, argmax, coefficients, gradient}, positions);
}
EXPORT(head_heard_top_k)

KERNEL head_heard_draws(const double* heard, const unsigned* targets, const unsigned* ends, const unsigned* ids,
                        const float* z, const double* p, float* losses, unsigned* argmax, float* coefficients,
                        float* gradient, unsigned positions, double temperature, double ce_weight, double kl_weight) {
    head::conclude(reinterpret_cast<const head::Heard*>(heard), targets, {ends, ids}, z, head::Draws{p},
                   {{head::FORWARD, 0.0}, false, temperature, ce_weight, kl_weight},
                   {losses, argmax, coefficients, gradient}, positions);
}
EXPORT(head_heard_draws)
