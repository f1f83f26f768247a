// Runs a grid on the CPU: the threads of a block are fibers of one host thread, blocks run one after another.
//
// A fiber runs until it waits for others (a barrier, an operation of its warp) or ends. Odd blocks run their warps and lanes backwards, so
// that a missing barrier shows. What a GPU would leave undefined ends the launch with a message: threads that wait at different places,
// threads that end while others wait for them, writes past a launch's shared memory.
#include "shim.h"

#include <stdio.h>
#include <sys/mman.h>

#include <mutex>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ---- context switch: saves the callee-saved registers on the stack, and exchanges stacks ----------------------------------------------

extern "C" void takt_emulated_switch(void** save_stack, void* load_stack);

#if defined(__x86_64__)
asm(R"(
.text
.hidden takt_emulated_switch
.globl takt_emulated_switch
.type takt_emulated_switch, @function
takt_emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size takt_emulated_switch, .-takt_emulated_switch
.section .note.GNU-stack,"",@progbits
.text
)");
#elif defined(__aarch64__)
asm(R"(
.text
.hidden takt_emulated_switch
.globl takt_emulated_switch
.type takt_emulated_switch, %function
takt_emulated_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size takt_emulated_switch, .-takt_emulated_switch
.section .note.GNU-stack,"",%progbits
.text
)");
#else
#error "the emulator knows the calling conventions of x86-64 and aarch64"
#endif

namespace takt_emulated {

namespace {

constexpr unsigned MAX_THREADS = 1024, WARP = 32;
constexpr size_t STACK_BYTES = 256 * 1024, GUARD_BYTES = 64 * 1024;
// The most a block can have on any target, and room behind it that must stay untouched.
constexpr size_t MAX_SHARED_BYTES = 227 * 1024, CANARY_BYTES = 4096;
constexpr unsigned char CANARY = 0xa5;

struct PendingCopy {
    void* destination;
    const void* source;
    unsigned bytes, source_bytes, group;
};

struct Fiber : ThreadPlace {
    void* stack = nullptr;
    bool done = false;
    // Waits until `*generation != waited`; null when it can run.
    const unsigned* generation = nullptr;
    unsigned waited = 0;
    Site site = {nullptr, nullptr, 0};
    std::vector<PendingCopy> copies;
    unsigned copy_group = 0;
};

// Lanes of one warp that come together under one mask. A lane is at most one generation ahead of the others, so two sets of slots do.
struct Collective {
    unsigned mask = 0, arrived = 0, generation = 0;
    Site site = {nullptr, nullptr, 0};
    Slot slots[2][WARP];
};

struct Barrier {
    unsigned arrived = 0, generation = 0;
    unsigned counts[2] = {0, 0};
    Site site = {nullptr, nullptr, 0};
};

struct Block {
    unsigned num_threads = 0;
    Fiber fibers[MAX_THREADS];
    std::vector<Collective*> collectives[MAX_THREADS / WARP];
    Barrier barrier;
    void* main_stack = nullptr;
    KernelCall call = nullptr;
    void** arguments = nullptr;
    bool failed = false;
    std::string message;
    unsigned char* stacks = nullptr;
    alignas(1024) unsigned char shared[MAX_SHARED_BYTES + CANARY_BYTES];
};

Block& block() {
    static Block* only = new Block;
    return *only;
}

std::mutex& one_launch_at_a_time() {
    static std::mutex mutex;
    return mutex;
}

thread_local std::string last_error;

struct Entry {
    std::string name;
    KernelCall call;
    const size_t* argument_bytes;
    size_t num_arguments;
};
std::vector<Entry>& kernels() {
    static std::vector<Entry> all;
    return all;
}

Fiber& fiber() { return *static_cast<Fiber*>(current); }

unsigned char* stack_of(unsigned thread) { return block().stacks + thread * (STACK_BYTES + GUARD_BYTES) + GUARD_BYTES; }

#if defined(__SANITIZE_ADDRESS__)
const void* main_bottom = nullptr;
size_t main_size = 0;
#endif

void switch_to_main(bool ending) {
    Fiber& self = fiber();
    (void)ending;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(ending ? nullptr : &fake, main_bottom, main_size);
#endif
    takt_emulated_switch(&self.stack, block().main_stack);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &main_bottom, &main_size);
#endif
}

void switch_to(unsigned thread) {
    Block& b = block();
    current = &b.fibers[thread];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_of(thread), STACK_BYTES);
#endif
    takt_emulated_switch(&b.main_stack, b.fibers[thread].stack);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

extern "C" void takt_emulated_fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom, &main_size);
#endif
    block().call(block().arguments);
    Fiber& self = fiber();
    if (!self.copies.empty()) fail("a thread ended with copies under way that it did not wait for");
    self.done = true;
    switch_to_main(true);
    __builtin_trap();
}

