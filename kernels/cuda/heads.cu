// From raw projections to queries and keys: the norm of every head, and its rotation (rotate_half of transformers:
// value i is paired with value i + E/2). Values are read where they lie.
#include "common.cuh"

// A head's halves are cut into chunks of two columns a lane.
constexpr unsigned CHUNK = 2 * WARP_LANES;
// Most chunks of half a head: heads of up to 256 values.
constexpr unsigned MOST_CHUNKS = 2;

// Where things lie: raw [N, width], of each token the query heads, the key heads, the value heads; ready [N, heads
// normed, head_dim].
struct Layout {
    unsigned queries, normed, head_dim, width;
};

// Two columns from `i` on of half a head; 0 past its end. Together where halves begin at multiples of two.
template <class T>
__device__ __forceinline__ float2 read2(const T* from, unsigned i, unsigned half) {
    if (half % 2 == 0) return i < half ? load2(from, i) : float2{0.0f, 0.0f};
    return {i < half ? wide(from[i]) : 0.0f, i + 1 < half ? wide(from[i + 1]) : 0.0f};
}
template <class T>
__device__ __forceinline__ void write2(T* to, unsigned i, unsigned half, float2 x) {
    if (i >= half) return;
    if (half % 2 == 0) return store2(to, i, x);
    narrow(x.x, to[i]);
    if (i + 1 < half) narrow(x.y, to[i + 1]);
}

// Two columns of this lane of each chunk of half a head: read before anything is made of them, so that all are on their way
// together.
template <unsigned CHUNKS>
struct Half {
    float2 of[CHUNKS];

    template <class T>
    __device__ __forceinline__ Half(const T* from, unsigned half) {
        UNROLL for (unsigned chunk = 0; chunk < CHUNKS; chunk++) of[chunk] = read2(from, column(chunk), half);
    }

    // The first of this lane's columns of a chunk.
    __device__ static __forceinline__ unsigned column(unsigned chunk) {
        return chunk * CHUNK + 2 * (threadIdx.x % WARP_LANES);
    }
};

// The warp's head: y = rotate(x · rstd · w), all [2 half], and rstd.
template <unsigned CHUNKS, class Activation>
__device__ __forceinline__ void turn_head(const Activation* x, const Activation* w, const float* cos, const float* sin,
                                          Activation* y, float* rstd, unsigned half, float eps) {
    const Half<CHUNKS> a(x, half), b(x + half, half), of_a(w, half), of_b(w + half, half), c(cos, half), s(sin, half);
    float squares = 0.0f;
    UNROLL for (unsigned i = 0; i < CHUNKS; i++)
        squares += (a.of[i].x * a.of[i].x + a.of[i].y * a.of[i].y) + (b.of[i].x * b.of[i].x + b.of[i].y * b.of[i].y);
    const float scale = rsqrtf(warp_sum(squares) / float(2 * half) + eps);
    if (threadIdx.x % WARP_LANES == 0) *rstd = scale;
    UNROLL for (unsigned i = 0; i < CHUNKS; i++) {
        const float2 n = {a.of[i].x * scale * of_a.of[i].x, a.of[i].y * scale * of_a.of[i].y};
        const float2 m = {b.of[i].x * scale * of_b.of[i].x, b.of[i].y * scale * of_b.of[i].y};
        const float2 cosine = c.of[i], sine = s.of[i];
        write2(y, a.column(i), half, {n.x * cosine.x - m.x * sine.x, n.y * cosine.y - m.y * sine.y});
        write2(y + half, a.column(i), half, {m.x * cosine.x + n.x * sine.x, m.y * cosine.y + n.y * sine.y});
    }
}

// ready = rotate(raw · rstd · w): raw and ready in the activations' type, the norms' weights [head_dim] too, cos and
// sin [positions, head_dim / 2], positions [N], rstd [N, normed]. A warp a head, a block a token along x.
template <class Activation>
__device__ __forceinline__ void turn(const Activation* raw, const Activation* q_norm, const Activation* k_norm,
                                     const float* cos, const float* sin, const unsigned* positions,
                                     Activation* ready, float* rstd, const Layout& at, float eps) {
    const unsigned head = blockIdx.y * (blockDim.x / WARP_LANES) + threadIdx.x / WARP_LANES;
    if (head >= at.normed) return;
    const unsigned half = at.head_dim / 2;
    const size_t token = blockIdx.x, number = token * at.normed + head, angles = size_t(positions[token]) * half;
    const Activation* x = raw + token * at.width + head * at.head_dim;
    const Activation* w = head < at.queries ? q_norm : k_norm;
    Activation* y = ready + number * at.head_dim;
    if (half <= CHUNK)
        turn_head<1>(x, w, cos + angles, sin + angles, y, rstd + number, half, eps);
    else
        turn_head<MOST_CHUNKS>(x, w, cos + angles, sin + angles, y, rstd + number, half, eps);
}

// What lies where of a token: its heads' rstd, raw values, and gradients of what turn made of them and of them.
template <class Activation>
struct Token {
    const float* rstd;
    const Activation *raw, *d_ready;
    Activation* d_raw;
};

