// The gradients of attention (attention.cu) in bfloat16 on tensor cores: FlashAttention-2 (arXiv 2307.08691,
// algorithm 2), with queries' and keys' gradients formed by blocks of their own, so that nothing is summed in an order
// that threads decide.
//
// With s the scaled scores, p = e^(s - lse) and delta = Σ d_out · out of a query: dv = pᵀ · d_out, dp = d_out · vᵀ,
// ds = p · (dp - delta), dq = scale ds · k, dk = scale dsᵀ · q.
#include "attention.cuh"

namespace attention {

// delta [N, H] = Σ d_out · out over a head's values, [N, H, head_dim] both. A warp a head of a token, `count` in all.
template <class Activation>
__device__ __forceinline__ void deltas(const Activation* d_out, const Activation* out, float* delta, unsigned count,
                                       unsigned head_dim) {
    const unsigned at = blockIdx.x * (blockDim.x / WARP_LANES) + threadIdx.x / WARP_LANES;
    if (at >= count) return;
    const size_t first = size_t(at) * head_dim;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % WARP_LANES * 2; i < head_dim; i += 2 * WARP_LANES) {
        const float2 of_d = load2(d_out, first + i), of_out = load2(out, first + i);
        sum += of_d.x * of_out.x + of_d.y * of_out.y;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP_LANES == 0) delta[at] = sum;
}

// What the passes below read.
struct Given {
    const __nv_bfloat16 *ready, *raw, *d_out;
    const float *lse, *delta;
};

constexpr unsigned DQ_KEYS = 32;

// dq into d_ready [N, H + G, head_dim]: a block as in the forward pass. Memory: [2 WARPS 16 M + 4 DQ_KEYS, E] of
// bfloat16.
template <unsigned M, unsigned E>
__device__ __forceinline__ void queries_backward(const Given& given, const unsigned* tiles, __nv_bfloat16* d_ready,
                                                 const Heads& heads, float scale) {
    constexpr unsigned ROWS = 16 * M, KEYS = DQ_KEYS, N = KEYS / 8;
    BLOCK_MEMORY(__nv_bfloat16, room);
    __nv_bfloat16 *q = room + threadIdx.x / WARP_LANES * ROWS * E, *d_out = q + WARPS * ROWS * E;
    __nv_bfloat16* stages = room + 2 * WARPS * ROWS * E;
    const unsigned lane = threadIdx.x % WARP_LANES, e = heads.head_dim;
    const Tile tile = tile_of(tiles, blockIdx.x / (heads.queries / heads.together));
    const OfWarp mine = of_warp(tile, heads, ROWS);
    const unsigned key_head = mine.head / (heads.queries / heads.keys);
    const unsigned last = min(tile.end, tile.first + WARPS / heads.together * ROWS);
    // Keys, then values; the two stages in turn.
    auto load_stage = [&](unsigned key, unsigned stage) {
        const unsigned there = between(key, last, KEYS);
        __nv_bfloat16* to = stages + stage * 2 * KEYS * E;
        const __nv_bfloat16 *k = given.ready + heads.key(key, key_head), *v = given.raw + heads.value(key, key_head);
        load<KEYS, E, THREADS>(to, {k, heads.ready_stride(), there, e}, threadIdx.x);
        load<KEYS, E, THREADS>(to + KEYS * E, {v, heads.raw_stride(), there, e}, threadIdx.x);
        cp_async_commit();
    };
    const size_t ready_at = heads.query(mine.first, mine.head), out_at = heads.out(mine.first, mine.head);
    load<ROWS, E, WARP_LANES>(q, {given.ready + ready_at, heads.ready_stride(), mine.there, e}, lane);
    load<ROWS, E, WARP_LANES>(d_out, {given.d_out + out_at, heads.out_stride(), mine.there, e}, lane);
    load_stage(tile.start, 0);
    float lse_log2[M][2], delta[M][2], sum[M][E / 8][4] = {};
    UNROLL for (unsigned m = 0; m < M; m++)
        UNROLL for (unsigned half = 0; half < 2; half++) {
            const unsigned row = row_of(m, half);
            const size_t at = size_t(mine.first + row) * heads.queries + mine.head;
            // Where no query is, no weight.
            lse_log2[m][half] = row < mine.there ? given.lse[at] * LOG2_E : INFINITY;
            delta[m][half] = row < mine.there ? given.delta[at] : 0.0f;
        }
    for (unsigned key = tile.start, stage = 0; key < last; key += KEYS, stage ^= 1) {
        cp_async_wait<0>();
        // These are there; all have read those of the stage before.
        __syncthreads();
        if (key + KEYS < last) load_stage(key + KEYS, stage ^ 1);
        // None of the warp's queries sees these.
        if (key >= mine.first + ROWS) continue;
        const __nv_bfloat16 *k = stages + stage * 2 * KEYS * E, *v = k + KEYS * E;
        float s[M][N][4] = {}, ds[M][N][4];
        add_scores<M, N, E>(s, q, k);
        if (key + KEYS > tile.first + 1) mask_keys(s, mine.first, key);
        UNROLL for (unsigned m = 0; m < M; m++)
            UNROLL for (unsigned n = 0; n < N; n++)
                UNROLL for (unsigned i = 0; i < 4; i++) {
                    s[m][n][i] = exp2_near(fmaf(s[m][n][i], scale * LOG2_E, -lse_log2[m][i / 2]));
                    ds[m][n][i] = -delta[m][i / 2];
                }
        add_scores<M, N, E>(ds, d_out, v);
        UNROLL for (unsigned m = 0; m < M; m++)
            UNROLL for (unsigned n = 0; n < N; n++)
                UNROLL for (unsigned i = 0; i < 4; i++) ds[m][n][i] *= s[m][n][i];
        add_weighted<M, N, E>(sum, ds, k);
    }
    store<M, E>(q, sum, scale, {d_ready + ready_at, heads.ready_stride(), mine.there, e});
}