// A stack on which the first switch returns into `takt_emulated_fiber_main`.
void* fresh_stack(unsigned thread) {
#if defined(__SANITIZE_ADDRESS__)
    // The frames a fiber ended in left their marks.
    ASAN_UNPOISON_MEMORY_REGION(stack_of(thread), STACK_BYTES);
#endif
    void** top = reinterpret_cast<void**>(stack_of(thread) + STACK_BYTES);
#if defined(__x86_64__)
    *--top = nullptr;  // as if called: 8 bytes past a multiple of 16
    *--top = reinterpret_cast<void*>(takt_emulated_fiber_main);
    for (int register_idx = 0; register_idx < 6; register_idx++) *--top = nullptr;
#else
    top -= 20;
    for (int word = 0; word < 20; word++) top[word] = nullptr;
    top[11] = reinterpret_cast<void*>(takt_emulated_fiber_main);  // x30
#endif
    return top;
}

void wait_for(const unsigned* generation, unsigned waited, Site site) {
    Fiber& self = fiber();
    self.site = site;
    self.waited = waited;
    self.generation = generation;
    switch_to_main(false);
    self.generation = nullptr;
}

bool same_site(Site a, Site b) { return a.line == b.line && strcmp(a.what, b.what) == 0 && strcmp(a.file, b.file) == 0; }

std::string describe(Site site) { return std::string(site.what) + " (" + site.file + ":" + std::to_string(site.line) + ")"; }

std::string describe(const Fiber& thread) {
    char text[96];
    snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", thread.thread.x, thread.thread.y, thread.thread.z,
             block_place.x, block_place.y, block_place.z);
    return text;
}

void set_message(const std::string& message) {
    block().failed = true;
    block().message = message;
}

void check_site(Site expected, Site found) {
    if (same_site(expected, found)) return;
    std::string message = "threads wait for each other at different places: " + describe(expected) + " and " + describe(found);
    fail(message.c_str());
}

void report_deadlock() {
    Block& b = block();
    unsigned ended = 0;
    const Fiber* waiting = nullptr;
    const Fiber* elsewhere = nullptr;
    for (unsigned thread = 0; thread < b.num_threads; thread++) {
        const Fiber& each = b.fibers[thread];
        ended += each.done;
        if (each.done) continue;
        if (waiting == nullptr) waiting = &each;
        else if (!same_site(waiting->site, each.site)) elsewhere = &each;
    }
    std::string message = describe(*waiting) + " waits at " + describe(waiting->site) + " for threads that do not come: ";
    message += std::to_string(ended) + " have ended";
    if (elsewhere != nullptr) message += ", " + describe(*elsewhere) + " waits at " + describe(elsewhere->site);
    set_message(message);
}

// Runs every lane of a warp as far as it gets; whether any ran.
bool run_warp(unsigned warp, bool backwards) {
    Block& b = block();
    unsigned first = warp * WARP, count = b.num_threads - first < WARP ? b.num_threads - first : WARP;
    bool any = false, again = true;
    while (again) {
        again = false;
        for (unsigned step = 0; step < count; step++) {
            unsigned thread = first + (backwards ? count - 1 - step : step);
            Fiber& lane = b.fibers[thread];
            if (lane.done || (lane.generation != nullptr && *lane.generation == lane.waited)) continue;
            switch_to(thread);
            if (b.failed) return true;
            again = any = true;
        }
    }
    return any;
}

