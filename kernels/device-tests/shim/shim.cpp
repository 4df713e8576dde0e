// The scheduler of the fibers, the collectives, and fp16. See `shim.hpp`.

#include "shim.hpp"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "launch.hpp"

namespace shim {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSharedBytes = 256 * 1024;
/// How far past the shared memory of a launch writes are looked for.
constexpr size_t kGuardBytes = 4096;
constexpr int kMostWords = 10;
constexpr unsigned char kFill = 0xff;

enum class State { Ready, AtBarrier, InCollective, Done };

/// A copy that has been started.
struct Copy {
    void* to;
    /// Null for zeros.
    const void* from;
};

struct Fiber {
    std::unique_ptr<unsigned char[]> stack;
    ucontext_t context;
    jmp_buf here;
    bool started;
    State state;
    // At a barrier.
    bool is_vote, vote;
    // In a collective.
    uint32_t data[kMostWords];
    // Copies under way, and how many of them there were at the end of each group.
    std::vector<Copy> copies;
    std::vector<size_t> group_ends;
};

/// The collective that some lanes of a warp have come to.
struct Meeting {
    Collective kind;
    unsigned mask, arrived;
};

/// The block that runs on this thread of the host.
struct Block {
    std::vector<Fiber> fibers;
    std::vector<Meeting> meetings;
    size_t num_threads = 0, current = 0;
    ucontext_t scheduler_context;
    jmp_buf scheduler;
    Kernel kernel = nullptr;
    const void* params = nullptr;
    bool outcome = false;
    /// Whether copies are made as late as is allowed.
    bool late_copies = false;
    std::string error;
    std::unique_ptr<unsigned char[]> shared_store;
};

__thread Block* block;

// Jumps between stacks cost no system call, which swapping contexts does. The sanitizer knows only the latter.
#if defined(__SANITIZE_ADDRESS__)
void enter(Fiber& fiber) { swapcontext(&block->scheduler_context, &fiber.context); }
void leave(Fiber& fiber) { swapcontext(&fiber.context, &block->scheduler_context); }
#else
void enter(Fiber& fiber) {
    if (_setjmp(block->scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}
void leave(Fiber& fiber) {
    if (_setjmp(fiber.here) == 0) _longjmp(block->scheduler, 1);
}
#endif

void fiber_main() {
    block->kernel(block->params);
    Fiber& fiber = block->fibers[block->current];
    fiber.state = State::Done;
    leave(fiber);
}

/// Gives up the whole block; the fibers are abandoned where they stand.
void fail(const std::string& message) {
    if (block->error.empty()) block->error = "thread " + std::to_string(block->current) + ": " + message;
    leave(block->fibers[block->current]);
}

void wait(Fiber& fiber, State state) {
    fiber.state = state;
    leave(fiber);
}

float tables[1 << 16];
const bool tables_ready = [] {
    for (uint32_t half = 0; half < 1u << 16; ++half) {
        const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1f, fraction = half & 0x3ffu;
        float value;
        if (exponent == 0x1f) {
            value = from_bits(0x7f800000u | fraction << 13);
        } else if (exponent == 0) {
            value = std::ldexp(float(fraction), -24);
        } else {
            value = std::ldexp(float(fraction | 0x400u), int(exponent) - 25);
        }
        tables[half] = from_bits(bits(value) | sign);
    }
    return true;
}();

void multiply_add_warp(Fiber* lanes, bool is_bfloat) {
    const auto widen = [is_bfloat](uint16_t half) {
        return is_bfloat ? from_bits(uint32_t(half) << 16) : from_half(half);
    };
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, quad = lane % 4;
        const uint32_t* data = lanes[lane].data;
        for (int i = 0; i < 8; ++i) {
            const uint16_t half = uint16_t(data[4 + i / 2] >> (i % 2 * 16));
            a[group + i / 2 % 2 * 8][2 * quad + i / 4 * 8 + i % 2] = widen(half);
        }
        for (int i = 0; i < 4; ++i) {
            const uint16_t half = uint16_t(data[8 + i / 2] >> (i % 2 * 16));
            b[2 * quad + i / 2 * 8 + i % 2][group] = widen(half);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, quad = lane % 4;
        for (int i = 0; i < 4; ++i) {
            const int row = group + i / 2 * 8, column = 2 * quad + i % 2;
            float sum = 0.0f;
            for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            lanes[lane].data[i] = bits(from_bits(lanes[lane].data[i]) + sum);
        }
    }
}

void shuffle_warp(Fiber* lanes, unsigned mask, bool is_xor) {
    uint32_t values[32];
    for (int lane = 0; lane < 32; ++lane) values[lane] = lanes[lane].data[0];
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const unsigned from = is_xor ? lane ^ lanes[lane].data[1] : lanes[lane].data[1];
        if (from >= 32 || !(mask >> from & 1)) return fail("a shuffle reads a lane that takes no part");
        lanes[lane].data[0] = values[from];
    }
}

void ballot_warp(Fiber* lanes, unsigned mask) {
    uint32_t votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1 && lanes[lane].data[0] != 0) votes |= 1u << lane;
    }
    for (unsigned lane = 0; lane < 32; ++lane) lanes[lane].data[0] = votes;
}

