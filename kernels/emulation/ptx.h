// The instructions of PTX that nvcc makes of the kernels, on the host: what is compiled for a card is carried out as it
// stands, one instruction a line (xtask's ptx.rs writes the lines). What is not here does not compile.
//
// An instruction is a function of its name without types, which are its template's: `mul.wide.u32` is
// `op_mul_wide<u32>`. The source is the PTX ISA, "Instruction Set".
#pragma once

#include "emulate.h"
#include "emulate_mma.h"

namespace ptx {

using pred = bool;
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;
using f32 = float;
using f64 = double;
using bf16 = __nv_bfloat16;
struct bf16x2;

#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// A number written in an instruction, which is of any type.
using Written = long long;

// Operands in braces: registers, or what is written.
template <class... V>
std::tuple<V...> all(V&&... operands) {
    return {std::forward<V>(operands)...};
}

// What an instruction's type must be where its function is written for such alone.
template <class T>
concept Float = std::is_floating_point_v<T>;
template <class T>
concept Integer = std::is_integral_v<T>;

// An operand as a value of the instruction's type: the same bits, or the lower ones.
template <class T, class V>
T as(V value) {
    if constexpr (std::is_same_v<V, Written> || std::is_same_v<V, T>) return static_cast<T>(value);
    else if constexpr (sizeof(V) == sizeof(T)) return std::bit_cast<T>(value);
    else {
        static_assert(sizeof(V) > sizeof(T) && std::is_integral_v<V> && std::is_integral_v<T>);
        return static_cast<T>(value);
    }
}

// A value into a register: its bits, spread to the register's width by the value's sign.
template <class T, class D>
void set(D& to, T value) {
    if constexpr (sizeof(D) == sizeof(T)) to = std::bit_cast<D>(value);
    else {
        static_assert(sizeof(D) > sizeof(T) && std::is_integral_v<T>);
        to = static_cast<D>(value);
    }
}

inline f32 flushed(f32 x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// ---- moves and choices ----

template <class T, class D, class A>
void op_mov(D& to, A a) {
    set(to, as<T>(a));
}
// The halves of a value in two registers, the lower one first.
template <class T, class A>
void op_mov(std::tuple<u32&, u32&> to, A a) {
    const u64 whole = as<u64>(a);
    std::get<0>(to) = whole;
    std::get<1>(to) = whole >> 32;
}
template <class T, class D, class L, class H>
void op_mov(D& to, std::tuple<L, H> halves) {
    const u64 low = as<u32, std::decay_t<L>>(std::get<0>(halves)), high = as<u32, std::decay_t<H>>(std::get<1>(halves));
    set(to, low | high << 32);
}
template <class T, class D, class A, class B>
void op_selp(D& to, A a, B b, bool first) {
    set(to, first ? as<T>(a) : as<T>(b));
}
template <class T, class D, class A>
void op_cvta_to_global(D& to, A a) {
    set(to, as<T>(a));
}

// ---- arithmetic ----

#define UNARY(name, result) \
    template <class T, class D, class A> \
    void op_##name(D& to, A of_a) { \
        const T a = as<T>(of_a); \
        set(to, T(result)); \
    }
#define BINARY(name, result) \
    template <class T, class D, class A, class B> \
    void op_##name(D& to, A of_a, B of_b) { \
        const T a = as<T>(of_a), b = as<T>(of_b); \
        set(to, T(result)); \
    }

BINARY(add, a + b)
BINARY(add_rn, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(mul_rn, a * b)
BINARY(mul_lo, a * b)
BINARY(div_rn, a / b)
BINARY(and, a & b)
BINARY(or, a | b)
BINARY(xor, a ^ b)
// Of a number and none it is the number; -0 is less than +0.
BINARY(min, a < b || b != b || (a == b && std::signbit(a)) ? a : b)
BINARY(max, a > b || b != b || (a == b && !std::signbit(a)) ? a : b)
UNARY(neg, -a)
UNARY(not, a ^ T(-1))
UNARY(rcp_rn, 1 / a)
UNARY(sqrt_rn, std::sqrt(a))
UNARY(rsqrt_approx, 1 / std::sqrt(a))
UNARY(ex2_approx_ftz, flushed(std::exp2(flushed(a))))

template <Float T, class D, class A>
void op_abs(D& to, A a) {
    set(to, std::fabs(as<T>(a)));
}
// The upper half of the reciprocal of a float64's upper half; what is not normal is 0.
template <class T, class D, class A>
void op_rcp_approx_ftz(D& to, A a) {
    static_assert(std::is_same_v<T, f64>);
    auto upper = [](f64 x) {
        const f64 half = std::bit_cast<f64>(std::bit_cast<u64>(x) >> 32 << 32);
        return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0, x) : half;
    };
    set(to, upper(1 / upper(as<f64>(a))));
}