void run_threads(bool backwards) {
    Block& b = block();
    unsigned num_warps = (b.num_threads + WARP - 1) / WARP;
    for (;;) {
        bool any = false;
        for (unsigned step = 0; step < num_warps && !b.failed; step++) {
            any |= run_warp(backwards ? num_warps - 1 - step : step, backwards);
        }
        if (b.failed) return;
        if (any) continue;
        for (unsigned thread = 0; thread < b.num_threads; thread++) {
            if (!b.fibers[thread].done) return report_deadlock();
        }
        return;
    }
}

void start_block(unsigned shared_bytes) {
    Block& b = block();
    for (unsigned thread = 0; thread < b.num_threads; thread++) {
        Fiber& each = b.fibers[thread];
        each.thread = {thread % block_shape.x, thread / block_shape.x % block_shape.y, thread / (block_shape.x * block_shape.y)};
        each.lane = thread % WARP;
        each.stack = fresh_stack(thread);
        each.done = false;
        each.generation = nullptr;
        each.copies.clear();
        each.copy_group = 0;
    }
    for (auto& of_warp : b.collectives) {
        for (Collective* each : of_warp) each->arrived = 0;
    }
    b.barrier = Barrier();
    memset(b.shared, 0xff, shared_bytes);  // not a number
    memset(b.shared + shared_bytes, CANARY, CANARY_BYTES);
}

void run_block(unsigned shared_bytes, bool backwards) {
    Block& b = block();
    start_block(shared_bytes);
    run_threads(backwards);
    for (size_t byte = 0; byte < CANARY_BYTES && !b.failed; byte++) {
        if (b.shared[shared_bytes + byte] == CANARY) continue;
        set_message("write " + std::to_string(byte) + " bytes past the launch's " + std::to_string(shared_bytes) +
                    " bytes of shared memory");
    }
}

bool prepare_stacks() {
    Block& b = block();
    if (b.stacks != nullptr) return true;
    size_t each = STACK_BYTES + GUARD_BYTES;
    void* memory = mmap(nullptr, MAX_THREADS * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    b.stacks = static_cast<unsigned char*>(memory);
    for (unsigned thread = 0; thread < MAX_THREADS; thread++) mprotect(b.stacks + thread * each, GUARD_BYTES, PROT_NONE);
    return true;
}

}  // namespace

ThreadPlace* current = nullptr;
dim3 block_place, block_shape, grid_shape;

Registration::Registration(const char* name, KernelCall call, const size_t* argument_bytes, size_t num_arguments) {
    kernels().push_back({name, call, argument_bytes, num_arguments});
}

void* dynamic_shared() { return block().shared; }

void fail(const char* message, const void* address) {
    char text[32] = "";
    if (address != nullptr) snprintf(text, sizeof text, " at %p", address);
    set_message(describe(fiber()) + ": " + message + text);
    switch_to_main(true);
    __builtin_trap();
}

int block_barrier_count(Site site, bool predicate) {
    Block& b = block();
    Barrier& barrier = b.barrier;
    unsigned generation = barrier.generation;
    if (barrier.arrived == 0) {
        barrier.site = site;
        barrier.counts[generation & 1] = 0;
    }
    check_site(barrier.site, site);
    barrier.counts[generation & 1] += predicate;
    if (++barrier.arrived == b.num_threads) {
        barrier.arrived = 0;
        barrier.generation++;
    } else {
        wait_for(&barrier.generation, generation, site);
    }
    return int(barrier.counts[generation & 1]);
}

void block_barrier(Site site) { block_barrier_count(site, false); }