// A block of keys and its warps. Two warps share 16 M keys: one forms p and dv, the other dp and dk, and each goes
// through the same products, of other operands.
template <unsigned M, unsigned QUERIES, unsigned E>
struct KeysBackward {
    static constexpr unsigned KEYS = WARPS / 2 * 16 * M, N = QUERIES / 8;
    // Of a stage: queries and gradients [QUERIES, E], lse and delta [QUERIES].
    static constexpr unsigned STAGE = 2 * QUERIES * E + 4 * QUERIES;

    // dk into d_ready [N, H + G, head_dim] and dv into d_raw [N, H + 2 G, head_dim]. Memory: keys and values [2 KEYS,
    // E] of bfloat16, two stages, and p [KEYS, QUERIES] of float32.
    __device__ static __forceinline__ void run(const Given& given, const unsigned* tiles, __nv_bfloat16* d_ready,
                                               __nv_bfloat16* d_raw, const Heads& heads, float scale) {
        BLOCK_MEMORY(__nv_bfloat16, room);
        __nv_bfloat16* stages = room + 2 * KEYS * E;
        float4* p_room = reinterpret_cast<float4*>(stages + 2 * STAGE);
        const unsigned warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, e = heads.head_dim;
        const bool of_values = warp % 2 == 0;
        const unsigned pair = warp / 2, group = heads.queries / heads.keys;
        const Tile tile = tile_of(tiles, blockIdx.x / heads.keys);
        const unsigned key_head = blockIdx.x % heads.keys, there = between(tile.first, tile.end, KEYS);
        const size_t key_at = heads.key(tile.first, key_head), value_at = heads.value(tile.first, key_head);
        load<KEYS, E, THREADS>(room, {given.ready + key_at, heads.ready_stride(), there, e}, threadIdx.x);
        load<KEYS, E, THREADS>(room + KEYS * E, {given.raw + value_at, heads.raw_stride(), there, e}, threadIdx.x);
        load_stage(given, stages, heads, tile, tile.first, key_head * group);
        // p is of keys and queries, dp of values and gradients: a warp only ever reads its own rows of one of them.
        __nv_bfloat16* own = room + (of_values ? 0 : KEYS * E) + pair * 16 * M * E;
        float sum[M][E / 8][4] = {};
        unsigned query = tile.first, head = key_head * group, stage = 0;
        while (head < (key_head + 1) * group) {
            cp_async_wait<0>();
            // These are there; all have read those of the stage before.
            __syncthreads();
            const __nv_bfloat16 *q = stages + stage * STAGE, *d_out = q + QUERIES * E;
            const float* of_query = reinterpret_cast<const float*>(d_out + QUERIES * E) + (of_values ? 0 : QUERIES);
            const unsigned key = tile.first + pair * 16 * M, first = query;
            query += QUERIES;
            if (query >= tile.end) query = tile.first, head++;
            stage ^= 1;
            if (head < (key_head + 1) * group) load_stage(given, stages + stage * STAGE, heads, tile, query, head);
            float s[M][N][4] = {};
            if (!of_values) take_from(s, of_query);
            add_scores<M, N, E>(s, own, of_values ? q : d_out);
            float4* mine = p_room + pair * M * N * WARP_LANES + lane;
            if (of_values) give_weights(s, of_query, mine, scale * LOG2_E, first < key + 16 * M, key, first);
            __syncthreads();
            if (!of_values) take_weights(s, mine);
            add_weighted<M, N, E>(sum, s, of_values ? d_out : q);
        }
        // dv beside the values, dk beside the keys.
        __nv_bfloat16* to = of_values ? d_raw + value_at : d_ready + key_at;
        const unsigned stride = of_values ? heads.raw_stride() : heads.ready_stride(), first = pair * 16 * M;
        const unsigned mine = between(tile.first + first, tile.end, 16 * M);
        store<M, E>(own, sum, of_values ? 1.0f : scale, {to + first * stride, stride, mine, e});
    }

