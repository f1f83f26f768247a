// Kernels that go wrong on purpose, so that what a program does about it can be seen on a GPU. One thread each.
//
//   fault_trap   ends in a trap: an error of the context that stays.
//   fault_write  writes one word to `to`, which is to be an address that nothing lies at: as above, found by the memory's side.
//   fault_spin   does nothing until `ns` nanoseconds have passed, and then ends by itself.
//
//   to   an address that is none of memory's: what lay there would be written over
//   ns   nanoseconds of the device's timer
//
// Bound by nothing. No engine carries them, and nothing but a check of faults launches them.
#include "common/types.cuh"

namespace {

// Cycles in a nanosecond, at most: no multiprocessor runs at 4 GHz.
constexpr uint64_t MAX_CYCLES_PER_NS = 4;

__device__ __forceinline__ uint64_t timer_ns() {
#if defined(TAKT_EMULATED)
    return takt_emulated::timer_ns();
#else
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
#endif
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1) fault_trap() { __trap(); }

extern "C" __global__ void __launch_bounds__(1) fault_write(uint32_t* to) { *static_cast<volatile uint32_t*>(to) = 1; }

extern "C" __global__ void __launch_bounds__(1) fault_spin(uint64_t ns) {
    uint64_t timer = timer_ns(), cycles = uint64_t(clock64());
    // By either: a timer that stood still would hold the device for ever.
    while (timer_ns() - timer < ns && uint64_t(clock64()) - cycles < MAX_CYCLES_PER_NS * ns) __nanosleep(1000);
}