void load_blocks_warp(Fiber* lanes) {
    const uint16_t* rows[32];
    for (int lane = 0; lane < 32; ++lane) {
        const uint32_t* data = lanes[lane].data;
        rows[lane] = reinterpret_cast<const uint16_t*>(uint64_t(data[0]) | uint64_t(data[1]) << 32);
        if (reinterpret_cast<uint64_t>(rows[lane]) % 16 != 0) return fail("a row of a block is not aligned to 16 bytes");
    }
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, quad = lane % 4;
        for (int j = 0; j < 4; ++j) {
            const uint16_t* row = rows[8 * j + group] + 2 * quad;
            lanes[lane].data[j] = uint32_t(row[0]) | uint32_t(row[1]) << 16;
        }
    }
}

void make(const Copy& copy) {
    if (copy.from) {
        std::memcpy(copy.to, copy.from, 16);
    } else {
        std::memset(copy.to, 0, 16);
    }
}

/// Runs one block. False, with `block->error` set, if it went wrong.
bool run_block(Order order) {
    const size_t count = block->num_threads;
    block->meetings.assign((count + 31) / 32, Meeting{Collective::Wait, 0, 0});
    for (size_t i = 0; i < count; ++i) {
        Fiber& fiber = block->fibers[i];
        if (!fiber.stack) fiber.stack.reset(new unsigned char[kStackBytes]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
        fiber.started = false;
        fiber.state = State::Ready;
        fiber.copies.clear();
        fiber.group_ends.clear();
    }
    block->late_copies = order != Order::Forward;
    for (;;) {
        bool progress = false;
        size_t done = 0, at_barrier = 0, votes = 0;
        bool any = false;
        for (size_t n = 0; n < count; ++n) {
            // 37 has no factor in common with the size of a block.
            const size_t i = order == Order::Forward ? n : order == Order::Backward ? count - 1 - n : n * 37 % count;
            if (block->fibers[i].state != State::Ready) continue;
            progress = true;
            block->current = i;
            running.thread = {unsigned(i), 0, 0};
            enter(block->fibers[i]);
            if (!block->error.empty()) return false;
        }
        for (size_t i = 0; i < count; ++i) {
            const Fiber& fiber = block->fibers[i];
            done += fiber.state == State::Done;
            if (fiber.state != State::AtBarrier) continue;
            at_barrier += 1;
            votes += fiber.is_vote;
            any = any || fiber.vote;
        }
        if (done == count) return true;
        if (at_barrier == count) {
            if (votes != 0 && votes != count) {
                block->error = "threads meet at different barriers";
                return false;
            }
            block->outcome = any;
            for (size_t i = 0; i < count; ++i) block->fibers[i].state = State::Ready;
            progress = true;
        }
        if (!progress) {
            block->error = "deadlock: " + std::to_string(done) + " threads have left, " + std::to_string(at_barrier) +
                          " wait at a barrier, " + std::to_string(count - done - at_barrier) + " for lanes of their warp";
            return false;
        }
    }
}

}  // namespace

__thread Place running;
__thread unsigned char* shared;

bool barrier(bool is_vote, bool value) {
    Fiber& fiber = block->fibers[block->current];
    fiber.is_vote = is_vote;
    fiber.vote = is_vote && value;
    wait(fiber, State::AtBarrier);
    return block->outcome;
}

