// Runs the kernels on a CPU, to test their logic where there is no GPU:
// g++ -x c++ -DLWZ_ON_CPU -pthread -fno-gnu-unique, the last so that two such libraries keep their variables apart.
//
// A CTA is an OS thread, its threads are fibers that switch at barriers; the CTAs of a cluster run at the same time,
// clusters one after another. Arithmetic is IEEE fp32, so the last bits differ from the GPU's. It proves nothing about
// speed, about memory order inside a warp, or about what nvcc made of the code.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local

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

struct Cluster {
  std::atomic<unsigned> arrivals{0};
  std::vector<std::atomic<char*>> anchors;  // one per CTA: where its shared memory lies
  explicit Cluster(unsigned size) : anchors(size) {}
};

// A CTA while it runs, on its own OS thread.
struct Block {
  unsigned rank, threads, current = 0;
  dim3 index;
  Cluster* cluster;
  ucontext_t scheduler;
  std::vector<ucontext_t> fibers;
  std::vector<char> done;
  std::vector<unsigned> phase;  // cluster barriers each thread has arrived at
  Barrier whole;
  std::vector<Barrier> warps;
  std::vector<float> lanes;
  std::function<void()> kernel;
};

inline thread_local Block* block = nullptr;
inline thread_local char anchor = 0;

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

inline void run_block(Block* mine, unsigned stack_bytes) {
  block = mine;
  mine->cluster->anchors[mine->rank] = &anchor;
  std::unique_ptr<char[]> stacks(new char[size_t(mine->threads) * stack_bytes]);
  for (unsigned i = 0; i < mine->threads; i++) {
    getcontext(&mine->fibers[i]);
    mine->fibers[i].uc_stack.ss_sp = &stacks[size_t(i) * stack_bytes];
    mine->fibers[i].uc_stack.ss_size = stack_bytes;
    mine->fibers[i].uc_link = nullptr;
    makecontext(&mine->fibers[i], fiber, 0);
  }
  for (bool alive = true; alive; std::this_thread::yield()) {
    alive = false;
    for (unsigned turn = 0; turn < mine->threads; turn++) {
      const bool backwards = mine->index.x % 2;  // another order shows other missing barriers
      const unsigned i = backwards ? mine->threads - 1 - turn : turn;
      if (mine->done[i]) continue;
      alive = true;
      mine->current = i;
      swapcontext(&mine->scheduler, &mine->fibers[i]);
    }
  }
}

inline void run_cluster(unsigned first, unsigned size, unsigned threads, const std::function<void()>& kernel) {
  Cluster cluster(size);
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::thread> running;
  for (unsigned rank = 0; rank < size; rank++) {
    auto mine = std::make_unique<Block>();
    mine->rank = rank, mine->threads = threads, mine->index.x = first + rank, mine->cluster = &cluster;
    mine->fibers.resize(threads), mine->done.assign(threads, 0), mine->phase.assign(threads, 0);
    mine->warps.resize(threads / 32), mine->lanes.resize(threads), mine->kernel = kernel;
    blocks.push_back(std::move(mine));
  }
  for (auto& mine : blocks) running.emplace_back(run_block, mine.get(), 64u << 10);
  for (auto& thread : running) thread.join();
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

namespace cooperative_groups {

struct cluster_group {
  unsigned num_blocks() const { return unsigned(on_cpu::block->cluster->anchors.size()); }
  unsigned block_rank() const { return on_cpu::block->rank; }
  void barrier_arrive() const {
    on_cpu::block->phase[on_cpu::block->current]++;
    on_cpu::block->cluster->arrivals++;
  }
  void barrier_wait() const {
    auto& block = *on_cpu::block;
    const unsigned expected = block.phase[block.current] * block.threads * num_blocks();
    while (block.cluster->arrivals < expected) on_cpu::yield();
  }
  void sync() const {
    barrier_arrive();
    barrier_wait();
  }
  // Thread-local variables of a library lie at the same distance from each other in every thread.
  template <class T>
  T* map_shared_rank(T* at, unsigned rank) const {
    char* other = on_cpu::block->cluster->anchors[rank];
    return reinterpret_cast<T*>(other + (reinterpret_cast<char*>(at) - &on_cpu::anchor));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline const char* cudaGetErrorName(cudaError_t code) { return code ? "cudaErrorInvalidValue" : "cudaSuccess"; }

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const unsigned size = config->numAttrs ? config->attrs->val.clusterDim.x : 1;
  for (unsigned first = 0; first < config->gridDim.x; first += size)
    on_cpu::run_cluster(first, size, config->blockDim.x, [=] { kernel(arguments...); });
  return cudaSuccess;
}
