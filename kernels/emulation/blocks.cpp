// Blocks of threads on the host. A thread is a fiber; it runs until it comes to a barrier or a warp operation, and a
// warp until it comes to a barrier, as far ahead of the others as a card would ever let it. So what needs a barrier and
// has none reads what is not written yet, or no more, in one order of the warps or another.
#include "emulate.h"
#include "emulate_mma.h"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <random>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

namespace emulate {

Self* self = nullptr;
const Registered* registered = nullptr;

namespace {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr unsigned WARP = 32;

struct Where {
    const char* file = nullptr;
    int line = 0;
    bool operator==(const Where&) const = default;
};

enum class State { Ready, AtBarrier, AtExchange, Done };

// A copy to the block's memory that is under way (cp.async).
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    size_t bytes;
    bool there;
    unsigned group;

    void arrive() const {
        if (there) std::memcpy(to, from, bytes);
        else std::memset(to, 0, bytes);
    }
};

// A fiber. It is entered by swapcontext; between its first step and its last it is left and gone on with by jumps,
// which ask nothing of the system.
struct Thread {
    Self self;
    State state;
    Where where;
    unsigned mask;
    unsigned exchanges;
    std::vector<Copy> copies;
    unsigned groups;
    bool entered;
    ucontext_t context;
    jmp_buf left;
};

// What a warp's lanes gave: of the exchange they are at, and of the one before, which some may still read.
struct Warp {
    Lanes given[2];
};

// Memory between pages that nobody may touch, filled with what is no number.
class Guarded {
    unsigned char* all_;
    size_t all_bytes_;

  public:
    unsigned char* start;

    explicit Guarded(size_t bytes, bool at_end) {
        size_t page = sysconf(_SC_PAGESIZE), inner = (bytes + page - 1) / page * page;
        all_bytes_ = inner + 2 * page;
        void* got = mmap(nullptr, all_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        all_ = static_cast<unsigned char*>(got);
        if (got == MAP_FAILED || mprotect(all_ + page, inner, PROT_READ | PROT_WRITE)) std::abort();
        start = all_ + page + (at_end ? inner - bytes : 0);
    }
    ~Guarded() { munmap(all_, all_bytes_); }
    Guarded(const Guarded&) = delete;
};

struct Running {
    const Launch* launch;
    void (*body)(void*);
    void* context;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Thread* current;
    ucontext_t scheduler;
    jmp_buf back;
    Buffer shared;
    bool failed;
};
Running* running = nullptr;

void complain(const char* file, int line, const char* what) {
    const Self& at = running->current->self;
    const char* name = std::strrchr(file, '/');
    std::snprintf(running->launch->complaint, running->launch->complaint_bytes,
                  "%s:%d: %s (thread %u,%u,%u of block %u,%u,%u)", name ? name + 1 : file, line, what,
                  at.thread.x, at.thread.y, at.thread.z, at.block.x, at.block.y, at.block.z);
    running->failed = true;
}

void give_way() {
    if (!_setjmp(running->current->left)) _longjmp(running->back, 1);
}

// Runs the thread until it gives way.
void go_on(Thread& thread) {
    running->current = &thread;
    self = &thread.self;
    if (_setjmp(running->back)) return;
    if (thread.entered) _longjmp(thread.left, 1);
    thread.entered = true;
    swapcontext(&running->scheduler, &thread.context);
}

void begin() {
    running->body(running->context);
    running->current->state = State::Done;
    give_way();
}

// A touch outside: which buffer is nearest, and how far it is.
void touched(int, siginfo_t* info, void*) {
    auto at = static_cast<unsigned char*>(info->si_addr);
    const Buffer* nearest = &running->shared;
    auto away = [at](const Buffer& buffer) -> size_t {
        if (at < buffer.start) return buffer.start - at;
        return at < buffer.start + buffer.bytes ? 0 : at - (buffer.start + buffer.bytes) + 1;
    };
    for (size_t i = 0; i < running->launch->buffer_count; i++)
        if (away(running->launch->buffers[i]) < away(*nearest)) nearest = &running->launch->buffers[i];
    char what[160];
    const char* side = at < nearest->start ? "before" : "beyond";
    if (size_t bytes = away(*nearest))
        std::snprintf(what, sizeof what, "touches byte %zu %s `%s` of %zu bytes", bytes, side, nearest->name,
                      nearest->bytes);
    else
        std::snprintf(what, sizeof what, "writes to `%s`, which is read only", nearest->name);
    complain("kernel", 0, what);
    _longjmp(running->back, 1);
}

// Signals of touches outside end the launch while this lives.
class Watch {
    struct sigaction segv_, bus_;

