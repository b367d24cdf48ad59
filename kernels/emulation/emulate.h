// What a kernel's source needs of CUDA, on the host: the words of the language, and a block's threads as
// fibers that give way to each other at barriers and warp operations only (blocks.cpp).
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

namespace emulate {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

// Where a kernel's buffers lie: each ends where a page begins that nobody may touch.
struct Buffer {
    const char* name;
    unsigned char* start;
    size_t bytes;
};

// One launch. `order` 0 runs threads and blocks forwards, 1 backwards, others shuffled by that seed. Of the blocks so many
// of the first and of the last are run; all where `few` is 0.
struct Launch {
    Dim blocks, threads;
    size_t shared_bytes;
    uint64_t order;
    const Buffer* buffers;
    size_t buffer_count;
    char* complaint;
    size_t complaint_bytes;
    unsigned few;
};

// The thread that runs.
struct Self {
    Dim thread, block, blocks, threads;
    unsigned char* shared;
    unsigned lane;
};
extern Self* self;

// Ends the launch with a complaint.
[[noreturn]] void fail(const char* file, int line, const char* what);
// Waits for all threads of the block that have not ended.
void barrier(const char* file, int line);
// Gives bytes to the lanes of `mask`; what it returns has those of each of the 32 lanes.
constexpr size_t LANE_BYTES = 32;
using Lanes = unsigned char[32][LANE_BYTES];
const Lanes* exchange(unsigned mask, const void* bytes, size_t size, const char* file, int line);

// Runs `body` once for every thread of every block. Returns whether nothing was found.
bool run(const Launch& launch, void (*body)(void*), void* context);

template <class... A>
bool launch(void (*kernel)(A...), const Launch& launch, void* const* arguments) {
    struct Call {
        void (*kernel)(A...);
        void* const* arguments;
    } call{kernel, arguments};
    auto body = [](void* context) {
        auto& call = *static_cast<Call*>(context);
        [&]<size_t... I>(std::index_sequence<I...>) {
            call.kernel(*static_cast<A*>(call.arguments[I])...);
        }(std::index_sequence_for<A...>{});
    };
    return run(launch, body, &call);
}

// The kind of a parameter in a letter or two: what is read (r) or written (w), and its elements.
template <class T>
constexpr const char* KIND = "?";
template <>
inline constexpr const char* KIND<float> = "f";
template <>
inline constexpr const char* KIND<double> = "d";
template <>
inline constexpr const char* KIND<unsigned> = "u";

struct Registered {
    const char* name;
    void (*signature)(char* to, size_t bytes);
    bool (*entry)(const Launch&, void* const*);
    const Registered* next;
};
// The kernels of this program.
extern const Registered* registered;

struct Registration : Registered {
    Registration(const char* name, void (*signature)(char*, size_t), bool (*entry)(const Launch&, void* const*))
        : Registered{name, signature, entry, registered} {
        registered = this;
    }
};

template <class T>
T from_lane(const Lanes* lanes, unsigned lane) {
    T value;
    std::memcpy(&value, (*lanes)[lane], sizeof value);
    return value;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned from, const char* file, int line) {
    static_assert(sizeof(T) <= LANE_BYTES);
    const Lanes* lanes = exchange(mask, &value, sizeof value, file, line);
    if (!(mask >> from & 1)) fail(file, line, "a lane reads from one that its mask leaves out");
    return from_lane<T>(lanes, from);
}

}  // namespace emulate

#define threadIdx (emulate::self->thread)
#define blockIdx (emulate::self->block)
#define blockDim (emulate::self->threads)
#define gridDim (emulate::self->blocks)

#define EMULATED_CHECK(holds, what) \
    do { \
        if (!(holds)) emulate::fail(__FILE__, __LINE__, what); \
    } while (false)

#define __syncthreads() emulate::barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
    emulate::shuffle(mask, value, (emulate::self->lane ^ (bits)) & 31, __FILE__, __LINE__)
#define __shfl_sync(mask, value, from) \
    emulate::shuffle(mask, value, (from) & 31, __FILE__, __LINE__)
#define __syncwarp() emulate::exchange(0xffffffff, "", 0, __FILE__, __LINE__)
// From a lane further down; the lowest have their own.
#define __shfl_up_sync(mask, value, by) \
    emulate::shuffle(mask, value, emulate::self->lane - (emulate::self->lane < (by) ? 0 : (by)), __FILE__, __LINE__)

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
using std::isfinite;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
template <class T>
T atomicAdd(T* to, T value) {
    T before = *to;
    *to = before + value;
    return before;
}
inline unsigned atomicOr(unsigned* to, unsigned bits) {
    unsigned before = *to;
    *to = before | bits;
    return before;
}

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// Rounded to nearest, ties to even, as the card does.
struct __nv_bfloat16 {
    uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits = std::bit_cast<uint32_t>(x);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    bits += 0x7fff + (bits >> 16 & 1);
    return {static_cast<uint16_t>(bits >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 x) {
    return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

namespace emulate {

template <>
inline constexpr const char* KIND<const float*> = "rf";
template <>
inline constexpr const char* KIND<float*> = "wf";
template <>
inline constexpr const char* KIND<const double*> = "rd";
template <>
inline constexpr const char* KIND<double*> = "wd";
template <>
inline constexpr const char* KIND<const unsigned*> = "ru";
template <>
inline constexpr const char* KIND<unsigned*> = "wu";
template <>
inline constexpr const char* KIND<const unsigned char*> = "rc";
template <>
inline constexpr const char* KIND<const __nv_bfloat16*> = "rb";
template <>
inline constexpr const char* KIND<__nv_bfloat16*> = "wb";

// The kinds of a kernel's parameters, with commas between.
template <class... A>
void signature(void (*)(A...), char* to, size_t bytes) {
    size_t at = 0;
    for (const char* kind : {KIND<A>...})
        at += std::snprintf(to + at, at < bytes ? bytes - at : 0, "%s%s", at ? "," : "", kind);
}

}  // namespace emulate

// Makes the kernel of this name known to the launcher.
#define EXPORT(name)                                                                             \
    static emulate::Registration registration_of_##name(                                         \
        #name, [](char* to, size_t bytes) { emulate::signature(name, to, bytes); },              \
        [](const emulate::Launch& launch, void* const* arguments) {                              \
            return emulate::launch(name, launch, arguments);                                     \
        });
#define KERNEL static void
// Memory of the block; one pointer a kernel.
#define BLOCK_MEMORY(type, name) type* name = reinterpret_cast<type*>(emulate::self->shared)
