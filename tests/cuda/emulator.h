// CUDA's execution model on the CPU: the blocks of a grid one after the other, the threads of a
// block as fibers that switch at barriers and warp-wide exchanges only. What it adds to a GPU: the
// order in which threads run between two barriers is a choice (so a missing barrier shows as a
// result that depends on it), shared memory starts as NaN, and a barrier that some thread never
// reaches is reported instead of waiting for ever.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#ifndef __forceinline__
#define __forceinline__ inline __attribute__((always_inline))
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

// forward: all warps in step. backward: the last warp runs ahead to the block's next barrier, then
// the one before it, their lanes from last to first. shuffled: the first warp ahead, lanes mixed.
enum class Order { forward, backward, shuffled };

// What the tests set.
inline Order order = Order::forward;
inline int shared_memory_limit = 232448;
inline int64_t launches = 0;

// What a test plants, to see it found.
enum class Fault { none, block, barrier, launch, ticket };
inline Fault fault = Fault::none;
inline int64_t launches_before = 0;  // this call; Fault::launch forgets all but its first

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<char[]> stack;
  enum { ready, at_block_barrier, at_warp_barrier, stuck, done } state = ready;
  int exchanges = 0;
};

struct Warp {
  int waiting = 0, alive = 0;
  uint64_t value[2][32];
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline std::vector<double> shared_memory;
inline bool misaligned = false;
inline int current = 0, block_waiting = 0, alive = 0, vote = 0;
inline void* scheduler_stack_pointer = nullptr;
inline void (*entry)() = nullptr;
inline dim3 thread, block, block_size, grid_size;

#if !defined(__x86_64__)
#error "the emulator switches fibers on x86-64 only"
#endif
// Saves the callee-saved registers and changes stacks.
extern "C" void vaekern_switch_stacks(void** from, void* to);
asm(R"(
.text
.weak vaekern_switch_stacks
vaekern_switch_stacks:
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
)");

inline void yield() {
  vaekern_switch_stacks(&fibers[current].stack_pointer, scheduler_stack_pointer);
}

inline void start_fiber() {
  entry();
  fibers[current].state = Fiber::done;
  --alive;
  --warps[current / 32].alive;
  yield();
  std::abort();  // a finished thread never runs on
}

inline void release_block() {
  block_waiting = 0;
  for (Fiber& f : fibers)
    if (f.state == Fiber::at_block_barrier) f.state = Fiber::ready;
}

inline void release_warp(int w) {
  warps[w].waiting = 0;
  for (size_t k = 32 * w; k < fibers.size() && k < 32 * size_t(w) + 32; ++k)
    if (fibers[k].state == Fiber::at_warp_barrier) fibers[k].state = Fiber::ready;
}

// A GPU ends the kernel where a vector does not lie on a multiple of its size; some CPUs do not.
inline void require_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
  misaligned = true;
  fibers[current].state = Fiber::stuck;
  yield();
}

inline void block_barrier() {
  if (fault == Fault::barrier) return;
  fibers[current].state = Fiber::at_block_barrier;
  ++block_waiting;
  yield();
}

inline void warp_barrier() {
  fibers[current].state = Fiber::at_warp_barrier;
  ++warps[current / 32].waiting;
  yield();
}

// Every lane gives a value and gets to read all 32. Two buffers in turn: a lane that is ahead by
// one exchange does not overwrite what others still read.
template <class T>
const uint64_t* exchange(T value) {
  const int w = current / 32, turn = fibers[current].exchanges++ & 1;
  uint64_t& slot = warps[w].value[turn][current % 32];
  slot = 0;
  std::memcpy(&slot, &value, sizeof value);
  warp_barrier();
  return warps[w].value[turn];
}

template <class T>
T taken(const uint64_t* values, int lane) {
  T value;
  std::memcpy(&value, &values[lane], sizeof value);
  return value;
}

// Runs every thread of a warp that is ready until it waits; was there one?
inline bool run_warp(int w) {
  bool ran = false;
  static uint32_t random = 12345;
  random = random * 1664525 + 1013904223;
  for (int n = 0; n < 32; ++n) {
    const int lane = order == Order::forward    ? n
                     : order == Order::backward ? 31 - n
                                                : (n * 11 + int(random >> 8)) & 31;
    const int k = 32 * w + lane;
    if (k >= int(fibers.size()) || fibers[k].state != Fiber::ready) continue;
    ran = true;
    current = k;
    thread.x = unsigned(k);
    vaekern_switch_stacks(&scheduler_stack_pointer, fibers[k].stack_pointer);
  }
  return ran;
}

// The n-th of a permutation of 0 .. count - 1 that leaves nothing in its place.
inline int64_t mixed(int64_t n, int64_t count) {
  int64_t step = count / 2 + 1;
  auto divisor = [](int64_t a, int64_t b) {
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  };
  while (divisor(step, count) != 1) ++step;
  return (n * step + count / 3) % count;
}