template <class T, class D, class A, class B>
void op_div(D& to, A a, B b, HERE) {
    if (!as<T>(b)) emulate::fail(file, line, "divides by nothing");
    set(to, T(as<T>(a) / as<T>(b)));
}
template <class T, class D, class A, class B>
void op_rem(D& to, A a, B b, HERE) {
    if (!as<T>(b)) emulate::fail(file, line, "divides by nothing");
    set(to, T(as<T>(a) % as<T>(b)));
}
template <class T, class D, class A, class B, class C>
void op_mad_lo(D& to, A a, B b, C c) {
    set(to, T(as<T>(a) * as<T>(b) + as<T>(c)));
}
template <class T, class D, class A, class B>
void op_mul_wide(D& to, A a, B b) {
    using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, s32, u32>,
                                    std::conditional_t<std::is_signed_v<T>, s64, u64>>;
    set(to, Wide(Wide(as<T>(a)) * Wide(as<T>(b))));
}
template <class T, class D, class A, class B, class C>
void op_fma_rn(D& to, A a, B b, C c) {
    set(to, T(std::fma(as<T>(a), as<T>(b), as<T>(c))));
}
// Rounded down: the sum of a product, exact in float64, and c, with what that sum left out.
template <class T, class D, class A, class B, class C>
void op_fma_rm(D& to, A a, B b, C c) {
    static_assert(std::is_same_v<T, f32>);
    const f64 product = f64(as<f32>(a)) * as<f32>(b), more = as<f32>(c), sum = product + more;
    const f64 of_more = sum - product, left = (product - (sum - of_more)) + (more - of_more);
    f32 near = static_cast<f32>(sum);
    if (near > sum || (near == sum && left < 0)) near = std::nextafter(near, -INFINITY);
    set(to, near);
}

// ---- bits ----

// By the width or more, all are gone.
template <class T, class D, class A, class B>
void op_shl(D& to, A a, B by) {
    set(to, as<u32>(by) < 8 * sizeof(T) ? T(as<T>(a) << as<u32>(by)) : T(0));
}
template <class T, class D, class A, class B>
void op_shr(D& to, A a, B by) {
    const T value = as<T>(a);
    const T gone = std::is_signed_v<T> && value < T(0) ? T(-1) : T(0);
    set(to, as<u32>(by) < 8 * sizeof(T) ? T(value >> as<u32>(by)) : gone);
}
// The lower bits of a, so many, in place of b's at a position.
template <class T, class D, class A, class B, class P, class L>
void op_bfi(D& to, A a, B b, P position, L length) {
    const u32 from = as<u32>(position) & 255, bits = as<u32>(length) & 255, width = 8 * sizeof(T);
    const T ones = bits < width ? (T(1) << bits) - 1 : ~T(0), mask = from < width ? ones << from : 0;
    const T placed = from < width ? as<T>(a) << from : 0;
    set(to, T((placed & mask) | (as<T>(b) & ~mask)));
}

// ---- comparisons: of no number all but those ending in u (and neu) are false ----

#define COMPARISON(name, holds) \
    template <class T, class A, class B> \
    void op_setp_##name(bool& to, A of_a, B of_b) { \
        const T a = as<T>(of_a), b = as<T>(of_b); \
        to = holds; \
    }
COMPARISON(eq, a == b)
COMPARISON(ne, a != b && a == a && b == b)
COMPARISON(lt, a < b)
COMPARISON(le, a <= b)
COMPARISON(gt, a > b)
COMPARISON(ge, a >= b)
COMPARISON(equ, !(a < b || a > b))
COMPARISON(neu, a != b)
COMPARISON(ltu, !(a >= b))
COMPARISON(leu, !(a > b))
COMPARISON(gtu, !(a <= b))
COMPARISON(geu, !(a < b))

// ---- conversions ----