Slot* warp_collective(Site site, unsigned mask, const void* input, size_t bytes, void (*complete)(Slot*)) {
    Block& b = block();
    Fiber& self = fiber();
    unsigned thread = unsigned(&self - b.fibers), first = thread / WARP * WARP;
    unsigned num_lanes = b.num_threads - first < WARP ? b.num_threads - first : WARP;
    if (num_lanes < WARP) mask &= (1u << num_lanes) - 1;
    if ((mask >> self.lane & 1) == 0) fail("the mask of a warp operation does not name the thread itself");
    std::vector<Collective*>& of_warp = b.collectives[thread / WARP];
    Collective* found = nullptr;
    for (Collective* each : of_warp) {
        if (each->mask == mask) found = each;
    }
    if (found == nullptr) {
        of_warp.push_back(found = new Collective);
        found->mask = mask;
    }
    unsigned generation = found->generation;
    Slot* slots = found->slots[generation & 1];
    if (found->arrived == 0) found->site = site;
    check_site(found->site, site);
    if (bytes != 0) memcpy(slots[self.lane].bytes, input, bytes);
    found->arrived |= 1u << self.lane;
    if (found->arrived == mask) {
        if (complete != nullptr) complete(slots);
        found->arrived = 0;
        found->generation++;
    } else {
        wait_for(&found->generation, generation, site);
    }
    return slots;
}

bool lane_is_there(unsigned lane) {
    Block& b = block();
    return unsigned(&fiber() - b.fibers) / WARP * WARP + lane < b.num_threads;
}

// Bytes arrive as late as the GPU may let them: when they are waited for.
void copy_async(void* destination, const void* source, unsigned bytes, unsigned source_bytes) {
    checked(static_cast<unsigned char*>(destination), bytes);
    if (source_bytes != 0) checked(static_cast<const unsigned char*>(source), bytes);
    fiber().copies.push_back({destination, source, bytes, source_bytes, fiber().copy_group});
}

void copy_async_commit() { fiber().copy_group++; }

void copy_async_wait(unsigned groups_left) {
    Fiber& self = fiber();
    size_t kept = 0;
    for (PendingCopy& copy : self.copies) {
        if (copy.group + groups_left >= self.copy_group) {
            self.copies[kept++] = copy;
            continue;
        }
        memcpy(copy.destination, copy.source, copy.source_bytes);
        memset(static_cast<unsigned char*>(copy.destination) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    }
    self.copies.resize(kept);
}

namespace {

struct MmaFragments {
    uint32_t a[4], b[2];
    float c[4];
};

// Rows and columns of a fragment's registers: PTX manual, "Matrix Fragments for mma.m16n8k16".
void multiply(Slot* slots) {
    float a[16][16], b[16][8];
    MmaFragments lanes[WARP];
    for (unsigned lane = 0; lane < WARP; lane++) {
        memcpy(&lanes[lane], slots[lane].bytes, sizeof lanes[lane]);
        unsigned group = lane / 4, pair = lane % 4 * 2;
        for (unsigned half = 0; half < 2; half++) {
            auto value = [half](uint32_t word) { return bf16_value(word >> (16 * half) & 0xffff); };
            a[group][pair + half] = value(lanes[lane].a[0]);
            a[group + 8][pair + half] = value(lanes[lane].a[1]);
            a[group][pair + 8 + half] = value(lanes[lane].a[2]);
            a[group + 8][pair + 8 + half] = value(lanes[lane].a[3]);
            b[pair + half][group] = value(lanes[lane].b[0]);
            b[pair + 8 + half][group] = value(lanes[lane].b[1]);
        }
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        unsigned row = lane / 4, column = lane % 4 * 2;
        for (unsigned idx = 0; idx < 4; idx++) {
            float sum = 0.0f;
            for (unsigned k = 0; k < 16; k++) sum += a[row + idx / 2 * 8][k] * b[k][column + idx % 2];
            lanes[lane].c[idx] += sum;
        }
        memcpy(slots[lane].bytes, &lanes[lane], sizeof lanes[lane]);
    }
}

struct MatrixRow {
    const unsigned char* address;
    uint16_t values[8];
};

void read_rows(Slot* slots) {
    for (unsigned lane = 0; lane < WARP; lane++) {
        MatrixRow row;
        memcpy(&row, slots[lane].bytes, sizeof row);
        memcpy(row.values, row.address, sizeof row.values);
        memcpy(slots[lane].bytes, &row, sizeof row);
    }
}

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MmaFragments mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    memcpy(mine.c, d, sizeof mine.c);
    Slot* slots = warp_collective(TAKT_SITE("mma.sync"), 0xffffffffu, &mine, sizeof mine, multiply);
    memcpy(&mine, slots[current->lane].bytes, sizeof mine);
    memcpy(d, mine.c, sizeof mine.c);
}

void load_matrix_x4(uint32_t (&d)[4], const void* row, bool transposed) {
    MatrixRow mine = {static_cast<const unsigned char*>(checked(row, 16)), {}};
    Slot* slots = warp_collective(TAKT_SITE("ldmatrix"), 0xffffffffu, &mine, sizeof mine, read_rows);
    unsigned group = current->lane / 4, pair = current->lane % 4 * 2;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        uint32_t word = 0;
        for (unsigned half = 0; half < 2; half++) {
            unsigned line = transposed ? pair + half : group, place = transposed ? group : pair + half;
            MatrixRow source;
            memcpy(&source, slots[matrix * 8 + line].bytes, sizeof source);
            word |= uint32_t(source.values[place]) << (16 * half);
        }
        d[matrix] = word;
    }
}

}  // namespace takt_emulated