// The gradients of turn of a token's heads first..end, a warp every so many of them: into d_raw, and added to of_w
// those of the norm's weights [2 half] at this lane's columns, which `w` has too.
template <unsigned CHUNKS, class Activation>
__device__ __forceinline__ void turn_heads_back(const Token<Activation>& token, const Half<CHUNKS> (&angles)[2],
                                                const Activation* w, float2 (&of_w)[2][CHUNKS], unsigned half,
                                                unsigned first, unsigned end) {
    const Half<CHUNKS> of_a(w, half), of_b(w + half, half);
    for (unsigned head = first + threadIdx.x / WARP_LANES; head < end; head += blockDim.x / WARP_LANES) {
        const Activation *x = token.raw + head * 2 * half, *dy = token.d_ready + head * 2 * half;
        Activation* dx = token.d_raw + head * 2 * half;
        const Half<CHUNKS> a(x, half), b(x + half, half), dy1(dy, half), dy2(dy + half, half);
        const float scale = token.rstd[head];
        // Turned back first, then through the norm.
        float2 da[CHUNKS], db[CHUNKS];
        float product = 0.0f;
        UNROLL for (unsigned i = 0; i < CHUNKS; i++) {
            const float2 c = angles[0].of[i], s = angles[1].of[i], one = dy1.of[i], two = dy2.of[i];
            da[i] = {one.x * c.x + two.x * s.x, one.y * c.y + two.y * s.y};
            db[i] = {two.x * c.x - one.x * s.x, two.y * c.y - one.y * s.y};
            product += (da[i].x * of_a.of[i].x * a.of[i].x + da[i].y * of_a.of[i].y * a.of[i].y)
                + (db[i].x * of_b.of[i].x * b.of[i].x + db[i].y * of_b.of[i].y * b.of[i].y);
        }
        const float mean = warp_sum(product) * scale / float(2 * half);
        UNROLL for (unsigned i = 0; i < CHUNKS; i++) {
            const float2 n = {a.of[i].x * scale, a.of[i].y * scale}, m = {b.of[i].x * scale, b.of[i].y * scale};
            of_w[0][i].x += da[i].x * n.x;
            of_w[0][i].y += da[i].y * n.y;
            of_w[1][i].x += db[i].x * m.x;
            of_w[1][i].y += db[i].y * m.y;
            write2(dx, a.column(i), half, {scale * (da[i].x * of_a.of[i].x - n.x * mean),
                                           scale * (da[i].y * of_a.of[i].y - n.y * mean)});
            write2(dx + half, a.column(i), half, {scale * (db[i].x * of_b.of[i].x - m.x * mean),
                                                  scale * (db[i].y * of_b.of[i].y - m.y * mean)});
        }
    }
}

// What turn_back reads, and where what it makes goes.
template <class Activation>
struct Back {
    const Activation *d_ready, *raw, *q_norm, *k_norm;
    const float *cos, *sin;
    const unsigned* positions;
    const float* rstd;
    Activation* d_raw;
    float* shares;
};

// The gradients of turn: into d_raw those of the heads' raw values, and into shares [blocks, 2 head_dim] those of the
// two norms' weights over this block's tokens, every gridDim.x-th. Memory: [warps, 2 head_dim] floats.
template <unsigned CHUNKS, class Activation>
__device__ __forceinline__ void turn_back(const Back<Activation>& of, const Layout& at, unsigned tokens) {
    BLOCK_MEMORY(float, room);
    const unsigned warp = threadIdx.x / WARP_LANES, warps = blockDim.x / WARP_LANES, half = at.head_dim / 2;
    // Of the queries' norm and of the keys'.
    float2 of_w[2][2][CHUNKS] = {};
    for (size_t number = blockIdx.x; number < tokens; number += gridDim.x) {
        const size_t angle = size_t(of.positions[number]) * half, ready = number * at.normed;
        const Half<CHUNKS> angles[2] = {{of.cos + angle, half}, {of.sin + angle, half}};
        const Token<Activation> token{of.rstd + ready, of.raw + number * at.width, of.d_ready + ready * at.head_dim,
                                      of.d_raw + number * at.width};
        turn_heads_back(token, angles, of.q_norm, of_w[0], half, 0, at.queries);
        turn_heads_back(token, angles, of.k_norm, of_w[1], half, at.queries, at.normed);
    }
    UNROLL for (unsigned kind = 0; kind < 2; kind++)
        UNROLL for (unsigned i = 0; i < CHUNKS; i++) {
            float* mine = room + (warp * 2 + kind) * at.head_dim;
            write2(mine, Half<CHUNKS>::column(i), half, of_w[kind][0][i]);
            write2(mine + half, Half<CHUNKS>::column(i), half, of_w[kind][1][i]);
        }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < 2 * at.head_dim; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned from = 0; from < warps; from++) sum += room[from * 2 * at.head_dim + i];
        of.shares[size_t(blockIdx.x) * 2 * at.head_dim + i] = sum;
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
        const Back<Activation> of{d_ready, raw, q_norm, k_norm, cos, sin, positions, rstd, d_raw, shares};      \
        if (head_dim / 2 <= CHUNK)                                                                              \
            turn_back<1>(of, at, tokens);                                                                       \
        else                                                                                                    \
            turn_back<MOST_CHUNKS>(of, at, tokens);                                                             \
    }                                                                                                           \
    EXPORT(name)
TURN_BACK(turn_back_f32, float)
TURN_BACK(turn_back_bf16, __nv_bfloat16)