// Returns what went wrong, or null.
inline const char* run_block(int threads) {
  constexpr size_t STACK = 64 * 1024;
  fibers.resize(threads);
  warps.assign((threads + 31) / 32, Warp());
  alive = threads;
  block_waiting = 0;
  misaligned = false;
  for (int k = 0; k < threads; ++k) {
    Fiber& f = fibers[k];
    if (!f.stack) f.stack.reset(new char[STACK]);
    f.state = Fiber::ready;
    f.exchanges = 0;
    ++warps[k / 32].alive;
    auto top = reinterpret_cast<uintptr_t>(f.stack.get() + STACK) & ~uintptr_t(63);
    auto* frame = reinterpret_cast<void**>(top) - 2;  // as after a call: misaligned by 8
    frame[0] = reinterpret_cast<void*>(&start_fiber);
    f.stack_pointer = frame - 6;
    std::memset(f.stack_pointer, 0, 6 * sizeof(void*));
  }
  const int count = int(warps.size());
  while (alive > 0) {
    bool ran = false;
    for (int n = 0; n < count; ++n) {
      const int w = order == Order::backward ? count - 1 - n : n;
      // in step: a warp stops at its own barriers for the others; ahead: at the block's only
      do {
        ran = run_warp(w) || ran;
        if (warps[w].waiting == 0 || warps[w].waiting != warps[w].alive) break;
        release_warp(w);
        ran = true;
      } while (order != Order::forward);
    }
    if (block_waiting > 0 && block_waiting == alive) {
      release_block();
      ran = true;
    }
    if (misaligned) return "a vector that does not lie on a multiple of its size";
    if (!ran) return "a barrier that not every thread reaches";
  }
  return nullptr;
}

}  // namespace emulator

#define VAEKERN_ALIGNED(p, bytes) ::emulator::require_aligned(p, bytes)
#define threadIdx (::emulator::thread)
#define blockIdx (::emulator::block)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { emulator::warp_barrier(); }
inline int __syncthreads_or(int mine) {
  emulator::vote |= mine != 0;
  emulator::block_barrier();
  const int result = emulator::vote;
  emulator::block_barrier();
  emulator::vote = 0;
  emulator::block_barrier();
  return result;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int lane = emulator::current % 32;
  return emulator::taken<T>(emulator::exchange(value), lane ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::taken<T>(emulator::exchange(value), from & 31);
}
inline unsigned __ballot_sync(unsigned, int mine) {
  const uint64_t* all = emulator::exchange(uint32_t(mine != 0));
  unsigned bits = 0;
  for (int k = 0; k < 32; ++k) bits |= unsigned(all[k]) << k;
  return bits;
}
inline int __any_sync(unsigned mask, int mine) { return __ballot_sync(mask, mine) != 0; }
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  const uint64_t* all = emulator::exchange(value);
  unsigned least = ~0u;
  for (int k = 0; k < 32; ++k) least = unsigned(all[k]) < least ? unsigned(all[k]) : least;
  return least;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
// Blocks run one after the other, whole: memory is always in order.
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* p, unsigned add) {
  const unsigned before = *p;
  *p += add;
  return before;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline int64_t __double_as_longlong(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
using std::isfinite;

#define VAEKERN_ISA emulated
#include "../../csrc/cpu/convert.h"

namespace vaekern {
namespace cuda {

constexpr unsigned ALL_LANES = 0xffffffffu;

#define VAEKERN_DYNAMIC_SHARED(name) \
  unsigned char* name = reinterpret_cast<unsigned char*>(::emulator::shared_memory.data())

using namespace emulated;  // the host's View and MergedAxes
inline float half_to_float(uint16_t bits) { return emulated::f16_to_float(bits); }
inline uint16_t float_to_half(float x) { return emulated::float_to_f16(x); }

inline void multiply_add_8x8x4(double (&c)[2], double a, double b) {
  const int lane = ::emulator::current % 32, group = lane / 4, member = lane % 4;
  const uint64_t* from = ::emulator::exchange(a);
  double row[4];
  for (int k = 0; k < 4; ++k) row[k] = ::emulator::taken<double>(from, 4 * group + k);
  from = ::emulator::exchange(b);
  for (int e = 0; e < 2; ++e)
    for (int k = 0; k < 4; ++k)
      c[e] = std::fma(row[k], ::emulator::taken<double>(from, 4 * (2 * member + e) + k), c[e]);
}

inline int shared_memory_limit(int* bytes) {
  *bytes = ::emulator::shared_memory_limit;
  return 0;
}

constexpr int GUARD = 64;  // numbers behind a block's shared memory that must stay NaN

template <class Arguments>
int launch(void (*kernel)(Arguments), int64_t blocks, int threads, size_t shared, void*,
           const Arguments& arguments) {
  static void (*kernel_now)(Arguments);
  static const Arguments* arguments_now;
  kernel_now = kernel;
  arguments_now = &arguments;
  if (threads < 1 || threads > 1024 || blocks < 1 || blocks > 0x7fffffff ||
      shared > size_t(::emulator::shared_memory_limit))
    return 1;
  ::emulator::entry = [] { kernel_now(*arguments_now); };
  ::emulator::block_size.x = unsigned(threads);
  ::emulator::grid_size.x = unsigned(blocks);
  using ::emulator::Fault;
  const bool first = ::emulator::launches++ == ::emulator::launches_before;
  if (::emulator::fault == Fault::launch && !first) return 0;
  for (int64_t n = 0; n < blocks; ++n) {
    // which block is the last one to finish is a choice, too
    const int64_t b = ::emulator::order == ::emulator::Order::forward ? n
                      : ::emulator::order == ::emulator::Order::backward
                          ? blocks - 1 - n
                          : ::emulator::mixed(n, blocks);
    if (::emulator::fault == Fault::block && n == blocks / 2) continue;
    ::emulator::block.x = unsigned(b);
    auto& memory = ::emulator::shared_memory;
    memory.assign((shared + 7) / 8 + GUARD, std::nan(""));
    const char* wrong = ::emulator::run_block(threads);
    for (int k = 0; k < GUARD; ++k)
      if (!std::isnan(memory[memory.size() - 1 - k])) wrong = "shared memory is overrun";
    if (wrong != nullptr) {
      std::fprintf(stderr, "emulator: %s (block %lld)\n", wrong, static_cast<long long>(b));
      return 2;
    }
  }
  return 0;
}

}  // namespace cuda
}  // namespace vaekern
