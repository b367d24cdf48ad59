// A driver without a card: the functions of libcuda.so.1 that kernels::card calls, over memory of the host, with the
// kernels run by the emulation. Built as a library of that name (cargo xtask verify), so that what drives a card runs
// as it is: its streams and events, its graphs, its places for what travels, its errors.
//
// Nothing put into a stream is done before somebody waits for it, and then no more than what was waited for takes: what
// needs an event and has none reads what is not there yet. What a call is given is what the CUDA driver's documentation
// says; what that forbids is refused.
#include "driver.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>
#include <sys/mman.h>
#include <unistd.h>

extern "C" bool emulate_signature(const char* name, char* to, size_t bytes);
extern "C" bool emulate_launch(const char* name, const emulate::Launch* launch, void* const* arguments);

namespace driver {

std::recursive_mutex lock;
int lost = SUCCESS;

namespace {

// Memory of the card, each piece between pages that nobody may touch.
struct Piece {
    unsigned char* pages;
    size_t page_bytes, bytes;
};
std::map<uint64_t, Piece> pieces;
size_t taken = 0;
bool started = false;
long long launches = 0;
// While a thread records a graph, what would wait or take memory is forbidden to it (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).
thread_local bool records = false;
std::vector<Stream*> streams;

size_t memory_of_card() { return setting("memory", 8LL << 30); }

// Whole pages of zeros take no memory.
void fill(uint64_t at, unsigned char byte, size_t bytes) {
    const size_t page = sysconf(_SC_PAGESIZE), first = (at + page - 1) / page * page, end = (at + bytes) / page * page;
    if (byte || first >= end) return void(std::memset(reinterpret_cast<void*>(at), byte, bytes));
    std::memset(reinterpret_cast<void*>(at), 0, first - at);
    madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
    std::memset(reinterpret_cast<void*>(end), 0, at + bytes - end);
}

// A kernel, and how much memory of a block it may take.
struct Function {
    std::string name;
    size_t parameters, memory;
};

struct Graph {
    std::vector<Work> works;
};

// Whether no launch came before with this kernel, of this shape, and with these numbers in place of memory.
bool is_new(const Function& function, const emulate::Launch& shape, std::vector<uint64_t> words) {
    static std::set<std::tuple<std::string, unsigned, unsigned, std::vector<uint64_t>>> known;
    for (uint64_t& word : words)
        if (is_on_card(word, 1)) word = 0;
    return known.emplace(function.name, shape.blocks.x, shape.blocks.y, words).second;
}

int run(const Function& function, const emulate::Launch& shape, std::vector<uint64_t> words) {
    std::vector<emulate::Buffer> buffers;
    for (auto& [at, piece] : pieces)
        buffers.push_back({"the card's memory", reinterpret_cast<unsigned char*>(at), piece.bytes});
    char complaint[512] = "";
    emulate::Launch launch = shape;
    launch.few = few();
    if (launch.few && !is_new(function, shape, words)) return SUCCESS;
    launch.buffers = buffers.data();
    launch.buffer_count = buffers.size();
    launch.complaint = complaint;
    launch.complaint_bytes = sizeof complaint;
    std::vector<void*> arguments;
    for (uint64_t& word : words) arguments.push_back(&word);
    if (emulate_launch(function.name.c_str(), &launch, arguments.data())) {
        // A few blocks are held against nothing.
        if (!launch.few) ran(function.name);
        return SUCCESS;
    }
    std::fprintf(stderr, "the kernel %s: %s\n", function.name.c_str(), complaint);
    return LAUNCH_FAILED;
}

// Does what is in a stream up to there, and what that waits for.
int carry_out(Stream& stream, uint64_t until) {
    while (stream.done < until && !lost) {
        Work work = stream.works.front();
        stream.works.pop_front();
        if (work.waits_for) {
            if (int result = carry_out(*work.waits_for, work.until)) return result;
        } else if (int result = work.act()) {
            lost = result;
        }
        stream.done++;
    }
    return lost;
}

}  // namespace

bool is_on_card(uint64_t at, size_t bytes) {
    auto piece = pieces.upper_bound(at);
    if (piece == pieces.begin()) return false;
    --piece;
    return at + bytes <= piece->first + piece->second.bytes;
}

int put(Stream* stream, std::function<int()> act) {
    return put(stream, Work{std::move(act), nullptr, 0});
}

int put(Stream* stream, Work work) {
    if (!stream) return INVALID_HANDLE;
    if (stream->recorded) {
        stream->recorded->push_back(std::move(work));
        return SUCCESS;
    }
    stream->works.push_back(std::move(work));
    stream->given++;
    return SUCCESS;
}

}  // namespace driver