    // Queries from `query` on of a head, beyond the row's end zeros, which add nothing.
    __device__ static __forceinline__ void load_stage(const Given& given, __nv_bfloat16* to, const Heads& heads,
                                                      const Tile& tile, unsigned query, unsigned head) {
        const unsigned there = between(query, tile.end, QUERIES), e = heads.head_dim;
        const __nv_bfloat16 *q = given.ready + heads.query(query, head), *d_out = given.d_out + heads.out(query, head);
        load<QUERIES, E, THREADS>(to, {q, heads.ready_stride(), there, e}, threadIdx.x);
        load<QUERIES, E, THREADS>(to + QUERIES * E, {d_out, heads.out_stride(), there, e}, threadIdx.x);
        float* of_query = reinterpret_cast<float*>(to + 2 * QUERIES * E);
        static_assert(2 * QUERIES <= THREADS);
        if (threadIdx.x < 2 * QUERIES) {
            const unsigned at = threadIdx.x % QUERIES;
            const float* from = threadIdx.x < QUERIES ? given.lse : given.delta;
            cp_async<4>(of_query + threadIdx.x, from + size_t(query + at) * heads.queries + head, at < there);
        }
        cp_async_commit();
    }

    // Of every query's column its delta less.
    __device__ static __forceinline__ void take_from(float (&s)[M][N][4], const float* delta) {
        UNROLL for (unsigned n = 0; n < N; n++) {
            const float2 two = load2(delta, first_column() + column_of(n, 0));
            UNROLL for (unsigned m = 0; m < M; m++) s[m][n][0] = s[m][n][2] = -two.x, s[m][n][1] = s[m][n][3] = -two.y;
        }
    }

    // Scores [16 M keys, QUERIES] to weights, and those to the other warp: a lane of it has the same elements.
    __device__ static __forceinline__ void give_weights(float (&s)[M][N][4], const float* lse, float4* to,
                                                        float scale_log2, bool masked, unsigned key, unsigned query) {
        UNROLL for (unsigned n = 0; n < N; n++) {
            const float2 two = load2(lse, first_column() + column_of(n, 0));
            const float off[2] = {two.x * LOG2_E, two.y * LOG2_E};
            UNROLL for (unsigned m = 0; m < M; m++)
                UNROLL for (unsigned i = 0; i < 4; i++)
                    s[m][n][i] = exp2_near(fmaf(s[m][n][i], scale_log2, -off[i % 2]));
        }
        if (masked) mask_queries(s, key, query);
        UNROLL for (unsigned m = 0; m < M; m++)
            UNROLL for (unsigned n = 0; n < N; n++)
                to[(m * N + n) * WARP_LANES] = {s[m][n][0], s[m][n][1], s[m][n][2], s[m][n][3]};
    }

