// Matrices as GGUF files hold them, widened to what products and the embedding read: blocks of Q8_0, Q4_K and Q6_K as
// ggml lays them out (ggml-common.h), each number by ggml's own operations in their order (ggml-quants.c,
// dequantize_row_q8_0, _q4_K and _q6_K), each of them rounded to float32.
#include "common.cuh"

// IEEE half precision, exactly.
__device__ __forceinline__ float from_half(const unsigned char* at) {
    const unsigned bits = at[0] | unsigned(at[1]) << 8, magnitude = (bits & 0x7fff) << 13;
    // The exponents' biases differ by 112, which brings subnormal ones right too; infinity and NaN stay what they are.
    const float x = magnitude >= 0x0f800000 ? __uint_as_float(magnitude | 0x7f800000)
                                            : __uint_as_float(magnitude) * 0x1p112f;
    return __uint_as_float(__float_as_uint(x) | (bits & 0x8000) << 16);
}

// 32 numbers: d, half precision, and a byte for each, whose product it is. A part of a block: four numbers.
struct Q8_0 {
    static constexpr unsigned VALUES = 32, BYTES = 34, PARTS = 8;

    template <class T>
    __device__ __forceinline__ static void widen(const unsigned char* block, unsigned part, T* y, size_t at) {
        const float d = from_half(block);
        float x[4];
        UNROLL for (unsigned i = 0; i < 4; i++) x[i] = float(static_cast<signed char>(block[2 + 4 * part + i])) * d;
        store4(y, at + 4 * part, {x[0], x[1], x[2], x[3]});
    }
};

// 256 numbers in eight groups of 32: d and a least one, half precision, with six bits of each for every group, and four
// bits a number; two groups share 32 bytes, the first in the lower halves. A part: four bytes, so four numbers of each.
struct Q4_K {
    static constexpr unsigned VALUES = 256, BYTES = 144, PARTS = 32;

    template <class T>
    __device__ __forceinline__ static void widen(const unsigned char* block, unsigned part, T* y, size_t at) {
        const unsigned pair = part / 8, first = part % 8 * 4;
        const unsigned char* q = block + 16 + 32 * pair + first;
        const float d = from_half(block), least = from_half(block + 2);
        UNROLL for (unsigned upper = 0; upper < 2; upper++) {
            const unsigned group = 2 * pair + upper;
            // Products are rounded before they are added: no two operations may become one.
            const float scale = __fmul_rn(d, float(six_bits(block + 4, group, 0)));
            const float shift = __fmul_rn(least, float(six_bits(block + 4, group, 1)));
            float x[4];
            UNROLL for (unsigned i = 0; i < 4; i++) x[i] = __fmul_rn(scale, float(q[i] >> 4 * upper & 15)) - shift;
            store4(y, at + 32 * group + first, {x[0], x[1], x[2], x[3]});
        }
    }

    // Out of twelve bytes a group's scale (0) or what its least number is counted in (1). Of the first four groups they
    // are the lower bits of a byte; of the others four bits are in a half of the last four bytes, and two above those
    // of the group four before.
    __device__ __forceinline__ static unsigned six_bits(const unsigned char* packed, unsigned group, unsigned which) {
        if (group < 4) return packed[4 * which + group] & 63;
        return (packed[4 + group] >> 4 * which & 15) | packed[4 * which + group - 4] >> 6 << 4;
    }
};

// 256 numbers in 16 groups of 16, a signed byte a group and one d in half precision for all: of each number four bits
// in 128 bytes and two in 64 others, from -32 on. A part: four bytes of these, so four numbers in four places.
struct Q6_K {
    static constexpr unsigned VALUES = 256, BYTES = 210, PARTS = 16;

    template <class T>
    __device__ __forceinline__ static void widen(const unsigned char* block, unsigned part, T* y, size_t at) {
        const unsigned side = part / 8, first = part % 8 * 4;
        const unsigned char *low = block + 64 * side + first, *high = block + 128 + 32 * side + first;
        const unsigned char* groups = block + 192 + 8 * side + first / 16;
        const float d = from_half(block + 208);
        UNROLL for (unsigned place = 0; place < 4; place++) {
            const float scale = d * float(static_cast<signed char>(groups[2 * place]));
            float x[4];
            UNROLL for (unsigned i = 0; i < 4; i++) {
                const unsigned four = low[32 * (place % 2) + i] >> 4 * (place / 2) & 15;
                const unsigned two = high[i] >> 2 * place & 3;
                x[i] = scale * float(int(four | two << 4) - 32);
            }
            store4(y, at + 128 * side + 32 * place + first, {x[0], x[1], x[2], x[3]});
        }
    }
};

// y = the numbers of so many blocks: x [blocks, BYTES], y [blocks, VALUES]. A thread a part.
template <class Block, class T>
__device__ __forceinline__ void widen_blocks(const unsigned char* x, T* y, unsigned blocks) {
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x, block = thread / Block::PARTS;
    if (block >= blocks) return;
    Block::widen(x + block * Block::BYTES, thread % Block::PARTS, y, block * Block::VALUES);
}

// y[j] = the row ids[j] of x: x [R, blocks, BYTES], ids [rows], y [rows, blocks, VALUES]. Rows along x, a row's parts
// along y.
template <class Block>
__device__ __forceinline__ void gather_blocks(const unsigned char* x, const unsigned* ids, float* y, unsigned blocks) {
    const unsigned thread = blockIdx.y * blockDim.x + threadIdx.x, block = thread / Block::PARTS;
    if (block >= blocks) return;
    const size_t from = size_t(ids[blockIdx.x]) * blocks + block, to = size_t(blockIdx.x) * blocks + block;
    Block::widen(x + from * Block::BYTES, thread % Block::PARTS, y, to * Block::VALUES);
}

#define QUANTISED(name, Block)                                                                             \
    KERNEL widen_##name##_f32(const unsigned char* x, float* y, unsigned blocks) {                         \
        widen_blocks<Block>(x, y, blocks);                                                                 \
    }                                                                                                      \
    EXPORT(widen_##name##_f32)                                                                             \
    KERNEL widen_##name##_bf16(const unsigned char* x, __nv_bfloat16* y, unsigned blocks) {                \
        widen_blocks<Block>(x, y, blocks);                                                                 \
    }                                                                                                      \
    EXPORT(widen_##name##_bf16)                                                                            \
    KERNEL gather_##name(const unsigned char* x, const unsigned* ids, float* y, unsigned blocks) {         \
        gather_blocks<Block>(x, ids, y, blocks);                                                           \
    }                                                                                                      \
    EXPORT(gather_##name)
QUANTISED(q8_0, Q8_0)
QUANTISED(q4_k, Q4_K)
QUANTISED(q6_k, Q6_K)