template <class To, class From, class D, class A>
void op_cvt(D& to, A a) {
    if constexpr (std::is_same_v<From, bf16>) set(to, __bfloat162float(as<bf16>(a)));
    else {
        // From a number with a fraction to one without, the instruction says how it is rounded.
        static_assert(Float<To> || Integer<From>);
        set(to, static_cast<To>(as<From>(a)));
    }
}
template <class To, class From, class D, class A>
void op_cvt_rn(D& to, A a) {
    static_assert(std::is_same_v<To, bf16> || Float<To>);
    if constexpr (std::is_same_v<To, bf16>) set(to, __float2bfloat16_rn(as<f32>(a)).bits);
    else set(to, static_cast<To>(as<From>(a)));
}
// The first in the upper half.
template <class To, class From, class D, class A, class B>
void op_cvt_rn(D& to, A high, B low) {
    static_assert(std::is_same_v<To, bf16x2>);
    set(to, pack(as<f32>(low), as<f32>(high)));
}
// Between 0 and 1; no number is 0.
template <class To, class From, class D, class A>
void op_cvt_sat(D& to, A a) {
    static_assert(std::is_same_v<To, f32> && std::is_same_v<From, f32>);
    const f32 x = as<f32>(a);
    set(to, x > 0 ? std::fmin(x, 1.0f) : 0.0f);
}

// ---- memory ----

template <class A>
u64 at(A address, long long offset) {
    return address + offset;
}
// The block's memory begins at 0 of its own addresses.
constexpr u32 block_memory = 0;

template <class T>
T* shared(u64 address, size_t bytes, const char* file, int line) {
    unsigned char* place = emulate::self->shared + static_cast<u32>(address);
    if (emulate::block_offset(place, bytes, file, line) % bytes)
        emulate::fail(file, line, "the block's memory is touched at no multiple of what is touched");
    return reinterpret_cast<T*>(place);
}
template <class T>
T* global(u64 address, size_t bytes, const char* file, int line) {
    if (address % bytes) emulate::fail(file, line, "memory is touched at no multiple of what is touched");
    return reinterpret_cast<T*>(address);
}

template <class T, class... D>
void load(std::tuple<D&...> to, const T* from) {
    std::apply([&](D&... each) { (set(each, *from++), ...); }, to);
}
template <class T, class... V>
void store(T* to, std::tuple<V...> from) {
    std::apply([&](const auto&... each) { ((*to++ = as<T>(each)), ...); }, from);
}

#define MEMORY(space) \
    template <class T, class D> \
    void op_ld_##space(D& to, u64 from, HERE) { \
        set(to, *space<T>(from, sizeof(T), file, line)); \
    } \
    template <class T, class V> \
    void op_st_##space(u64 to, V value, HERE) { \
        *space<T>(to, sizeof(T), file, line) = as<T>(value); \
    } \
    template <class T, class... D> \
    void op_ld_##space##_v2(std::tuple<D&...> to, u64 from, HERE) { \
        load(to, space<T>(from, 2 * sizeof(T), file, line)); \
    } \
    template <class T, class... V> \
    void op_st_##space##_v2(u64 to, std::tuple<V...> values, HERE) { \
        store(space<T>(to, 2 * sizeof(T), file, line), values); \
    } \
    template <class T, class... D> \
    void op_ld_##space##_v4(std::tuple<D&...> to, u64 from, HERE) { \
        load(to, space<T>(from, 4 * sizeof(T), file, line)); \
    } \
    template <class T, class... V> \
    void op_st_##space##_v4(u64 to, std::tuple<V...> values, HERE) { \
        store(space<T>(to, 4 * sizeof(T), file, line), values); \
    }
MEMORY(global)
MEMORY(shared)

template <class T, class D, class A>
void op_ld_param(D& to, A parameter) {
    set(to, as<T>(parameter));
}
template <class T, class D, class V>
void op_atom_shared_add(D& to, u64 place, V value, HERE) {
    set(to, atomicAdd(shared<T>(place, sizeof(T), file, line), as<T>(value)));
}
template <class T, class D, class V>
void op_atom_shared_or(D& to, u64 place, V value, HERE) {
    set(to, atomicOr(shared<T>(place, sizeof(T), file, line), as<T>(value)));
}

// ---- what threads do together ----

// More threads than a kernel was compiled for are not launched.
inline void at_most(unsigned x, unsigned y, unsigned z, HERE) {
    const emulate::Dim& are = blockDim;
    if (are.x * are.y * are.z > x * y * z) emulate::fail(file, line, "was compiled for fewer threads (.maxntid)");
}
inline void op_bar_sync(Written which, HERE) {
    if (which) emulate::fail(file, line, "barriers but the first are not emulated");
    emulate::barrier(file, line);
}
inline void op_bar_warp_sync(Written mask, HERE) { emulate::exchange(static_cast<u32>(mask), "", 0, file, line); }

