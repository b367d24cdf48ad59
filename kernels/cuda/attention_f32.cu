// Attention and its gradients (attention.cu, attention_backward.cu) in float32, for exact comparisons and small models.
//
// A warp has a query, or in the keys' gradients a key: its own rows. It goes over tiles of the rows across, which the
// block's warps share, a lane a row for the scores and a lane every 32nd value for the sums.
#include "attention.cuh"

namespace attention {

constexpr unsigned OWN = 8, ACROSS = WARP_LANES, MOST_VALUES = 256 / WARP_LANES;

// A row's sums: values lane, lane + 32, ...
struct Sums {
    float of[MOST_VALUES];

    // sums = before · sums + Σ weights[j] · rows[j], rows [ACROSS, width + 1].
    __device__ __forceinline__ void add(float before, const float* weights, const float* rows, unsigned width) {
        UNROLL for (unsigned i = 0; i < MOST_VALUES; i++) {
            const unsigned at = i * WARP_LANES + threadIdx.x % WARP_LANES;
            if (at >= width) return;
            of[i] *= before;
            for (unsigned j = 0; j < ACROSS; j++) of[i] = fmaf(weights[j], rows[j * (width + 1) + at], of[i]);
        }
    }
    __device__ __forceinline__ void store(float* to, float scale, unsigned width) const {
        UNROLL for (unsigned i = 0; i < MOST_VALUES; i++) {
            const unsigned at = i * WARP_LANES + threadIdx.x % WARP_LANES;
            if (at < width) to[at] = scale * of[i];
        }
    }
};

// The block's memory: two rows of each warp, two tiles across, two weights of each warp and row across.
struct Room {
    float *own, *across[2], *weights[2];

    __device__ __forceinline__ Room(float* room, unsigned width) {
        const unsigned warp = threadIdx.x / WARP_LANES, tile = ACROSS * (width + 1);
        own = room + 2 * warp * width;
        across[0] = room + 2 * OWN * width;
        across[1] = across[0] + tile;
        weights[0] = across[1] + tile + 2 * warp * ACROSS;
        weights[1] = weights[0] + ACROSS;
    }
};

// A row into a warp's own, zeros where it is not there.
__device__ __forceinline__ void load_own(float* to, const float* from, bool there, unsigned width) {
    for (unsigned i = threadIdx.x % WARP_LANES; i < width; i += WARP_LANES) to[i] = there ? from[i] : 0.0f;
}
// The rows of a tile, by the block; zeros beyond those that are there.
__device__ __forceinline__ void load_across(float* to, const Rows<const float>& from) {
    for (unsigned i = threadIdx.x; i < ACROSS * from.width; i += blockDim.x) {
        const unsigned row = i / from.width, at = i % from.width;
        to[row * (from.width + 1) + at] = row < from.there ? from.first[row * from.stride + at] : 0.0f;
    }
}
__device__ __forceinline__ float dot(const float* a, const float* b, unsigned width) {
    float sum = 0.0f;
    for (unsigned i = 0; i < width; i++) sum = fmaf(a[i], b[i], sum);
    return sum;
}

// What the passes read; memory of all: as Room has it.
struct Inputs {
    const float *ready, *raw, *d_out, *lse, *delta;
    const unsigned* tiles;

    // The keys and values from `key` on.
    __device__ __forceinline__ void load_keys(const Room& room, const Heads& heads, unsigned key, unsigned end,
                                              unsigned head) const {
        const unsigned there = between(key, end, ACROSS), e = heads.head_dim;
        load_across(room.across[0], {ready + heads.key(key, head), heads.ready_stride(), there, e});
        load_across(room.across[1], {raw + heads.value(key, head), heads.raw_stride(), there, e});
    }
};

__device__ __forceinline__ float warp_max(float x) {
    for (unsigned lane = WARP_LANES / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lane));
    return x;
}

// out [N, H, E] and lse [N, H]: a warp a query, a block a head's tile.
__device__ __forceinline__ void forward(const Inputs& in, float* out, float* lse, const Heads& heads, float scale) {
    BLOCK_MEMORY(float, memory);
    const unsigned e = heads.head_dim, lane = threadIdx.x % WARP_LANES, head = blockIdx.x % heads.queries;
    const Room room(memory, e);
    const Tile tile = tile_of(in.tiles, blockIdx.x / heads.queries);
    const unsigned query = tile.first + threadIdx.x / WARP_LANES, last = min(tile.end, tile.first + OWN);
    load_own(room.own, in.ready + heads.query(query, head), query < last, e);
    Sums sums = {};
    float largest = -INFINITY, total = 0.0f;
    for (unsigned key = tile.start; key < last; key += ACROSS) {
        __syncthreads();
        in.load_keys(room, heads, key, last, head / (heads.queries / heads.keys));
        __syncthreads();
        const float* k = room.across[0] + lane * (e + 1);
        // The first key is seen by all, so that the maximum is finite.
        const float s = key + lane <= query ? dot(room.own, k, e) * scale : -INFINITY;
        const float now = fmaxf(largest, warp_max(s)), before = expf(largest - now), p = expf(s - now);
        largest = now;
        total = total * before + warp_sum(p);
        room.weights[0][lane] = p;
        __syncwarp();
        sums.add(before, room.weights[0], room.across[1], e);
    }
    if (query >= last) return;
    sums.store(out + heads.out(query, head), 1.0f / total, e);
    if (lane == 0) lse[size_t(query) * heads.queries + head] = largest + logf(total);
}

