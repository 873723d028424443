// Building blocks of the kernels: 16-byte vectors of logits, the running (max, sum, weighted sum), reductions over a CTA.
#pragma once

#include <cstdint>

#ifdef LWZ_ON_CPU
#include "on_cpu.h"
#else
#include <cuda_runtime.h>

// 2^x, error at most 2 ulp (PTX ISA, ex2.approx). ftz flushes results below 2^-126 to 0, which does not change any sum.
__device__ inline float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Two fp32 → one word of two bf16, rounded to nearest even; `low` comes first in memory.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
#endif

constexpr float LOG2E = 1.4426950408889634f;
constexpr int WARP = 32;

// Placeholder for "no logit": low enough to vanish next to any real one, and far enough from −FLT_MAX that differences,
// and products of them with a sum, stay finite. −∞ would make NaN of 0 · (−∞).
constexpr float ABSENT = -1e30f;

__device__ inline uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;  // i is known once the loop around it is unrolled
}

// Element types. WIDTH elements fill 16 bytes.
struct Fp32 {
  static constexpr int WIDTH = 4, BYTES = 4;
  __device__ static float at(const uint4& v, int i) { return __uint_as_float(word(v, i)); }
  __device__ static float load(const char* row, int64_t i) { return reinterpret_cast<const float*>(row)[i]; }
  __device__ static void store(char* row, int64_t i, float value) { reinterpret_cast<float*>(row)[i] = value; }
  __device__ static uint32_t absent() { return __float_as_uint(ABSENT); }
};

struct Bf16 {
  static constexpr int WIDTH = 8, BYTES = 2;
  __device__ static float at(const uint4& v, int i) {
    const uint32_t pair = word(v, i / 2);
    return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
  }
  __device__ static float load(const char* row, int64_t i) {
    return __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(row)[i]) << 16);
  }
  __device__ static void store(char* row, int64_t i, float value) {
    reinterpret_cast<uint16_t*>(row)[i] = static_cast<uint16_t>(pack_bf16(value, 0.0f));
  }
  __device__ static uint32_t absent() { return pack_bf16(ABSENT, ABSENT); }
};

template <class In>
__device__ inline uint4 absent_vector() {
  const uint32_t w = In::absent();
  return make_uint4(w, w, w, w);
}

// Logits are read once per pass and never again: evict-first, so that they do not push the GEMM's operands out of L2.
__device__ inline uint4 load_vector(const char* row, int64_t index) {
  return __ldcs(reinterpret_cast<const uint4*>(row) + index);
}

// COUNT values to columns index · COUNT …, 8 or 16 bytes at a time.
template <class Out, int COUNT>
__device__ inline void store_vector(char* row, int64_t index, const float (&values)[COUNT]) {
  constexpr int WORDS = COUNT * Out::BYTES / 4;
  uint32_t words[WORDS];
#pragma unroll
  for (int i = 0; i < WORDS; i++) {
    if constexpr (Out::BYTES == 4) words[i] = __float_as_uint(values[i]);
    else words[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
  }
  char* to = row + index * COUNT * Out::BYTES;
  if constexpr (WORDS == 2) {
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
#pragma unroll
    for (int i = 0; i < WORDS; i += 4)
      reinterpret_cast<uint4*>(to)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
  }
}

// m = max y, s = Σ e^(y−m), w = Σ e^(y−m)·(y−m), in nats: a base-2 maximum would be rounded on its way back.
struct Statistics {
  float m, s, w;

  // Rescales the sums to a higher maximum.
  __device__ void move_to(float highest) {
    const float offset = m - highest;
    const float factor = exp2_approx(offset * LOG2E);
    w = factor * (w + s * offset);
    s = factor * s;
    m = highest;
  }

  // Adds one logit, relative to m.
  __device__ void add(float z, float scale) {
    const float d = fmaf(z, scale, -m);
    const float e = exp2_approx(d * LOG2E);
    s += e;
    w = fmaf(e, d, w);
  }
};

// Butterfly reductions: every lane gets the same bits, and the order is the same in every run.
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = WARP / 2; distance; distance /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = WARP / 2; distance; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// A kernel reduces each kind once, so no barrier protects a second use.
template <int THREADS>
struct Scratch {
  float highest[THREADS / WARP], sums[THREADS / WARP], weighted[THREADS / WARP];
};

template <int THREADS>
__device__ float block_max(float value, Scratch<THREADS>& scratch) {
  value = warp_max(value);
  if (threadIdx.x % WARP == 0) scratch.highest[threadIdx.x / WARP] = value;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < THREADS / WARP; i++) value = fmaxf(value, scratch.highest[i]);
  return value;
}

// Sums of s and w over the CTA, whose m is already the same in all threads. Every thread gets the result.
template <int THREADS>
__device__ void block_sum(Statistics& mine, Scratch<THREADS>& scratch) {
  const float s = warp_sum(mine.s), w = warp_sum(mine.w);
  if (threadIdx.x % WARP == 0) {
    scratch.sums[threadIdx.x / WARP] = s;
    scratch.weighted[threadIdx.x / WARP] = w;
  }
  __syncthreads();
  mine.s = mine.w = 0.0f;
#pragma unroll
  for (int i = 0; i < THREADS / WARP; i++) {
    mine.s += scratch.sums[i];
    mine.w += scratch.weighted[i];
  }
}

// Coefficients of the gradient of a row's logits: with y = z · scale and p = e^(y − lse),
// dL/dz = p · (base − entropy · (y − mean)), plus g · scale at the label. `base` and `entropy` include scale.
struct RowGradient {
  float scale, lse, mean, base, entropy, label;

  __device__ float operator()(float z) const {
    const float p = exp2_approx(fmaf(z, scale, -lse) * LOG2E);
    return p * (base - entropy * fmaf(z, scale, -mean));
  }
};

struct Logits {
  const char* data;
  int64_t stride_bytes;
  int columns;
  bool aligned;  // rows of z and of the gradient start at multiples of 16 bytes
  const int64_t* labels;
  float scale;

  __device__ const char* row(int64_t i) const { return data + i * stride_bytes; }
};

struct Target {
  char* data;
  int64_t stride_bytes;

  __device__ char* row(int64_t i) const { return data + i * stride_bytes; }
};
