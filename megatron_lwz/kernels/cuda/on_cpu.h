// Runs the kernels on a CPU, to test their logic where there is no GPU:
// g++ -x c++ -DLWZ_ON_CPU -fno-gnu-unique, the last so that two such libraries keep their variables apart.
//
// CTAs run one after another; the threads of a CTA are fibers that switch at barriers. Arithmetic is IEEE fp32, so the
// last bits differ from the GPU's. It does not test speed, memory order inside a warp, or the code that nvcc
// generates.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline uint4 __ldcs(const uint4* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(uint4)) std::abort();  // a GPU faults too
  return *at;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float exp2_approx(float x) { return std::exp2(x); }
inline uint32_t bf16_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

namespace on_cpu {

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

// A CTA while it runs.
struct Block {
  unsigned threads, current = 0;
  dim3 index;
  ucontext_t scheduler;
  std::vector<ucontext_t> fibers;
  std::vector<char> done;
  Barrier whole;
  std::vector<Barrier> warps;
  std::vector<float> lanes;
  std::function<void()> kernel;
};

inline Block* block = nullptr;

inline void yield() { swapcontext(&block->fibers[block->current], &block->scheduler); }

inline void wait(Barrier& barrier, unsigned expected) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    barrier.generation++;
  } else {
    while (barrier.generation == generation) yield();
  }
}

inline void fiber() {
  block->kernel();
  block->done[block->current] = 1;
  yield();
}

inline void run_block(unsigned index, unsigned threads, const std::function<void()>& kernel) {
  constexpr size_t STACK_BYTES = 64u << 10;
  Block mine;
  mine.threads = threads, mine.index.x = index, mine.kernel = kernel;
  mine.fibers.resize(threads), mine.done.assign(threads, 0);
  mine.warps.resize(threads / 32), mine.lanes.resize(threads);
  block = &mine;
  std::unique_ptr<char[]> stacks(new char[threads * STACK_BYTES]);
  for (unsigned i = 0; i < threads; i++) {
    getcontext(&mine.fibers[i]);
    mine.fibers[i].uc_stack.ss_sp = &stacks[i * STACK_BYTES];
    mine.fibers[i].uc_stack.ss_size = STACK_BYTES;
    mine.fibers[i].uc_link = nullptr;
    makecontext(&mine.fibers[i], fiber, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (unsigned turn = 0; turn < threads; turn++) {
      const bool backwards = index % 2;  // another order reveals other missing barriers
      const unsigned i = backwards ? threads - 1 - turn : turn;
      if (mine.done[i]) continue;
      alive = true;
      mine.current = i;
      swapcontext(&mine.scheduler, &mine.fibers[i]);
    }
  }
}

struct ThreadIndex {
  struct X {
    operator unsigned() const { return block->current; }
  } x;
};
struct BlockIndex {
  struct X {
    operator unsigned() const { return block->index.x; }
  } x;
};

}  // namespace on_cpu

inline on_cpu::ThreadIndex threadIdx;
inline on_cpu::BlockIndex blockIdx;

inline void __syncthreads() { on_cpu::wait(on_cpu::block->whole, on_cpu::block->threads); }

inline float __shfl_xor_sync(unsigned, float value, int distance) {
  auto& block = *on_cpu::block;
  auto& warp = block.warps[block.current / 32];
  block.lanes[block.current] = value;
  on_cpu::wait(warp, 32);
  const float other = block.lanes[block.current ^ unsigned(distance)];
  on_cpu::wait(warp, 32);
  return other;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline const char* cudaGetErrorName(cudaError_t code) { return code ? "cudaErrorInvalidValue" : "cudaSuccess"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  for (unsigned index = 0; index < config->gridDim.x; index++)
    on_cpu::run_block(index, config->blockDim.x, [=] { kernel(arguments...); });
  return cudaSuccess;
}
