// One row of a tile, for any instruction set: included by each vector_*.h inside its namespace, after kLanes, Vector,
// TARGET and INLINE. Columns go kLanes at a time and the last few through a padded copy. A row is computed in one order
// whatever the number of threads.

constexpr int kUnroll = 4;               // independent vectors in flight
constexpr int64_t kStep = kLanes * kUnroll;
constexpr int64_t kBlock = 1024;         // columns; 4 KiB that the second sweep finds in the L1 cache
constexpr float kInfinity = __builtin_inff();

#include "exponential.h"

// The first `count` < kLanes elements, the rest filled with `padding`.
template <class Element>
INLINE Vector load_part(const Element* z, int64_t count, float padding) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? read(z + i) : padding;
  return load(lanes);
}

template <class Element>
INLINE void store_part(Element* out, int64_t count, Vector value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t i = 0; i < count; ++i) write(out + i, lanes[i]);
}

// Returns the maximum of `count` logits; NaN is skipped here (the sums propagate it).
template <class Element>
TARGET inline float greatest(const Element* z, int64_t count) {
  Vector best[kUnroll];
  for (auto& b : best) b = broadcast(-kInfinity);
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep)
    for (int u = 0; u < kUnroll; ++u) best[u] = greater(load(z + i + u * kLanes), best[u]);
  for (; i + kLanes <= count; i += kLanes) best[0] = greater(load(z + i), best[0]);
  if (i < count) best[0] = greater(load_part(z + i, count - i, -kInfinity), best[0]);
  float lanes[kLanes];
  store(lanes, greater(greater(best[0], best[1]), greater(best[2], best[3])));
  float result = lanes[0];
  for (float lane : lanes) result = lane > result ? lane : result;
  return result;
}

// Adds Σ e^d and Σ e^d · d of `count` logits to s and w, where d = z · scale − m ≤ 0.
template <class Element>
TARGET inline void add_sums(const Element* z, int64_t count, float scale, float m, double& s, double& w) {
  const Vector factor = broadcast(scale), highest = broadcast(m), lowest = broadcast(kLowest);
  Vector sums[kUnroll], weighted[kUnroll];
  for (int u = 0; u < kUnroll; ++u) sums[u] = weighted[u] = broadcast(0.0f);
  const auto add = [&](Vector logits, int u) TARGET {
    const Vector d = greater(lowest, exact_difference(logits, factor, highest));  // NaN stays; −∞ becomes finite
    const Vector e = exponential(d);
    sums[u] = sums[u] + e;
    weighted[u] = multiply_add(e, d, weighted[u]);
  };
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    for (int u = 0; u < kUnroll; ++u) add(load(z + i + u * kLanes), u);
  }
  for (; i + kLanes <= count; i += kLanes) add(load(z + i), 0);
  if (i < count) add(load_part(z + i, count - i, -kInfinity), 0);
  float lanes[2][kLanes];
  store(lanes[0], (sums[0] + sums[1]) + (sums[2] + sums[3]));
  store(lanes[1], (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]));
  for (int j = 0; j < kLanes; ++j) {
    s += lanes[0][j];
    w += lanes[1][j];
  }
}

// Merges `columns` logits of a row into its statistics.
template <class Element>
TARGET inline void merge_row(const Element* z, int64_t columns, float scale, RowStatistics row) {
  float m = row.m;
  double s = row.s, w = row.w;
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    const int64_t count = columns - begin < kBlock ? columns - begin : kBlock;
    const float highest = greatest(z + begin, count) * scale;
    if (highest > m) {
      const double offset = double{m} - highest, factor = std::exp(offset);
      w = factor * (w + s * offset);
      s *= factor;
      m = highest;
    }
    add_sums(z + begin, count, scale, m, s, w);
  }
  row.m = m;
  row.s = static_cast<float>(s);
  row.w = static_cast<float>(w);
}

// out = p · (base + slope · (y − lse)), y = z · scale, p = e^(y − lse). `out` may be the memory of z.
template <class Element, class Result>
TARGET inline void gradient_row(const Element* z, Result* out, int64_t columns, float scale, RowCoefficients row) {
  const Vector factor = broadcast(scale), lse = broadcast(row.lse), lowest = broadcast(kLowest);
  const Vector base = broadcast(row.base), slope = broadcast(row.slope);
  const auto gradient = [&](Vector logits) TARGET {
    const Vector d = greater(lowest, exact_difference(logits, factor, lse));
    return exponential(d) * multiply_add(slope, d, base);
  };
  int64_t i = 0;
  for (; i + kStep <= columns; i += kStep) {
    Vector results[kUnroll];
    for (int u = 0; u < kUnroll; ++u) results[u] = gradient(load(z + i + u * kLanes));
    for (int u = 0; u < kUnroll; ++u) store(out + i + u * kLanes, results[u]);
  }
  for (; i + kLanes <= columns; i += kLanes) store(out + i, gradient(load(z + i)));
  if (i < columns) store_part(out + i, columns - i, gradient(load_part(z + i, columns - i, -kInfinity)));
}