#define EXPORTED extern "C" __attribute__((visibility("default")))

// What the last failed launch of the calling thread died of.
EXPORTED const char* takt_emulated_error() { return takt_emulated::last_error.c_str(); }

// How many arguments a kernel has; the bytes of each go to `sizes`. -1: no such kernel, or more than `capacity`.
EXPORTED int takt_emulated_argument_sizes(const char* kernel, size_t* sizes, unsigned capacity) {
    for (const auto& entry : takt_emulated::kernels()) {
        if (entry.name != kernel || entry.num_arguments > capacity) continue;
        for (size_t idx = 0; idx < entry.num_arguments; idx++) sizes[idx] = entry.argument_bytes[idx];
        return int(entry.num_arguments);
    }
    return -1;
}

// Ends the running launch with a message, from a signal handler that interrupted a kernel. Returns if it interrupted something else.
EXPORTED void takt_emulated_fail(const char* message, const void* address) {
    using namespace takt_emulated;
    const unsigned char* here = static_cast<const unsigned char*>(__builtin_frame_address(0));
    const unsigned char* stacks = block().stacks;
    if (stacks != nullptr && here >= stacks && here < stacks + MAX_THREADS * (STACK_BYTES + GUARD_BYTES)) fail(message, address);
}

// Runs a kernel to its end, as cuLaunchKernel and cuStreamSynchronize would. 0: done; 1: no such kernel; 2: a shape no GPU runs; 3: the
// kernel did what is undefined on a GPU, see `takt_emulated_error`.
EXPORTED int takt_emulated_launch(const char* kernel, const unsigned grid[3], const unsigned shape[3], unsigned shared_bytes,
                                  void** arguments) {
    using namespace takt_emulated;
    std::lock_guard<std::mutex> guard(one_launch_at_a_time());
    KernelCall call = nullptr;
    for (const auto& entry : kernels()) {
        if (entry.name == kernel) call = entry.call;
    }
    if (call == nullptr) return last_error = std::string("no kernel of the name ") + kernel, 1;
    uint64_t num_threads = uint64_t(shape[0]) * shape[1] * shape[2], num_blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    if (num_threads == 0 || num_threads > MAX_THREADS || num_blocks == 0 || shared_bytes > MAX_SHARED_BYTES || !prepare_stacks()) {
        return last_error = "a grid, block or shared memory that no GPU runs", 2;
    }
    Block& b = block();
    b.call = call, b.arguments = arguments, b.num_threads = unsigned(num_threads), b.failed = false;
    grid_shape = {grid[0], grid[1], grid[2]}, block_shape = {shape[0], shape[1], shape[2]};
    for (uint64_t idx = 0; idx < num_blocks; idx++) {
        block_place = {unsigned(idx % grid[0]), unsigned(idx / grid[0] % grid[1]), unsigned(idx / grid[0] / grid[1])};
        run_block(shared_bytes, idx % 2 == 1);
        if (b.failed) return last_error = std::string(kernel) + ": " + b.message, 3;
    }
    return 0;
}
