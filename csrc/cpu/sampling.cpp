// Draws one token per row from the softmax of its logits. megatron_lwz/kernels/sampling.py is its caller.

#include <cmath>
#include <cstdint>
#include <vector>

#include "elements.h"
#include "parallel.h"
#include "tensors.h"

#define KERNELS "sampling_rows.h"
#include "vector.h"

namespace {

constexpr int64_t kBlock = 1024;  // logits whose sum is kept, so that only one block is looked at again

struct Block {
  float highest, sum;  // Σ e^(z − highest)
};

struct Drawn {
  int64_t token;
  float logprob;
};

// Inverts the cumulative distribution in vocabulary order: the first token at which it exceeds `noise` in [0, 1).
Drawn draw(const float* z, int64_t count, float scale, float noise) {
  std::vector<Block> blocks((count + kBlock - 1) / kBlock);
  float highest = -INFINITY;
  for (size_t b = 0; b < blocks.size(); ++b) {
    const int64_t begin = b * kBlock, size = std::min(kBlock, count - begin);
    const float top = KERNEL(greatest_logit(z + begin, size)) * scale;
    blocks[b] = {top, top == -INFINITY ? 0.0f : KERNEL(sum_of_exponentials(z + begin, size, scale, top))};
    highest = std::max(highest, top);
  }
  double total = 0;
  for (const Block& block : blocks) total += block.sum * std::exp(double{block.highest} - highest);
  const double target = noise * total;
  double before = 0;
  int64_t token = count - 1;
  for (size_t b = 0; b < blocks.size(); ++b) {
    const double after = before + blocks[b].sum * std::exp(double{blocks[b].highest} - highest);
    if (after > target) {
      const int64_t end = std::min<int64_t>(count, (b + 1) * kBlock);
      for (int64_t i = b * kBlock; i < end && !(before > target); ++i) {
        const double p = std::exp(double{z[i]} * scale - highest);
        if (p > 0) token = i;  // stays the last possible one where rounding leaves none that exceeds the target
        before += p;
      }
      break;
    }
    before = after;
  }
  return {token, static_cast<float>(double{z[token]} * scale - highest - std::log(total))};
}

void draw_tokens(const py::object& logits, const py::object& scales, const py::object& noise, const py::object& tokens,
                 const py::object& logprobs, int threads) {
  const Matrix z(logits);
  const auto *scale = address<const float>(scales), *uniform = address<const float>(noise);
  auto* token = address<int64_t>(tokens);
  auto* logprob = address<float>(logprobs);
  const py::gil_scoped_release others_may_run;
  for_each_row(z.rows, z.columns, threads, [&](int64_t i) {
    const Drawn drawn = draw(z.row<const float>(i), z.columns, scale[i], uniform[i]);
    token[i] = drawn.token;
    logprob[i] = drawn.logprob;
  });
}

}  // namespace

void bind_sampling(py::module_& module) {
  module.def("draw", &draw_tokens, "Writes one token per row of fp32 logits and its log-prob; noise is in [0, 1).");
}