using namespace driver;

#define DRIVER(name, ...) \
    extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)
// A call behind cuInit: one at a time, and none once the card is lost.
#define HOLD \
    std::lock_guard held(lock); \
    if (lost) return lost

DRIVER(cuDriverGetVersion, int* version) {
    *version = setting("version", 13000);
    return SUCCESS;
}
DRIVER(cuInit, unsigned) {
    if (!setting("count", 1)) return NO_DEVICE;
    started = true;
    return SUCCESS;
}
DRIVER(cuDeviceGetCount, int* count) {
    *count = setting("count", 1);
    return started ? SUCCESS : NOT_INITIALIZED;
}
DRIVER(cuDeviceGet, int* device, int ordinal) {
    *device = ordinal;
    return ordinal < setting("count", 1) ? SUCCESS : INVALID_DEVICE;
}
DRIVER(cuDeviceGetName, char* name, int bytes, int) {
    std::snprintf(name, bytes, "emulated card");
    return SUCCESS;
}
DRIVER(cuDeviceGetAttribute, int* value, int which, int) {
    constexpr int MAJOR = 75, MINOR = 76, BLOCK_MEMORY_MOST = 97;
    const int capability = setting("capability", 90);
    switch (which) {
        case MAJOR: *value = capability / 10; return SUCCESS;
        case MINOR: *value = capability % 10; return SUCCESS;
        case BLOCK_MEMORY_MOST: *value = setting("block", 227 << 10); return SUCCESS;
        default: return INVALID_VALUE;
    }
}
DRIVER(cuDevicePrimaryCtxRetain, void** context, int) {
    *context = &started;
    return SUCCESS;
}
DRIVER(cuDevicePrimaryCtxRelease_v2, int) { return SUCCESS; }
DRIVER(cuCtxSetCurrent, void*) { return SUCCESS; }
DRIVER(cuCtxSynchronize) {
    HOLD;
    if (records) return CAPTURE_UNSUPPORTED;
    for (Stream* stream : streams)
        if (int result = carry_out(*stream, stream->given)) return result;
    return SUCCESS;
}

