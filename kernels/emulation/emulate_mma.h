// What `mma.cuh` needs, on the host: products of a warp with their operands laid out over its lanes as PTX lays them
// out (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "ldmatrix"), and copies that arrive
// when they are waited for.
#pragma once

#include "emulate.h"

#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emulate {

// Where a place lies in the block's memory; ends the launch where it lies outside.
size_t block_offset(const void* at, size_t bytes, const char* file, int line);
// A copy to the block's memory by this thread, of zeros where nothing is there; its group is closed by
// commit_copies, and wait_for_copies waits for all groups but so many of the last. It arrives only then, or, in every
// second order of threads, at once: what is wrong with either is seen.
void copy(void* to, const void* from, size_t bytes, bool there, const char* file, int line);
void commit_copies();
void wait_for_copies(unsigned left);

// Two bfloat16 in a register: the one with the lower index in the lower half.
inline float half_of(unsigned pair, unsigned which) {
    return std::bit_cast<float>(which ? pair & 0xffff0000 : pair << 16);
}

// Four 8 x 8 matrices, a lane giving a row: lanes 0 to 7 the first's, and so on. Row r of a matrix goes to lanes 4r
// to 4r + 3, two elements each; transposed, column c goes to lanes 4c to 4c + 3.
inline void load_matrices(unsigned (&to)[4], const void* row, bool transposed, const char* file, int line) {
    constexpr size_t ROW_BYTES = 16;
    if (block_offset(row, ROW_BYTES, file, line) % ROW_BYTES)
        fail(file, line, "a row begins at no multiple of 16 bytes");
    const Lanes& rows = *exchange(0xffffffff, row, ROW_BYTES, file, line);
    const unsigned group = self->lane / 4, pair = self->lane % 4 * 2;
    auto element = [&](unsigned matrix, unsigned row, unsigned column) {
        uint16_t bits;
        std::memcpy(&bits, rows[8 * matrix + row] + 2 * column, sizeof bits);
        return unsigned(bits);
    };
    for (unsigned matrix = 0; matrix < 4; matrix++)
        to[matrix] = transposed ? element(matrix, pair, group) | element(matrix, pair + 1, group) << 16
                                : element(matrix, group, pair) | element(matrix, group, pair + 1) << 16;
}

// d [16, 8] += a [16, 16] · b [16, 8], summed over k in its order. Lane 4g + t has of a the rows g and g + 8 at k =
// 2t, 2t + 1 (registers 0, 1) and 2t + 8, 2t + 9 (2, 3); of b the column g at the same k (0; 1); of d the rows g
// (0, 1) and g + 8 (2, 3) at columns 2t, 2t + 1.
inline void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const char* file, int line) {
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    static_assert(sizeof mine <= LANE_BYTES);
    const Lanes& given = *exchange(0xffffffff, mine, sizeof mine, file, line);
    const unsigned group = self->lane / 4, column = self->lane % 4 * 2;
    auto word = [&](unsigned lane, unsigned which) {
        unsigned word;
        std::memcpy(&word, given[lane] + sizeof word * which, sizeof word);
        return word;
    };
    for (unsigned k = 0; k < 16; k++) {
        const unsigned lane = k % 8 / 2, high = k / 8;
        for (unsigned i = 0; i < 4; i++) {
            const float of_a = half_of(word(4 * group + lane, 2 * high + i / 2), k % 2);
            const float of_b = half_of(word(4 * (column + i % 2) + lane, 4 + high), k % 2);
            d[i] += of_a * of_b;
        }
    }
}

}  // namespace emulate

inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, HERE) {
    emulate::multiply(d, a, b0, b1, file, line);
}
inline void ldmatrix(unsigned (&to)[4], const __nv_bfloat16* row, HERE) {
    emulate::load_matrices(to, row, false, file, line);
}
inline void ldmatrix_trans(unsigned (&to)[4], const __nv_bfloat16* row, HERE) {
    emulate::load_matrices(to, row, true, file, line);
}
template <unsigned BYTES>
void cp_async(void* to, const void* from, bool there, HERE) {
    emulate::copy(to, from, BYTES, there, file, line);
}
inline void cp_async_commit() { emulate::commit_copies(); }
template <unsigned LEFT>
void cp_async_wait() {
    emulate::wait_for_copies(LEFT);
}

inline unsigned pack(float low, float high) {
    return __float2bfloat16_rn(low).bits | unsigned(__float2bfloat16_rn(high).bits) << 16;
}
template <unsigned BYTES>
void copy_words(void* to, const void* from, HERE) {
    if (reinterpret_cast<uintptr_t>(to) % BYTES || reinterpret_cast<uintptr_t>(from) % BYTES)
        emulate::fail(file, line, "words are read or written at no multiple of their size");
    std::memcpy(to, from, BYTES);
}
inline float exp2_near(float x) { return std::exp2(x); }

#undef HERE