    // Queries before a key give it no weight.
    __device__ static __forceinline__ void mask_queries(float (&s)[M][N][4], unsigned key, unsigned query) {
        UNROLL for (unsigned m = 0; m < M; m++)
            UNROLL for (unsigned half = 0; half < 2; half++) {
                const int before = int(key + row_of(m, half)) - int(query + first_column());
                UNROLL for (unsigned n = 0; n < N; n++)
                    UNROLL for (unsigned i = 2 * half; i < 2 * half + 2; i++)
                        if (before > int(column_of(n, i))) s[m][n][i] = 0.0f;
            }
    }

    // dp - delta to ds, with the other warp's weights.
    __device__ static __forceinline__ void take_weights(float (&s)[M][N][4], const float4* from) {
        UNROLL for (unsigned m = 0; m < M; m++)
            UNROLL for (unsigned n = 0; n < N; n++) {
                const float4 p = from[(m * N + n) * WARP_LANES];
                s[m][n][0] *= p.x;
                s[m][n][1] *= p.y;
                s[m][n][2] *= p.z;
                s[m][n][3] *= p.w;
            }
    }
};

}  // namespace attention

#define ATTENTION_DELTA(name, Activation)                                                                       \
    KERNEL name(const Activation* d_out, const Activation* out, float* delta, unsigned count,                   \
                unsigned head_dim) {                                                                            \
        attention::deltas(d_out, out, delta, count, head_dim);                                                  \
    }                                                                                                           \
    EXPORT(name)
ATTENTION_DELTA(attention_delta_f32, float)
ATTENTION_DELTA(attention_delta_bf16, __nv_bfloat16)

#define ATTENTION_QUERIES(name, M, E)                                                                           \
    KERNEL __launch_bounds__(attention::THREADS)                                                                \
        name(const __nv_bfloat16* ready, const __nv_bfloat16* raw, const __nv_bfloat16* d_out, const float* lse, \
             const float* delta, const unsigned* tiles, __nv_bfloat16* d_ready, unsigned queries, unsigned keys, \
             unsigned head_dim, unsigned together, float scale) {                                               \
        attention::queries_backward<M, E>({ready, raw, d_out, lse, delta}, tiles, d_ready,                      \
                                          {queries, keys, head_dim, together}, scale);                          \
    }                                                                                                           \
    EXPORT(name)
ATTENTION_QUERIES(attention_queries_bf16_64, 2, 64)
ATTENTION_QUERIES(attention_queries_bf16_128, 2, 128)
ATTENTION_QUERIES(attention_queries_bf16_256, 1, 256)

#define ATTENTION_KEYS(name, M, QUERIES, E)                                                                     \
    KERNEL __launch_bounds__(attention::THREADS)                                                                \
        name(const __nv_bfloat16* ready, const __nv_bfloat16* raw, const __nv_bfloat16* d_out, const float* lse, \
             const float* delta, const unsigned* tiles, __nv_bfloat16* d_ready, __nv_bfloat16* d_raw,           \
             unsigned queries, unsigned keys, unsigned head_dim, unsigned together, float scale) {              \
        attention::KeysBackward<M, QUERIES, E>::run({ready, raw, d_out, lse, delta}, tiles, d_ready, d_raw,     \
                                                    {queries, keys, head_dim, together}, scale);                \
    }                                                                                                           \
    EXPORT(name)
ATTENTION_KEYS(attention_keys_bf16_64, 2, 64, 64)
ATTENTION_KEYS(attention_keys_bf16_128, 2, 64, 128)
// For blocks of at most 99 KiB, as cards of capability 8.6 and 8.9 have them.
ATTENTION_KEYS(attention_keys_bf16_128_lean, 2, 32, 128)
ATTENTION_KEYS(attention_keys_bf16_256, 1, 32, 256)