// dq into d_ready: blocks as in the forward pass.
__device__ __forceinline__ void queries_backward(const Inputs& in, float* d_ready, const Heads& heads, float scale) {
    BLOCK_MEMORY(float, memory);
    const unsigned e = heads.head_dim, lane = threadIdx.x % WARP_LANES, head = blockIdx.x % heads.queries;
    const Room room(memory, e);
    const Tile tile = tile_of(in.tiles, blockIdx.x / heads.queries);
    const unsigned query = tile.first + threadIdx.x / WARP_LANES, last = min(tile.end, tile.first + OWN);
    const size_t of_query = size_t(query) * heads.queries + head;
    load_own(room.own, in.ready + heads.query(query, head), query < last, e);
    load_own(room.own + e, in.d_out + heads.out(query, head), query < last, e);
    const float lse = query < last ? in.lse[of_query] : 0.0f, delta = query < last ? in.delta[of_query] : 0.0f;
    Sums dq = {};
    for (unsigned key = tile.start; key < last; key += ACROSS) {
        __syncthreads();
        in.load_keys(room, heads, key, last, head / (heads.queries / heads.keys));
        __syncthreads();
        const float *k = room.across[0] + lane * (e + 1), *v = room.across[1] + lane * (e + 1);
        const float p = key + lane <= query ? expf(dot(room.own, k, e) * scale - lse) : 0.0f;
        room.weights[0][lane] = p * (dot(room.own + e, v, e) - delta);
        __syncwarp();
        dq.add(1.0f, room.weights[0], room.across[0], e);
    }
    if (query < last) dq.store(d_ready + heads.query(query, head), scale, e);
}

// dk into d_ready, dv into d_raw: a warp a key, a block a key head's tile, over the queries of its group.
__device__ __forceinline__ void keys_backward(const Inputs& in, float* d_ready, float* d_raw, const Heads& heads,
                                              float scale) {
    BLOCK_MEMORY(float, memory);
    const unsigned e = heads.head_dim, lane = threadIdx.x % WARP_LANES, key_head = blockIdx.x % heads.keys;
    const unsigned group = heads.queries / heads.keys;
    const Room room(memory, e);
    const Tile tile = tile_of(in.tiles, blockIdx.x / heads.keys);
    const unsigned key = tile.first + threadIdx.x / WARP_LANES;
    load_own(room.own, in.ready + heads.key(key, key_head), key < tile.end, e);
    load_own(room.own + e, in.raw + heads.value(key, key_head), key < tile.end, e);
    Sums dk = {}, dv = {};
    for (unsigned head = key_head * group; head < (key_head + 1) * group; head++)
        for (unsigned first = tile.first; first < tile.end; first += ACROSS) {
            const unsigned there = between(first, tile.end, ACROSS), query = first + lane;
            __syncthreads();
            load_across(room.across[0], {in.ready + heads.query(first, head), heads.ready_stride(), there, e});
            load_across(room.across[1], {in.d_out + heads.out(first, head), heads.out_stride(), there, e});
            __syncthreads();
            const float *q = room.across[0] + lane * (e + 1), *d_out = room.across[1] + lane * (e + 1);
            float p = 0.0f, ds = 0.0f;
            if (query < tile.end && key <= query) {
                const size_t of_query = size_t(query) * heads.queries + head;
                p = expf(dot(room.own, q, e) * scale - in.lse[of_query]);
                ds = p * (dot(room.own + e, d_out, e) - in.delta[of_query]);
            }
            room.weights[0][lane] = p;
            room.weights[1][lane] = ds;
            __syncwarp();
            dv.add(1.0f, room.weights[0], room.across[1], e);
            dk.add(1.0f, room.weights[1], room.across[0], e);
        }
    if (key >= tile.end) return;
    dk.store(d_ready + heads.key(key, key_head), scale, e);
    dv.store(d_raw + heads.value(key, key_head), 1.0f, e);
}

}  // namespace attention

KERNEL attention_f32(const float* ready, const float* raw, const unsigned* tiles, float* out, float* lse,
                     unsigned queries, unsigned keys, unsigned head_dim, unsigned together, float scale) {
    attention::forward({ready, raw, nullptr, nullptr, nullptr, tiles}, out, lse, {queries, keys, head_dim, together},
                       scale);
}
EXPORT(attention_f32)
KERNEL attention_queries_f32(const float* ready, const float* raw, const float* d_out, const float* lse,
                             const float* delta, const unsigned* tiles, float* d_ready, unsigned queries,
                             unsigned keys, unsigned head_dim, unsigned together, float scale) {
    attention::queries_backward({ready, raw, d_out, lse, delta, tiles}, d_ready, {queries, keys, head_dim, together},
                                scale);
}
EXPORT(attention_queries_f32)
KERNEL attention_keys_f32(const float* ready, const float* raw, const float* d_out, const float* lse,
                          const float* delta, const unsigned* tiles, float* d_ready, float* d_raw, unsigned queries,
                          unsigned keys, unsigned head_dim, unsigned together, float scale) {
    attention::keys_backward({ready, raw, d_out, lse, delta, tiles}, d_ready, d_raw,
                             {queries, keys, head_dim, together}, scale);
}
EXPORT(attention_keys_f32)