// A value of another lane, and whether that one is within the limits `within` sets (PTX ISA, "shfl.sync").
template <class T, class D>
void shuffle(D& to, bool* found, u32 value, long long from, bool is_within, u32 mask, const char* file, int line) {
    const unsigned lane = emulate::self->lane;
    set(to, emulate::shuffle(mask, value, is_within ? static_cast<unsigned>(from) : lane, file, line));
    if (found) *found = is_within;
}
inline unsigned last_lane(u32 within) {
    const u32 segment = within >> 8 & 31;
    return (emulate::self->lane & segment) | (within & 31 & ~segment);
}
#define SHUFFLE(name, other, is_within) \
    template <class T, class D, class V, class B, class C, class M> \
    void shuffle_##name(D& to, bool* found, V value, B of_by, C of_within, M mask, const char* file, int line) { \
        const long long own = emulate::self->lane, by = as<u32>(of_by) & 31, last = last_lane(as<u32>(of_within)); \
        const long long segment = as<u32>(of_within) >> 8 & 31, from = other; \
        (void)segment; \
        shuffle<T>(to, found, as<u32>(value), from, is_within, as<u32>(mask), file, line); \
    } \
    template <class T, class D, class V, class B, class C, class M> \
    void op_shfl_sync_##name(D& to, V value, B by, C within, M mask, HERE) { \
        shuffle_##name<T>(to, nullptr, value, by, within, mask, file, line); \
    } \
    template <class T, class D, class V, class B, class C, class M> \
    void op_shfl_sync_##name(std::tuple<D&, bool&> to, V value, B by, C within, M mask, HERE) { \
        shuffle_##name<T>(std::get<0>(to), &std::get<1>(to), value, by, within, mask, file, line); \
    }
SHUFFLE(bfly, own ^ by, from <= last)
SHUFFLE(up, own - by, from >= last)
SHUFFLE(down, own + by, from <= last)
SHUFFLE(idx, (own & segment) | (by & ~segment), from <= last)

using Four = std::tuple<u32&, u32&, u32&, u32&>;
using Sums = std::tuple<f32&, f32&, f32&, f32&>;

template <class, class, class, class>
void op_mma_sync_aligned_m16n8k16_row_col(Sums to, Four a, std::tuple<u32&, u32&> b, Sums c, HERE) {
    auto [c0, c1, c2, c3] = c;
    auto [a0, a1, a2, a3] = a;
    f32 sums[4] = {c0, c1, c2, c3};
    emulate::multiply(sums, {a0, a1, a2, a3}, std::get<0>(b), std::get<1>(b), file, line);
    to = std::tie(sums[0], sums[1], sums[2], sums[3]);
}
inline void load_matrices(Four to, u64 row, bool transposed, const char* file, int line) {
    unsigned got[4];
    emulate::load_matrices(got, shared<u32>(row, 16, file, line), transposed, file, line);
    to = std::tie(got[0], got[1], got[2], got[3]);
}
template <class>
void op_ldmatrix_sync_aligned_m8n8_x4_shared(Four to, u64 row, HERE) {
    load_matrices(to, row, false, file, line);
}
template <class>
void op_ldmatrix_sync_aligned_m8n8_x4_trans_shared(Four to, u64 row, HERE) {
    load_matrices(to, row, true, file, line);
}

inline void copy(u64 to, u64 from, size_t bytes, size_t given, const char* file, int line) {
    if (given != 0 && given != bytes) emulate::fail(file, line, "a copy of a part is not emulated");
    emulate::copy(shared<u32>(to, bytes, file, line), reinterpret_cast<const void*>(from), bytes, given, file, line);
}
template <class G>
void op_cp_async_ca_shared_global(u64 to, u64 from, Written bytes, G given, HERE) {
    copy(to, from, bytes, as<u32>(given), file, line);
}
template <class G>
void op_cp_async_cg_shared_global_L2__128B(u64 to, u64 from, Written bytes, G given, HERE) {
    if (bytes != 16) emulate::fail(file, line, "such a copy is one of 16 bytes");
    copy(to, from, bytes, as<u32>(given), file, line);
}
inline void op_cp_async_commit_group() { emulate::commit_copies(); }
inline void op_cp_async_wait_group(Written left) { emulate::wait_for_copies(left); }

#undef HERE
#undef UNARY
#undef BINARY
#undef COMPARISON
#undef MEMORY
#undef SHUFFLE

}  // namespace ptx
