// What the passes of attention share: where things lie, tiles of bfloat16 in the block's memory, and products of
// them on tensor cores with their sums in registers.
//
// A tile is [rows, E] with E the head's size rounded up to 64, 128 or 256, zeros beyond what there is. Its rows are cut
// into chunks of 16 bytes, and chunk c of row r lies at place c ^ (r % 8): eight rows' chunks of one number, as a step
// of ldmatrix reads them, come from different banks.
#pragma once

#include "mma.cuh"

namespace attention {

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * WARP_LANES;
constexpr unsigned CHUNK = 8;
constexpr float LOG2_E = 1.44269504f;

// Heads of a token, and how many query heads of a group a block takes together.
struct Heads {
    unsigned queries, keys, head_dim, together;

    // ready [N, queries + keys, head_dim]; raw [N, queries + 2 keys, head_dim], the values last.
    __device__ unsigned ready_stride() const { return (queries + keys) * head_dim; }
    __device__ unsigned raw_stride() const { return (queries + 2 * keys) * head_dim; }
    __device__ unsigned out_stride() const { return queries * head_dim; }
    __device__ size_t query(size_t token, unsigned head) const { return token * ready_stride() + head * head_dim; }
    __device__ size_t key(size_t token, unsigned head) const { return query(token, queries + head); }
    __device__ size_t value(size_t token, unsigned head) const {
        return token * raw_stride() + (queries + keys + head) * head_dim;
    }
    __device__ size_t out(size_t token, unsigned head) const { return token * out_stride() + head * head_dim; }
};

// A block's part of a packed row: tokens from `first` on, of the row start..end.
struct Tile {
    unsigned start, first, end;
};
__device__ __forceinline__ Tile tile_of(const unsigned* tiles, unsigned at) {
    return {tiles[3 * at], tiles[3 * at + 1], tiles[3 * at + 2]};
}

// Rows of a head in a buffer: where the first begins, from one to the next, how many there are, and their values.
template <class T>
struct Rows {
    T* first;
    unsigned stride, there, width;
};
__device__ __forceinline__ unsigned between(unsigned first, unsigned end, unsigned most) {
    return first < end ? min(end - first, most) : 0;
}

// What a warp of a block of queries has: `rows` tokens of one head, from `first` on.
struct OfWarp {
    unsigned head, first, there;
};
__device__ __forceinline__ OfWarp of_warp(const Tile& tile, const Heads& heads, unsigned rows) {
    const unsigned warp = threadIdx.x / WARP_LANES, blocks = heads.queries / heads.together;
    const unsigned first = tile.first + warp / heads.together * rows;
    return {blockIdx.x % blocks * heads.together + warp % heads.together, first, between(first, tile.end, rows)};
}

// Where a chunk lies in a tile.
template <unsigned E>
__device__ __forceinline__ unsigned place(unsigned row, unsigned chunk) {
    return row * E + (chunk ^ row % 8) * CHUNK;
}
// Where the chunk lies that comes an even number of chunks behind one of the first two: the number's bits are not in
// theirs, so that one place is held and the others follow from it.
__device__ __forceinline__ unsigned beside(unsigned place, unsigned chunks) {
    return (place ^ chunks % 8 * CHUNK) + chunks / 8 * 8 * CHUNK;
}

// Begins to copy rows into a tile; `thread` of so many that do it together.
template <unsigned ROWS, unsigned E, unsigned THREADS>
__device__ __forceinline__ void load(__nv_bfloat16* to, const Rows<const __nv_bfloat16>& from, unsigned thread) {
    constexpr unsigned CHUNKS = E / CHUNK, STEP = THREADS / CHUNKS;
    static_assert(ROWS % STEP == 0);
    const unsigned chunk = thread % CHUNKS;
    const __nv_bfloat16* source = from.first + size_t(thread / CHUNKS) * from.stride + chunk * CHUNK;
    if (from.width % CHUNK == 0) {
        UNROLL for (unsigned step = 0; step < ROWS; step += STEP, source += STEP * from.stride) {
            const unsigned row = step + thread / CHUNKS;
            cp_async<16>(to + place<E>(row, chunk), source, row < from.there && chunk * CHUNK < from.width);
        }
        return;
    }
    for (unsigned row = thread / CHUNKS; row < ROWS; row += STEP, source += STEP * from.stride)
        for (unsigned pair = 0; pair < CHUNK; pair += 2)
            cp_async<4>(to + place<E>(row, chunk) + pair, source + pair,
                        row < from.there && chunk * CHUNK + pair < from.width);
}

// s += a · bᵀ: a [16 M, E] and b [8 N, E] tiles.
template <unsigned M, unsigned N, unsigned E>
__device__ __forceinline__ void add_scores(float (&s)[M][N][4], const __nv_bfloat16* a, const __nv_bfloat16* b) {
    const unsigned lane = threadIdx.x % WARP_LANES;
    const unsigned at_a = place<E>(lane % 16, lane / 16), at_b = place<E>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    UNROLL for (unsigned k = 0; k < E / 16; k++) {
        unsigned of_a[M][4];
        UNROLL for (unsigned m = 0; m < M; m++)
            ldmatrix(of_a[m], a + 16 * m * E + beside(at_a, 2 * k));
        UNROLL for (unsigned n = 0; n < N; n += 2) {
            unsigned of_b[4];
            ldmatrix(of_b, b + 8 * n * E + beside(at_b, 2 * k));
            UNROLL for (unsigned m = 0; m < M; m++) {
                mma(s[m][n], of_a[m], of_b[0], of_b[1]);
                mma(s[m][n + 1], of_a[m], of_b[2], of_b[3]);
            }
        }
    }
}

// sum += p · b: p [16 M, 8 N] as a product has left it, rounded here, b a tile [8 N, E].
template <unsigned M, unsigned N, unsigned E>
__device__ __forceinline__ void add_weighted(float (&sum)[M][E / 8][4], const float (&p)[M][N][4],
                                             const __nv_bfloat16* b) {
    const unsigned lane = threadIdx.x % WARP_LANES, at_b = place<E>(lane % 16, lane / 16);
    UNROLL for (unsigned k = 0; k < N; k += 2) {
        // Two blocks of a product's columns lie over the lanes as one of an operand's k.
        unsigned of_p[M][4];
        UNROLL for (unsigned m = 0; m < M; m++)
            UNROLL for (unsigned i = 0; i < 4; i++)
                of_p[m][i] = pack(p[m][k + i / 2][i % 2 * 2], p[m][k + i / 2][i % 2 * 2 + 1]);
        UNROLL for (unsigned c = 0; c < E / 8; c += 2) {
            unsigned of_b[4];
            ldmatrix_trans(of_b, b + 8 * k * E + beside(at_b, c));
            UNROLL for (unsigned m = 0; m < M; m++) {
                mma(sum[m][c], of_p[m], of_b[0], of_b[1]);
                mma(sum[m][c + 1], of_p[m], of_b[2], of_b[3]);
            }
        }
    }
}

// Writes scale · sum of a warp's [16 M, E] to rows, through a tile that no other warp reads any more.
template <unsigned M, unsigned E>
__device__ __forceinline__ void store(__nv_bfloat16* room, const float (&sum)[M][E / 8][4],
                                      float scale, const Rows<__nv_bfloat16>& to) {
    constexpr unsigned CHUNKS = E / CHUNK;
    const unsigned lane = threadIdx.x % WARP_LANES;
    __syncwarp();
    UNROLL for (unsigned m = 0; m < M; m++)
        UNROLL for (unsigned c = 0; c < CHUNKS; c++)
            UNROLL for (unsigned half = 0; half < 2; half++) {
                const unsigned row = 16 * m + 8 * half + lane / 4;
                const unsigned two = pack(sum[m][c][2 * half] * scale, sum[m][c][2 * half + 1] * scale);
                copy_words<4>(room + place<E>(row, c) + lane % 4 * 2, &two);
            }
    __syncwarp();
    const bool whole = to.width % CHUNK == 0;
    UNROLL for (unsigned round = 0; round < 16 * M * CHUNKS / WARP_LANES; round++) {
        const unsigned i = round * WARP_LANES + lane, row = i / CHUNKS, chunk = i % CHUNKS;
        if (row >= to.there) continue;
        const __nv_bfloat16* source = room + place<E>(row, chunk);
        __nv_bfloat16* target = to.first + size_t(row) * to.stride + chunk * CHUNK;
        if (whole) {
            if (chunk * CHUNK < to.width) copy_words<16>(target, source);
            continue;
        }
        for (unsigned pair = 0; pair < CHUNK && chunk * CHUNK + pair < to.width; pair += 2)
            copy_words<4>(target + pair, source + pair);
    }
}

// The row of a product's element in this lane, and the column, of which the lane's own part comes first.
__device__ __forceinline__ unsigned row_of(unsigned m, unsigned half) {
    return 16 * m + 8 * half + threadIdx.x % WARP_LANES / 4;
}
__device__ __forceinline__ unsigned first_column() { return threadIdx.x % 4 * 2; }
constexpr __device__ unsigned column_of(unsigned n, unsigned i) { return 8 * n + i % 2; }

// What is beyond a query in scores [16 M, 8 N] of queries from `query` on with keys from `key` on: no weight.
template <unsigned M, unsigned N>
__device__ __forceinline__ void mask_keys(float (&s)[M][N][4], unsigned query, unsigned key) {
    UNROLL for (unsigned m = 0; m < M; m++)
        UNROLL for (unsigned half = 0; half < 2; half++) {
            const int seen = int(query + row_of(m, half)) - int(key + first_column());
            UNROLL for (unsigned n = 0; n < N; n++)
                UNROLL for (unsigned i = 2 * half; i < 2 * half + 2; i++)
                    if (int(column_of(n, i)) > seen) s[m][n][i] = -INFINITY;
        }
}

}  // namespace attention
