// From raw projections to queries and keys: the norm of every head, and its rotation (rotate_half of transformers:
// value i is paired with value i + E/2). Values are read where they lie.
#include "common.cuh"

// Most pairs of a head that a lane holds: heads of up to 256 values.
constexpr unsigned MOST_PAIRS = 4;

// Where things lie: raw [N, width], of each token the query heads, the key heads, the value heads; ready [N, heads
// normed, head_dim].
struct Layout {
    unsigned queries, normed, head_dim, width;
};

// ready = rotate(raw · rstd · w): raw and ready in the activations' type, the norms' weights [head_dim] too, cos and
// sin [positions, head_dim / 2], positions [N], rstd [N, normed]. A warp a head, a block a token along x.
template <class Activation>
__device__ __forceinline__ void turn(const Activation* raw, const Activation* q_norm, const Activation* k_norm,
                                     const float* cos, const float* sin, const unsigned* positions,
                                     Activation* ready, float* rstd, const Layout& at, float eps) {
    const unsigned head = blockIdx.y * (blockDim.x / WARP_LANES) + threadIdx.x / WARP_LANES;
    if (head >= at.normed) return;
    const unsigned lane = threadIdx.x % WARP_LANES, half = at.head_dim / 2;
    const size_t token = blockIdx.x;
    const Activation* x = raw + token * at.width + head * at.head_dim;
    Activation* y = ready + (token * at.normed + head) * at.head_dim;
    const Activation* w = head < at.queries ? q_norm : k_norm;
    const size_t angles = size_t(positions[token]) * half;
    float squares = 0.0f;
    for (unsigned i = lane; i < at.head_dim; i += WARP_LANES) squares += wide(x[i]) * wide(x[i]);
    const float scale = rsqrtf(warp_sum(squares) / float(at.head_dim) + eps);
    if (lane == 0) rstd[token * at.normed + head] = scale;
    for (unsigned i = lane; i < half; i += WARP_LANES) {
        const float a = wide(x[i]) * scale * wide(w[i]), b = wide(x[half + i]) * scale * wide(w[half + i]);
        const float c = cos[angles + i], s = sin[angles + i];
        narrow(a * c - b * s, y[i]);
        narrow(b * c + a * s, y[half + i]);
    }
}

// What lies where of a token: its angles, raw values, and gradients of what turn made of them and of them.
template <class Activation>
struct Token {
    const float *cos, *sin, *rstd;
    const Activation *raw, *d_ready;
    Activation* d_raw;
};

// The gradients of turn of a token's heads first..end, a warp every so many of them: into d_raw, and added to of_w
// those of the norm's weights at the pairs of this lane.
template <class Activation>
__device__ __forceinline__ void turn_heads_back(const Token<Activation>& token, const Activation* w,
                                                float (&of_w)[2][MOST_PAIRS], unsigned head_dim, unsigned first,
                                                unsigned end) {
    const unsigned lane = threadIdx.x % WARP_LANES, half = head_dim / 2;
    for (unsigned head = first + threadIdx.x / WARP_LANES; head < end; head += blockDim.x / WARP_LANES) {
        const Activation *x = token.raw + head * head_dim, *dy = token.d_ready + head * head_dim;
        Activation* dx = token.d_raw + head * head_dim;
        const float scale = token.rstd[head];
        // Turned back first, then through the norm.
        float da[MOST_PAIRS] = {}, db[MOST_PAIRS] = {}, product = 0.0f;
        UNROLL for (unsigned pair = 0; pair < MOST_PAIRS; pair++) {
            const unsigned i = pair * WARP_LANES + lane;
            if (i >= half) continue;
            const float c = token.cos[i], s = token.sin[i], dy1 = wide(dy[i]), dy2 = wide(dy[half + i]);
            da[pair] = dy1 * c + dy2 * s;
            db[pair] = dy2 * c - dy1 * s;
            product += da[pair] * wide(w[i]) * wide(x[i]) + db[pair] * wide(w[half + i]) * wide(x[half + i]);
        }
        const float mean = warp_sum(product) * scale / float(head_dim);
        UNROLL for (unsigned pair = 0; pair < MOST_PAIRS; pair++) {
            const unsigned i = pair * WARP_LANES + lane;
            if (i >= half) continue;
            const float a = wide(x[i]) * scale, b = wide(x[half + i]) * scale;
            of_w[0][pair] += da[pair] * a;
            of_w[1][pair] += db[pair] * b;
            narrow(scale * (da[pair] * wide(w[i]) - a * mean), dx[i]);
            narrow(scale * (db[pair] * wide(w[half + i]) - b * mean), dx[half + i]);
        }
    }
}