DRIVER(cuMemGetInfo_v2, size_t* free, size_t* total) {
    HOLD;
    *total = memory_of_card();
    *free = *total - std::min(taken, *total);
    return SUCCESS;
}
DRIVER(cuMemAlloc_v2, uint64_t* to, size_t bytes) {
    HOLD;
    if (records) return CAPTURE_UNSUPPORTED;
    if (!bytes) return INVALID_VALUE;
    if (taken + (bytes + 255) / 256 * 256 > memory_of_card()) return OUT_OF_MEMORY;
    // It begins at a multiple of 256 bytes and ends where a page does that nobody may touch.
    const size_t page = sysconf(_SC_PAGESIZE), whole = (bytes + 255) / 256 * 256;
    const size_t inner = (whole + page - 1) / page * page, all = inner + 2 * page;
    void* got = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) return OUT_OF_MEMORY;
    auto* pages = static_cast<unsigned char*>(got);
    if (mprotect(pages + page, inner, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    unsigned char* start = pages + page + inner - whole;
    // What was never written is no number.
    if (!few() && whole <= 1 << 30) std::memset(start, 0xff, whole);
    *to = reinterpret_cast<uint64_t>(start);
    pieces[*to] = {pages, all, whole};
    taken += whole;
    return SUCCESS;
}
DRIVER(cuMemFree_v2, uint64_t at) {
    std::lock_guard held(lock);
    auto piece = pieces.find(at);
    if (piece == pieces.end()) return INVALID_VALUE;
    munmap(piece->second.pages, piece->second.page_bytes);
    taken -= std::min(taken, piece->second.bytes);
    pieces.erase(piece);
    return SUCCESS;
}
DRIVER(cuMemHostAlloc, void** to, size_t bytes, unsigned) {
    HOLD;
    *to = std::malloc(bytes);
    std::memset(*to, 0xff, bytes);
    return SUCCESS;
}
DRIVER(cuMemFreeHost, void* at) {
    std::free(at);
    return SUCCESS;
}

DRIVER(cuMemcpyHtoD_v2, uint64_t to, const void* from, size_t bytes) {
    HOLD;
    if (records) return CAPTURE_UNSUPPORTED;
    if (!is_on_card(to, bytes)) return INVALID_VALUE;
    if (!few()) std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
DRIVER(cuMemcpyDtoH_v2, void* to, uint64_t from, size_t bytes) {
    HOLD;
    if (records) return CAPTURE_UNSUPPORTED;
    if (!is_on_card(from, bytes)) return INVALID_VALUE;
    std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return SUCCESS;
}
DRIVER(cuMemcpyHtoDAsync_v2, uint64_t to, const void* from, size_t bytes, Stream* stream) {
    HOLD;
    if (!is_on_card(to, bytes)) return INVALID_VALUE;
    return put(stream, [=] { return std::memcpy(reinterpret_cast<void*>(to), from, bytes), SUCCESS; });
}
DRIVER(cuMemcpyDtoHAsync_v2, void* to, uint64_t from, size_t bytes, Stream* stream) {
    HOLD;
    if (!is_on_card(from, bytes)) return INVALID_VALUE;
    if (few()) return put(stream, [=] { return std::memset(to, 0, bytes), SUCCESS; });
    return put(stream, [=] { return std::memcpy(to, reinterpret_cast<const void*>(from), bytes), SUCCESS; });
}
DRIVER(cuMemcpyDtoDAsync_v2, uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    HOLD;
    if (!is_on_card(to, bytes) || !is_on_card(from, bytes)) return INVALID_VALUE;
    if (few()) return SUCCESS;
    return put(stream, [=] {
        return std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes), SUCCESS;
    });
}
DRIVER(cuMemsetD8Async, uint64_t at, unsigned char byte, size_t bytes, Stream* stream) {
    HOLD;
    if (!is_on_card(at, bytes)) return INVALID_VALUE;
    return put(stream, [=] { return fill(at, byte, bytes), SUCCESS; });
}

DRIVER(cuStreamCreate, Stream** to, unsigned) {
    HOLD;
    streams.push_back(*to = new Stream);
    return SUCCESS;
}
DRIVER(cuStreamDestroy_v2, Stream* stream) {
    std::lock_guard held(lock);
    std::erase(streams, stream);
    delete stream;
    return SUCCESS;
}
DRIVER(cuStreamSynchronize, Stream* stream) {
    HOLD;
    return stream->recorded ? CAPTURE_UNSUPPORTED : carry_out(*stream, stream->given);
}
DRIVER(cuStreamWaitEvent, Stream* stream, Event* event, unsigned) {
    HOLD;
    // An event from outside of what is recorded.
    if (stream->recorded) return CAPTURE_ISOLATION;
    return event->stream ? put(stream, Work{nullptr, event->stream, event->at}) : SUCCESS;
}
DRIVER(cuStreamBeginCapture_v2, Stream* stream, int) {
    HOLD;
    if (stream->recorded) return CAPTURE_UNSUPPORTED;
    stream->recorded = std::make_shared<std::vector<Work>>();
    records = true;
    return SUCCESS;
}
DRIVER(cuStreamEndCapture, Stream* stream, Graph** to) {
    HOLD;
    if (!stream->recorded) return CAPTURE_UNSUPPORTED;
    *to = new Graph{*stream->recorded};
    stream->recorded = nullptr;
    records = false;
    return SUCCESS;
}
DRIVER(cuGraphInstantiateWithFlags, Graph** to, Graph* graph, unsigned long long) {
    HOLD;
    if (!setting("graphs", 1)) return OUT_OF_MEMORY;
    *to = new Graph(*graph);
    return SUCCESS;
}
DRIVER(cuGraphDestroy, Graph* graph) {
    delete graph;
    return SUCCESS;
}
DRIVER(cuGraphExecDestroy, Graph* graph) {
    delete graph;
    return SUCCESS;
}
DRIVER(cuGraphLaunch, Graph* graph, Stream* stream) {
    HOLD;
    for (const Work& work : graph->works)
        if (int result = put(stream, work)) return result;
    return SUCCESS;
}

DRIVER(cuEventCreate, Event** to, unsigned) {
    HOLD;
    *to = new Event;
    return SUCCESS;
}
DRIVER(cuEventDestroy_v2, Event* event) {
    delete event;
    return SUCCESS;
}
DRIVER(cuEventRecord, Event* event, Stream* stream) {
    HOLD;
    if (stream->recorded) return CAPTURE_UNSUPPORTED;
    *event = {stream, stream->given, 0};
    return SUCCESS;
}
DRIVER(cuEventSynchronize, Event* event) {
    HOLD;
    if (records) return CAPTURE_UNSUPPORTED;
    return event->stream ? carry_out(*event->stream, event->at) : SUCCESS;
}
DRIVER(cuEventQuery, Event* event) {
    HOLD;
    if (!event->stream || event->stream->done >= event->at) return SUCCESS;
    // It takes a while.
    if (event->asked++ < 3) return NOT_READY;
    return carry_out(*event->stream, event->at);
}
DRIVER(cuEventElapsedTime_v2, float* to, Event* from, Event* until) {
    HOLD;
    for (const Event* event : {from, until})
        if (!event->stream || event->stream->done < event->at) return NOT_READY;
    // A millisecond for each thing that was put into the stream between them.
    *to = float(until->at) - float(from->at);
    return SUCCESS;
}

DRIVER(cuModuleLoadData, void** module, const void* image) {
    HOLD;
    constexpr uint32_t FATBIN = 0xba55ed50;
    uint32_t magic;
    std::memcpy(&magic, image, sizeof magic);
    if (magic != FATBIN) return INVALID_VALUE;
    *module = &started;
    return setting("built", 1) ? SUCCESS : NO_BINARY;
}
DRIVER(cuModuleUnload, void*) { return SUCCESS; }
DRIVER(cuModuleGetFunction, Function** to, void*, const char* name) {
    HOLD;
    char signature[512];
    if (!emulate_signature(name, signature, sizeof signature)) return NOT_FOUND;
    const auto commas = std::count(signature, signature + std::strlen(signature), ',');
    *to = new Function{name, size_t(commas) + 1, 48 << 10};
    return SUCCESS;
}
DRIVER(cuFuncSetAttribute, Function* function, int which, int value) {
    HOLD;
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
    if (which != MAX_DYNAMIC_SHARED_SIZE_BYTES || value > setting("block", 227 << 10)) return INVALID_VALUE;
    function->memory = value;
    return SUCCESS;
}
DRIVER(cuLaunchKernel, Function* function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
       unsigned threads_z, unsigned memory, Stream* stream, void** parameters, void**) {
    HOLD;
    const uint64_t threads = uint64_t(threads_x) * threads_y * threads_z;
    const bool has_shape = x && y && z && threads && x < 1u << 31 && y < 1u << 16 && z < 1u << 16 && threads <= 1024;
    if (!has_shape || memory > function->memory) return INVALID_VALUE;
    const long long last = setting("launches", -1);
    // The launch is accepted; that it fails is said by who waits for it.
    if (last >= 0 && launches >= last) return put(stream, [] { return int(ILLEGAL_ADDRESS); });
    const uint64_t order = launches++ % 4;
    std::vector<uint64_t> words(function->parameters);
    for (size_t at = 0; at < words.size(); at++) std::memcpy(&words[at], parameters[at], sizeof words[at]);
    const emulate::Launch shape{{x, y, z}, {threads_x, threads_y, threads_z}, memory, order, nullptr, 0, nullptr, 0};
    return put(stream, [=] { return run(*function, shape, words); });
}

DRIVER(cuGetErrorName, int code, const char** to) {
    static thread_local char text[32];
    std::snprintf(text, sizeof text, "CUDA_ERROR %d", code);
    *to = text;
    return SUCCESS;
}
DRIVER(cuGetErrorString, int code, const char** to) { return cuGetErrorName(code, to); }
