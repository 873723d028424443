// Draws from the softmax of one row, for any instruction set: included by each vector_*.h inside its namespace.

#include "exponential.h"

// Σ e^(z · scale − highest) of `count` logits.
TARGET inline float sum_of_exponentials(const float* z, int64_t count, float scale, float highest) {
  const Vector factor = broadcast(scale), top = broadcast(highest), lowest = broadcast(kLowest);
  Vector sums[2] = {broadcast(0.0f), broadcast(0.0f)};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes)
    for (int u = 0; u < 2; ++u)
      sums[u] = sums[u] + exponential(greater(lowest, exact_difference(load(z + i + u * kLanes), factor, top)));
  float result = sum(sums[0] + sums[1]);
  for (; i < count; ++i) result += std::exp(z[i] * scale - highest);
  return result;
}

// The greatest of `count` logits.
TARGET inline float greatest_logit(const float* z, int64_t count) {
  Vector best[2] = {broadcast(-__builtin_inff()), broadcast(-__builtin_inff())};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes)
    for (int u = 0; u < 2; ++u) best[u] = greater(load(z + i + u * kLanes), best[u]);
  float lanes[kLanes], result = -__builtin_inff();
  store(lanes, greater(best[0], best[1]));
  for (float lane : lanes) result = lane > result ? lane : result;
  for (; i < count; ++i) result = z[i] > result ? z[i] : result;
  return result;
}