  public:
    Watch() {
        struct sigaction action = {};
        action.sa_sigaction = touched;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigaction(SIGSEGV, &action, &segv_);
        sigaction(SIGBUS, &action, &bus_);
    }
    ~Watch() {
        sigaction(SIGSEGV, &segv_, nullptr);
        sigaction(SIGBUS, &bus_, nullptr);
    }
};

std::vector<unsigned> ordered(unsigned count, uint64_t order) {
    std::vector<unsigned> places(count);
    for (unsigned i = 0; i < count; i++) places[i] = order == 1 ? count - 1 - i : i;
    std::mt19937_64 random(order);
    if (order > 1)
        for (unsigned i = count; i > 1; i--) std::swap(places[i - 1], places[random() % i]);
    return places;
}

Dim place(unsigned at, Dim size) { return {at % size.x, at / size.x % size.y, at / size.x / size.y}; }

// Lanes of the warp from `first` on whose mates have all come go on.
bool settle_warp(size_t first) {
    bool any = false;
    auto& threads = running->threads;
    const size_t end = std::min(first + WARP, threads.size());
    for (size_t i = first; i < end; i++) {
        Thread& thread = threads[i];
        if (thread.state != State::AtExchange) continue;
        running->current = &thread;
        bool all = true;
        for (unsigned lane = 0; lane < WARP; lane++) {
            if (!(thread.mask >> lane & 1)) continue;
            if (first + lane >= end || threads[first + lane].state == State::Done) {
                complain(thread.where.file, thread.where.line, "waits for a lane that has ended");
                return false;
            }
            const Thread& mate = threads[first + lane];
            all &= mate.state == State::AtExchange && mate.where == thread.where
                && mate.mask == thread.mask && mate.exchanges == thread.exchanges;
        }
        if (!all) continue;
        for (unsigned lane = 0; lane < WARP; lane++)
            if (thread.mask >> lane & 1) threads[first + lane].state = State::Ready;
        any = true;
    }
    return any;
}

// Runs a warp as far as it comes without the others: to a barrier, or to its end.
bool run_warp(size_t first, const std::vector<unsigned>& lanes) {
    do {
        for (unsigned lane : lanes) {
            if (first + lane >= running->threads.size()) continue;
            Thread& thread = running->threads[first + lane];
            if (thread.state != State::Ready) continue;
            go_on(thread);
            if (running->failed) return false;
        }
    } while (settle_warp(first));
    return !running->failed;
}

// All that have not ended stand at the same barrier: they go on.
bool settle_barrier() {
    Thread* first = nullptr;
    for (Thread& thread : running->threads) {
        if (thread.state == State::Done) continue;
        running->current = &thread;
        if (thread.state != State::AtBarrier) {
            complain(thread.where.file, thread.where.line, "lanes of its mask never come here");
            return false;
        }
        if (first && !(first->where == thread.where)) {
            complain(thread.where.file, thread.where.line, "another thread waits at another barrier");
            return false;
        }
        first = &thread;
    }
    for (Thread& thread : running->threads)
        if (thread.state == State::AtBarrier) thread.state = State::Ready;
    return true;
}

bool run_block(const std::vector<unsigned>& warps, const std::vector<unsigned>& lanes) {
    const auto& threads = running->threads;
    auto done = [](const Thread& thread) { return thread.state == State::Done; };
    while (!std::all_of(threads.begin(), threads.end(), done)) {
        for (unsigned warp : warps)
            if (!run_warp(size_t(warp) * WARP, lanes)) return false;
        if (!std::all_of(threads.begin(), threads.end(), done) && !settle_barrier()) return false;
    }
    return true;
}

}  // namespace

void fail(const char* file, int line, const char* what) {
    complain(file, line, what);
    _longjmp(running->back, 1);
}

void barrier(const char* file, int line) {
    running->current->state = State::AtBarrier;
    running->current->where = {file, line};
    give_way();
}

const Lanes* exchange(unsigned mask, const void* bytes, size_t size, const char* file, int line) {
    Thread& thread = *running->current;
    unsigned lane = thread.self.lane;
    if (!(mask >> lane & 1)) fail(file, line, "a lane's mask leaves itself out");
    size_t at = &thread - running->threads.data();
    // Two in turn: nobody comes to the second next before all have read.
    Lanes& given = running->warps[at / WARP].given[thread.exchanges++ % 2];
    std::memcpy(given[lane], bytes, size);
    thread.state = State::AtExchange;
    thread.where = {file, line};
    thread.mask = mask;
    give_way();
    return &given;
}

size_t block_offset(const void* at, size_t bytes, const char* file, int line) {
    const auto place = static_cast<const unsigned char*>(at);
    const Buffer& shared = running->shared;
    if (place < shared.start || place + bytes > shared.start + shared.bytes)
        fail(file, line, "is to be in the block's memory, and is not");
    return place - shared.start;
}

void copy(void* to, const void* from, size_t bytes, bool there, const char* file, int line) {
    if (block_offset(to, bytes, file, line) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
        fail(file, line, "a copy begins at no multiple of its size");
    Thread& thread = *running->current;
    const Copy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, there,
                    thread.groups};
    // As soon as it may come in every second order, as late in the others.
    if (running->launch->order % 2) copy.arrive();
    else thread.copies.push_back(copy);
}

void commit_copies() { running->current->groups++; }

void wait_for_copies(unsigned left) {
    Thread& thread = *running->current;
    std::erase_if(thread.copies, [&](const Copy& copy) {
        const bool comes = copy.group + left < thread.groups;
        if (comes) copy.arrive();
        return comes;
    });
}

bool run(const Launch& launch, void (*body)(void*), void* context) {
    unsigned count = launch.threads.x * launch.threads.y * launch.threads.z;
    unsigned blocks = launch.blocks.x * launch.blocks.y * launch.blocks.z;
    Guarded shared(launch.shared_bytes, true), stacks(count * STACK_BYTES, false);
    Running now{&launch, body, context, std::vector<Thread>(count),
                std::vector<Warp>((count + WARP - 1) / WARP), nullptr, {}, {},
                {"block memory", shared.start, launch.shared_bytes}, false};
    running = &now;
    Watch watch;
    for (unsigned block : ordered(blocks, launch.order)) {
        if (launch.few && block >= launch.few && block + launch.few < blocks) continue;
        // What a block before left there is gone.
        std::memset(shared.start, 0xff, launch.shared_bytes);
        for (unsigned at = 0; at < count; at++) {
            Thread& thread = now.threads[at];
            thread.self = {place(at, launch.threads), place(block, launch.blocks), launch.blocks,
                           launch.threads, shared.start, at % WARP};
            thread.state = State::Ready;
            thread.exchanges = thread.groups = 0;
            thread.copies.clear();
            thread.entered = false;
            getcontext(&thread.context);
            thread.context.uc_stack = {.ss_sp = stacks.start + at * STACK_BYTES, .ss_flags = 0,
                                       .ss_size = STACK_BYTES};
            thread.context.uc_link = nullptr;
            makecontext(&thread.context, begin, 0);
        }
        if (!run_block(ordered(now.warps.size(), launch.order), ordered(WARP, launch.order))) break;
    }
    running = nullptr;
    self = nullptr;
    return !now.failed;
}

}  // namespace emulate

// What the launcher of the tests calls.
extern "C" bool emulate_signature(const char* name, char* to, size_t bytes);
extern "C" bool emulate_launch(const char* name, const emulate::Launch* launch, void* const* arguments);

static const emulate::Registered* kernel_of(const char* name) {
    const emulate::Registered* at = emulate::registered;
    while (at && std::strcmp(at->name, name)) at = at->next;
    return at;
}

bool emulate_signature(const char* name, char* to, size_t bytes) {
    const emulate::Registered* kernel = kernel_of(name);
    if (kernel) kernel->signature(to, bytes);
    return kernel;
}

bool emulate_launch(const char* name, const emulate::Launch* launch, void* const* arguments) {
    return kernel_of(name)->entry(*launch, arguments);
}