void meet(Collective kind, unsigned mask, uint32_t* data, int words) {
    const size_t current = block->current, lane = current % 32, first = current - lane;
    Fiber& fiber = block->fibers[current];
    Meeting& meeting = block->meetings[current / 32];
    std::memcpy(fiber.data, data, size_t(words) * 4);
    if (!(mask >> lane & 1)) fail("a lane is not in the mask of its own collective");
    if (block->num_threads - first < 32) fail("a warp is not whole");
    if (meeting.arrived == 0) {
        meeting.kind = kind;
        meeting.mask = mask;
    } else if (meeting.kind != kind || meeting.mask != mask) {
        fail("lanes of one warp meet in different collectives");
    }
    meeting.arrived |= 1u << lane;
    if (meeting.arrived != mask) {
        // Lanes that never come are noticed when nothing else can run.
        wait(fiber, State::InCollective);
    } else {
        meeting.arrived = 0;
        Fiber* lanes = &block->fibers[first];
        if (kind == Collective::MultiplyAdd || kind == Collective::MultiplyAddBfloat) {
            multiply_add_warp(lanes, kind == Collective::MultiplyAddBfloat);
        } else if (kind == Collective::Ballot) {
            ballot_warp(lanes, mask);
        } else if (kind == Collective::LoadBlocks) {
            load_blocks_warp(lanes);
        } else if (kind != Collective::Wait) {
            shuffle_warp(lanes, mask, kind == Collective::ShuffleXor);
        }
        for (size_t other = 0; other < 32; ++other) {
            if (mask >> other & 1) lanes[other].state = State::Ready;
        }
    }
    std::memcpy(data, fiber.data, size_t(words) * 4);
}

void copy_async(void* shared, const void* global, bool wanted) {
    const auto is_aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
    if (!is_aligned(shared) || !is_aligned(global)) fail("a copy is not aligned to 16 bytes");
    Fiber& fiber = block->fibers[block->current];
    fiber.copies.push_back({shared, wanted ? global : nullptr});
    if (!block->late_copies) {
        make(fiber.copies.back());
        fiber.copies.pop_back();
    }
}

void commit_copies() {
    Fiber& fiber = block->fibers[block->current];
    fiber.group_ends.push_back(fiber.copies.size());
}

void wait_copies(int pending) {
    Fiber& fiber = block->fibers[block->current];
    if (fiber.group_ends.size() <= size_t(pending)) return;
    const size_t groups = fiber.group_ends.size() - size_t(pending), made = fiber.group_ends[groups - 1];
    for (size_t i = 0; i < made; ++i) make(fiber.copies[i]);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + ptrdiff_t(made));
    fiber.group_ends.erase(fiber.group_ends.begin(), fiber.group_ends.begin() + ptrdiff_t(groups));
    for (size_t& end : fiber.group_ends) end -= made;
}

float from_half(uint16_t half) { return tables[half]; }

uint16_t to_half(float value) {
    const uint32_t all = bits(value), sign = all >> 16 & 0x8000u, magnitude = all & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    // Halfway between the largest number and what would be the next, and above.
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        // Subnormal: the sum rounds to a multiple of 2^-24, which is the last bit of one half.
        const float sum = from_bits(magnitude) + 0.5f;
        return uint16_t(sign | (bits(sum) - bits(0.5f)));
    }
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return uint16_t(sign | ((rounded >> 13) - (112u << 10)));
}

std::string launch(Kernel kernel, const void* params, const unsigned (&grid)[2], unsigned block_dim, size_t shared_bytes,
                   Order order) {
    if (block_dim == 0 || block_dim > 1024) return "a block of " + std::to_string(block_dim) + " threads";
    thread_local Block own;
    block = &own;
    if (shared_bytes + kGuardBytes > kSharedBytes) return "too much shared memory";
    if (!block->shared_store) {
        block->shared_store.reset(new unsigned char[kSharedBytes + 128]);
        shared = block->shared_store.get() + (128 - reinterpret_cast<uintptr_t>(block->shared_store.get()) % 128);
    }
    if (block->fibers.size() < block_dim) block->fibers.resize(block_dim);
    block->num_threads = block_dim;
    block->kernel = kernel;
    block->params = params;
    block->error.clear();
    running.block_dim = {block_dim, 1, 1};
    running.grid_dim = {grid[0], grid[1], 1};
    for (unsigned y = 0; y < grid[1]; ++y) {
        for (unsigned x = 0; x < grid[0]; ++x) {
            running.block = {x, y, 0};
            std::memset(shared, kFill, shared_bytes + kGuardBytes);
#if defined(__SANITIZE_ADDRESS__)
            ASAN_POISON_MEMORY_REGION(shared + shared_bytes, kGuardBytes);
#endif
            const bool fine = run_block(order);
#if defined(__SANITIZE_ADDRESS__)
            ASAN_UNPOISON_MEMORY_REGION(shared + shared_bytes, kGuardBytes);
#endif
            const std::string where = "block " + std::to_string(x) + ", " + std::to_string(y) + ": ";
            if (!fine) return where + block->error;
            for (size_t i = 0; i < kGuardBytes; ++i) {
                if (shared[shared_bytes + i] != kFill) {
                    return where + "a write " + std::to_string(i) + " bytes past the shared memory of the launch";
                }
            }
        }
    }
    return {};
}

}  // namespace shim
