// What the driver and the library of products share: streams, and what is put into them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulate.h"

namespace driver {

// CUresult, as cuda.h numbers it.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    NO_BINARY = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_ISOLATION = 905,
};

struct Stream;

// Something to do, or a place in another stream that must have been reached.
struct Work {
    std::function<int()> act;
    Stream* waits_for;
    uint64_t until;
};

struct Stream {
    std::deque<Work> works;
    // Works that were ever put into it, and done.
    uint64_t given = 0, done = 0;
    // What is recorded instead, for a graph.
    std::shared_ptr<std::vector<Work>> recorded;
};

struct Event {
    Stream* stream = nullptr;
    uint64_t at = 0;
    unsigned asked = 0;
};

// Held by every call.
extern std::recursive_mutex lock;
// What every call says once something has failed.
extern int lost;

// What EMULATED_CARD sets: NAME=NUMBER, with commas between.
long long setting(const char* name, long long usual);
// Where not 0, what real shapes ask for takes no longer than small ones: of every launch so many of the first and of the
// last blocks are run, once for its numbers; matrices are neither multiplied nor copied; what comes back is 0.
unsigned few();
// Notes a kernel all of whose blocks ran to their end in the file that EMULATED_CARD_RAN names, where it does.
void ran(const std::string& kernel);

// Whether memory lies whole in a piece of the card's.
bool is_on_card(uint64_t at, size_t bytes);
int put(Stream* stream, std::function<int()> act);
int put(Stream* stream, Work work);

}  // namespace driver
