// Causal attention within packed rows, grouped queries, forward, in bfloat16 on tensor cores: FlashAttention-2
// (arXiv 2307.08691, algorithm 1).
//
// A block has a tile of queries, M times 16 rows a warp, and goes over the keys before them. Warps of one block have
// heads of one group, as far as they go into it, which read the same keys and values. Scores stay in registers; what
// is kept of them are each query's maximum and sum.
#include "attention.cuh"

namespace attention {

constexpr unsigned FORWARD_KEYS = 64;

// A warp's queries over the keys so far: out = sum / total, the scores' maximum. Of a row in all four lanes that
// have it, but total is only of this lane's columns.
template <unsigned M, unsigned E>
struct Softmax {
    float sum[M][E / 8][4], total[M][2], largest[M][2];

    // Takes in scores [16 M, 8 N] and leaves e^(scale (score - largest)) in their place.
    template <unsigned N>
    __device__ __forceinline__ void take(float (&s)[M][N][4], float scale_log2) {
        UNROLL for (unsigned m = 0; m < M; m++)
            UNROLL for (unsigned half = 0; half < 2; half++) {
                float now = largest[m][half];
                UNROLL for (unsigned n = 0; n < N; n++)
                    now = fmaxf(now, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
                const float before = exp2_near((largest[m][half] - now) * scale_log2), off = now * scale_log2;
                largest[m][half] = now;
                total[m][half] *= before;
                UNROLL for (unsigned c = 0; c < E / 8; c++) {
                    sum[m][c][2 * half] *= before;
                    sum[m][c][2 * half + 1] *= before;
                }
                UNROLL for (unsigned n = 0; n < N; n++)
                    UNROLL for (unsigned i = 2 * half; i < 2 * half + 2; i++) {
                        s[m][n][i] = exp2_near(fmaf(s[m][n][i], scale_log2, -off));
                        total[m][half] += s[m][n][i];
                    }
            }
    }

    // Divides a row's sum by its total, and returns that.
    __device__ __forceinline__ float finish(unsigned m, unsigned half) {
        float all = total[m][half];
        all += __shfl_xor_sync(ALL_LANES, all, 1);
        all += __shfl_xor_sync(ALL_LANES, all, 2);
        const float one_over = 1.0f / all;
        UNROLL for (unsigned c = 0; c < E / 8; c++) {
            sum[m][c][2 * half] *= one_over;
            sum[m][c][2 * half + 1] *= one_over;
        }
        return all;
    }
};

// out [N, H, head_dim] and lse [N, H] of ready and raw; memory: [WARPS 16 M + 2 FORWARD_KEYS, E] of bfloat16.
template <unsigned M, unsigned E>
__device__ __forceinline__ void forward(const __nv_bfloat16* ready, const __nv_bfloat16* raw, const unsigned* tiles,
                                        __nv_bfloat16* out, float* lse, const Heads& heads, float scale) {
    constexpr unsigned ROWS = 16 * M, KEYS = FORWARD_KEYS;
    BLOCK_MEMORY(__nv_bfloat16, room);
    __nv_bfloat16 *q = room + threadIdx.x / WARP_LANES * ROWS * E, *k = room + WARPS * ROWS * E, *v = k + KEYS * E;
    const Tile tile = tile_of(tiles, blockIdx.x / (heads.queries / heads.together));
    const OfWarp mine = of_warp(tile, heads, ROWS);
    const unsigned key_head = mine.head / (heads.queries / heads.keys), e = heads.head_dim;
    const unsigned last = min(tile.end, tile.first + WARPS / heads.together * ROWS);
    auto load_keys = [&](unsigned key) {
        const __nv_bfloat16* from = ready + heads.key(key, key_head);
        load<KEYS, E, THREADS>(k, {from, heads.ready_stride(), between(key, last, KEYS), e}, threadIdx.x);
        cp_async_commit();
    };
    load<ROWS, E, WARP_LANES>(q, {ready + heads.query(mine.first, mine.head), heads.ready_stride(), mine.there, e},
                              threadIdx.x % WARP_LANES);
    load_keys(tile.start);
    Softmax<M, E> softmax = {};
    for (unsigned m = 0; m < M; m++) softmax.largest[m][0] = softmax.largest[m][1] = -INFINITY;
    for (unsigned key = tile.start; key < last; key += KEYS) {
        cp_async_wait<0>();
        // The keys are there; all have read the values before.
        __syncthreads();
        load<KEYS, E, THREADS>(v, {raw + heads.value(key, key_head), heads.raw_stride(), between(key, last, KEYS), e},
                               threadIdx.x);
        cp_async_commit();
        float s[M][KEYS / 8][4] = {};
        add_scores<M, KEYS / 8, E>(s, q, k);
        // Every query sees the row's first key, so that no maximum stays infinite behind the first keys.
        if (key + KEYS > tile.first + 1) mask_keys(s, mine.first, key);
        cp_async_wait<0>();
        // The values are there; all have read the keys.
        __syncthreads();
        if (key + KEYS < last) load_keys(key + KEYS);
        softmax.take(s, scale * LOG2_E);
        add_weighted<M, KEYS / 8, E>(softmax.sum, s, v);
    }
    UNROLL for (unsigned m = 0; m < M; m++)
        UNROLL for (unsigned half = 0; half < 2; half++) {
            const float total = softmax.finish(m, half);
            const unsigned row = row_of(m, half);
            if (threadIdx.x % 4 == 0 && row < mine.there)
                lse[size_t(mine.first + row) * heads.queries + mine.head]
                    = softmax.largest[m][half] * scale + logf(total);
        }
    const size_t at = heads.out(mine.first, mine.head);
    store<M, E>(q, softmax.sum, 1.0f, {out + at, heads.out_stride(), mine.there, e});
}

}  // namespace attention

#define ATTENTION(name, M, E)                                                                                   \
    KERNEL __launch_bounds__(attention::THREADS)                                                                \
        name(const __nv_bfloat16* ready, const __nv_bfloat16* raw, const unsigned* tiles, __nv_bfloat16* out,   \
             float* lse, unsigned queries, unsigned keys, unsigned head_dim, unsigned together, float scale) {  \
        attention::forward<M, E>(ready, raw, tiles, out, lse, {queries, keys, head_dim, together}, scale);      \
    }                                                                                                           \
    EXPORT(name)
ATTENTION(attention_bf16_64, 2, 64)
ATTENTION(attention_bf16_128, 2, 128)
ATTENTION(attention_bf16_256, 1, 256)