// The gradients of turn: into d_raw those of the heads' raw values, and into shares [blocks, 2 head_dim] those of the
// two norms' weights over this block's tokens, every gridDim.x-th. Memory: [warps, 2 head_dim] floats.
template <class Activation>
__device__ __forceinline__ void turn_back(const Activation* d_ready, const Activation* raw,
                                          const Activation* q_norm, const Activation* k_norm, const float* cos,
                                          const float* sin, const unsigned* positions, const float* rstd,
                                          Activation* d_raw, float* shares, const Layout& at, unsigned tokens) {
    BLOCK_MEMORY(float, room);
    const unsigned warp = threadIdx.x / WARP_LANES, warps = blockDim.x / WARP_LANES;
    const unsigned lane = threadIdx.x % WARP_LANES, half = at.head_dim / 2;
    // Of the queries' norm and of the keys'.
    float of_w[2][2][MOST_PAIRS] = {};
    for (size_t number = blockIdx.x; number < tokens; number += gridDim.x) {
        const size_t angles = size_t(positions[number]) * half, ready = number * at.normed;
        const Token<Activation> token{cos + angles, sin + angles, rstd + ready, raw + number * at.width,
                                      d_ready + ready * at.head_dim, d_raw + number * at.width};
        turn_heads_back(token, q_norm, of_w[0], at.head_dim, 0, at.queries);
        turn_heads_back(token, k_norm, of_w[1], at.head_dim, at.queries, at.normed);
    }
    UNROLL for (unsigned kind = 0; kind < 2; kind++)
        UNROLL for (unsigned pair = 0; pair < MOST_PAIRS; pair++) {
            const unsigned i = pair * WARP_LANES + lane;
            if (i >= half) continue;
            float* mine = room + (warp * 2 + kind) * at.head_dim;
            mine[i] = of_w[kind][0][pair];
            mine[half + i] = of_w[kind][1][pair];
        }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < 2 * at.head_dim; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned from = 0; from < warps; from++) sum += room[from * 2 * at.head_dim + i];
        shares[size_t(blockIdx.x) * 2 * at.head_dim + i] = sum;
    }
}

#define TURN(name, Activation)                                                                                  \
    KERNEL name(const Activation* raw, const Activation* q_norm, const Activation* k_norm, const float* cos,    \
                const float* sin, const unsigned* positions, Activation* ready, float* rstd, unsigned queries,  \
                unsigned normed, unsigned head_dim, unsigned width, float eps) {                                \
        const Layout at{queries, normed, head_dim, width};                                                      \
        turn(raw, q_norm, k_norm, cos, sin, positions, ready, rstd, at, eps);                                   \
    }                                                                                                           \
    EXPORT(name)
TURN(turn_f32, float)
TURN(turn_bf16, __nv_bfloat16)

// Four blocks of 256 threads a multiprocessor: all shares at once.
#define TURN_BACK(name, Activation)                                                                             \
    KERNEL __launch_bounds__(256, 4)                                                                            \
        name(const Activation* d_ready, const Activation* raw, const Activation* q_norm,                     \
                const Activation* k_norm, const float* cos, const float* sin, const unsigned* positions,        \
                const float* rstd, Activation* d_raw, float* shares, unsigned queries, unsigned normed,         \
                unsigned head_dim, unsigned width, unsigned tokens) {                                           \
        const Layout at{queries, normed, head_dim, width};                                                      \
        turn_back(d_ready, raw, q_norm, k_norm, cos, sin, positions, rstd, d_raw, shares, at, tokens);          \
    }                                                                                                           \
    EXPORT(name)
TURN_BACK(turn_back_f32, float)
TURN_BACK(turn_back_bf16, __nv_bfloat16)
