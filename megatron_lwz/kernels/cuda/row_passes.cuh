// The two passes over a tile: its statistics, and its gradient once the whole row is known. One CTA per row.
#pragma once

#include "device.cuh"

namespace {

constexpr int THREADS = 256;  // one CTA per row
constexpr int UNROLL = 4;     // vectors a thread has in flight

// Loads UNROLL vectors of a row. Vectors beyond its end are filled with logits that contribute 0 to every sum.
template <class In>
__device__ void load_batch(uint4 (&batch)[UNROLL], const char* row, int first, int vectors) {
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const int index = first + u * THREADS + threadIdx.x;
    batch[u] = index < vectors ? load_vector(row, index) : absent_vector<In>();
  }
}

// Online softmax, rescaled once per batch rather than once per logit.
template <class In>
__device__ void absorb(Statistics& mine, const uint4 (&batch)[UNROLL], float scale) {
  float highest = mine.m;
#pragma unroll
  for (int u = 0; u < UNROLL; u++)
#pragma unroll
    for (int i = 0; i < In::WIDTH; i++) highest = fmaxf(highest, In::at(batch[u], i) * scale);
  mine.move_to(highest);
#pragma unroll
  for (int u = 0; u < UNROLL; u++)
#pragma unroll
    for (int i = 0; i < In::WIDTH; i++) mine.add(In::at(batch[u], i), scale);
}

template <class In>
__global__ void __launch_bounds__(THREADS) row_statistics(Logits z, int64_t rows, float* running) {
  __shared__ Scratch<THREADS> scratch;
  const int64_t at = blockIdx.x;
  const char* row = z.row(at);
  const int vectors = z.aligned ? z.columns / In::WIDTH : 0;
  Statistics mine = {ABSENT, 0.0f, 0.0f};
  for (int first = 0; first < vectors; first += THREADS * UNROLL) {
    uint4 batch[UNROLL];
    load_batch<In>(batch, row, first, vectors);
    absorb<In>(mine, batch, z.scale);
  }
  for (int k = vectors * In::WIDTH + threadIdx.x; k < z.columns; k += THREADS) {
    const float logit = In::load(row, k);
    mine.move_to(fmaxf(mine.m, logit * z.scale));
    mine.add(logit, z.scale);
  }
  mine.move_to(block_max(mine.m, scratch));
  block_sum(mine, scratch);
  if (threadIdx.x == 0) {
    Statistics before = {running[at], running[rows + at], running[2 * rows + at]};
    const float highest = fmaxf(before.m, mine.m);
    before.move_to(highest);
    mine.move_to(highest);
    running[at] = highest;
    running[rows + at] = before.s + mine.s;
    running[2 * rows + at] = before.w + mine.w;
    const int64_t label = z.labels[at];
    if (label >= 0 && label < z.columns) running[3 * rows + at] += In::load(row, label) * z.scale;
  }
}

struct Upstream {
  const float *lse, *mean, *logprob;
  const float *entropy, *lse_gradient;  // may be null: 0 everywhere
};

template <class Out>
__device__ void clear_row(char* out, int columns) {
  for (int k = threadIdx.x; k < columns; k += THREADS) Out::store(out, k, 0.0f);
}

// The gradient may be written over z. Where it is narrower than z, the CTA walks its row from left to right, and all of
// a batch is read before any of it is written: the writes stay behind the reads.
template <class In, class Out>
__global__ void __launch_bounds__(THREADS) row_gradient(Logits z, Target target, Upstream upstream) {
  constexpr bool NARROWS = Out::BYTES < In::BYTES;
  const int64_t at = blockIdx.x;
  const char* row = z.row(at);
  char* out = target.row(at);
  const float g = upstream.logprob[at];
  const float h = upstream.entropy ? upstream.entropy[at] : 0.0f;
  const float k = upstream.lse_gradient ? upstream.lse_gradient[at] : 0.0f;
  if (g == 0.0f && h == 0.0f && k == 0.0f) return clear_row<Out>(out, z.columns);  // reads nothing, exactly zero

  const RowGradient of = {z.scale, upstream.lse[at], upstream.mean[at], (k - g) * z.scale, h * z.scale, g * z.scale};
  const int64_t label = z.labels[at];
  const bool owner = threadIdx.x == 0 && label >= 0 && label < z.columns;
  const float label_gradient = owner ? of(In::load(row, label)) + of.label : 0.0f;
  __syncthreads();  // the label's logit is read before anything is written

  const int vectors = z.aligned ? z.columns / In::WIDTH : 0;
  for (int first = 0; first < vectors; first += THREADS * UNROLL) {
    uint4 batch[UNROLL];
    load_batch<In>(batch, row, first, vectors);
    if constexpr (NARROWS) __syncthreads();
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int index = first + u * THREADS + threadIdx.x;
      float values[In::WIDTH];
#pragma unroll
      for (int i = 0; i < In::WIDTH; i++) values[i] = of(In::at(batch[u], i));
      if (index < vectors) store_vector<Out>(out, index, values);
    }
  }
  for (int first = vectors * In::WIDTH; first < z.columns; first += THREADS) {
    const int column = first + threadIdx.x;
    const float logit = column < z.columns ? In::load(row, column) : ABSENT;
    if constexpr (NARROWS) __syncthreads();
    if (column < z.columns) Out::store(out, column, of(logit));
  }
  __syncthreads();  // the label's column is written last
  if (owner) Out::store(out, label, label_gradient);
}

}  // namespace
