// Statistics, the clipped GRPO objective and the gradient of whole rows: z is read once.
#pragma once

#include "device.cuh"

namespace {

constexpr int CLUSTER_THREADS = 512;
constexpr int MAX_CLUSTER = 8;  // the largest portable size
constexpr int SLICE = 20480;    // columns a CTA of a cluster holds in registers: 40 words of fp32 (20 of bf16) a thread

struct Objective {
  const float *old, *advantage, *weight;
  float clip_low, clip_high;
};

struct RowInputs {
  float old, advantage, weight, label_logit;
};

struct Outcome {
  float lse, logprob, entropy, loss, gradient;
};

// weight · max(−r·A, −clip(r)·A) and its derivative in the log-prob. The log ratio is held within ±20, as in
// algorithms/grpo.py.
__device__ Outcome clipped_objective(const Statistics& whole, const RowInputs& row, float scale, const Objective& o) {
  constexpr float LIMIT = 20.0f;
  const float log_total = logf(whole.s);
  Outcome result = {};
  result.lse = whole.m + log_total;
  result.logprob = row.label_logit * scale - result.lse;
  result.entropy = log_total - whole.w / whole.s;
  if (!(row.weight > 0.0f)) return result;
  const float difference = result.logprob - row.old;
  const float ratio = expf(fminf(fmaxf(difference, -LIMIT), LIMIT));
  const float plain = -ratio * row.advantage;
  const float clipped = -fminf(fmaxf(ratio, 1.0f - o.clip_low), 1.0f + o.clip_high) * row.advantage;
  result.loss = row.weight * fmaxf(plain, clipped);
  result.gradient = plain >= clipped && fabsf(difference) <= LIMIT ? row.weight * plain : 0.0f;
  return result;
}

// Merges the CTAs' statistics: lane r of the first warp reads those of CTA r. All CTAs get the same bits.
__device__ Statistics merge_cluster(Statistics& part, const cooperative_groups::cluster_group& cluster) {
  Statistics theirs = {ABSENT, 0.0f, 0.0f};
  if (threadIdx.x < cluster.num_blocks()) theirs = *cluster.map_shared_rank(&part, threadIdx.x);
  theirs.move_to(warp_max(theirs.m));
  return {theirs.m, warp_sum(theirs.s), warp_sum(theirs.w)};
}

// One cluster per row, one slice of the row per CTA, held in registers from the only read to the only write.
template <class In, class Out>
__global__ void __launch_bounds__(CLUSTER_THREADS, 2)
    row_grpo(Logits z, Target target, Objective objective, int64_t rows, float* outputs) {
  constexpr int VECTORS = SLICE / CLUSTER_THREADS / In::WIDTH;
  __shared__ Scratch<CLUSTER_THREADS> scratch;
  __shared__ Statistics part;
  __shared__ RowInputs inputs;
  __shared__ Outcome outcome;
  const auto cluster = cooperative_groups::this_cluster();
  const int64_t at = blockIdx.x / cluster.num_blocks();
  const char* row = z.row(at);
  const int per_block = ((z.columns + In::WIDTH - 1) / In::WIDTH + cluster.num_blocks() - 1) / cluster.num_blocks();
  const int start = cluster.block_rank() * per_block;

  const int64_t label = z.labels[at];
  const bool labelled = label >= 0 && label < z.columns;

  uint4 slice[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const int local = v * CLUSTER_THREADS + threadIdx.x, column = (start + local) * In::WIDTH;
    slice[v] = absent_vector<In>();
    if (local < per_block && column + In::WIDTH <= z.columns) slice[v] = load_vector(row, start + local);
  }
  // on its way together with the slice: waiting for it after the cluster's barrier would add to every row's time
  if (threadIdx.x == 0) {
    inputs = {objective.old[at], objective.advantage[at], objective.weight[at], labelled ? In::load(row, label) : 0.0f};
  }

  Statistics mine = {ABSENT, 0.0f, 0.0f};
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
#pragma unroll
    for (int i = 0; i < In::WIDTH; i++) mine.m = fmaxf(mine.m, In::at(slice[v], i) * z.scale);
  }
  // columns that fill no vector: at most WIDTH − 1, one for each of the first threads of the row's first CTA
  const int tail = z.columns / In::WIDTH * In::WIDTH + threadIdx.x;
  const bool has_tail = cluster.block_rank() == 0 && tail < z.columns;
  const float tail_logit = has_tail ? In::load(row, tail) : ABSENT;
  mine.m = block_max(fmaxf(mine.m, tail_logit * z.scale), scratch);
#pragma unroll
  for (int v = 0; v < VECTORS; v++)
#pragma unroll
    for (int i = 0; i < In::WIDTH; i++) mine.add(In::at(slice[v], i), z.scale);
  mine.add(tail_logit, z.scale);
  block_sum(mine, scratch);

  if (threadIdx.x == 0) part = mine;
  cluster.sync();  // every CTA has read its slice and the label, and shows its part: from here on z may be overwritten
  if (threadIdx.x < WARP) {
    const Statistics whole = merge_cluster(part, cluster);
    if (threadIdx.x == 0) outcome = clipped_objective(whole, inputs, z.scale, objective);
  }
  cluster.barrier_arrive();  // has read the others' shared memory; waits below for those that still read its own
  __syncthreads();

  const float lse = outcome.lse, g = outcome.gradient * z.scale;
  const RowGradient of = {z.scale, lse, 0.0f, -g, 0.0f, g};
  const bool idle = g == 0.0f;  // exactly zero, whatever the logits are
  char* out = target.row(at);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const int local = v * CLUSTER_THREADS + threadIdx.x, column = (start + local) * In::WIDTH;
    float values[In::WIDTH];
#pragma unroll
    for (int i = 0; i < In::WIDTH; i++) values[i] = idle ? 0.0f : of(In::at(slice[v], i));
    if (local < per_block && column + In::WIDTH <= z.columns) store_vector<Out>(out, start + local, values);
  }
  if (has_tail) Out::store(out, tail, idle ? 0.0f : of(tail_logit));
  __syncthreads();  // the label's column is written last, by the CTA that holds it
  const int64_t label_vector = label / In::WIDTH;
  const unsigned holder = label_vector < z.columns / In::WIDTH ? label_vector / per_block : 0;
  if (threadIdx.x == 0 && labelled && holder == cluster.block_rank())
    Out::store(out, label, idle ? 0.0f : of(inputs.label_logit) + of.label);
  if (threadIdx.x == 0 && cluster.block_rank() == 0) {
    const float values[] = {outcome.logprob, outcome.entropy, outcome.lse, outcome.loss};
#pragma unroll
    for (int i = 0; i < 4; i++) outputs[i * rows + at] = values[i];
  }
  cluster.barrier_wait();
}

}  // namespace
