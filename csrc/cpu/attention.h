// Attention of the queries of one key-value head to the first `length` keys of one sequence, for any instruction set:
// included by each vector_*.h inside its namespace. Keys come page by page, with a running maximum, so any length needs the
// same little memory, and a row is computed in one order whatever else runs.

#include "exponential.h"

// Queries go three or two at a time, by some vectors of keys or of the result: the sums fill the registers of AVX2.

// scores[q][j] = x[q] · key j for Queries queries and `count` keys of a page, and −∞ behind them, up to a multiple of kColumns.
template <int Queries, class Element>
TARGET inline void score(Strided<const float> x, Pages<const Element> pages, int64_t page, int64_t count,
                         Strided<float> scores) {
  constexpr int vectors = kColumns / kLanes;
  for (int64_t j = 0; j < count; j += kColumns) {
    const Strided<const Element> keys = pages.keys(page, j);
    Vector sums[Queries][vectors];
    for (auto& row : sums)
      for (auto& one : row) one = broadcast(0.0f);
    for (int64_t d = 0; d < pages.width; ++d) {
      Vector query[Queries];
      for (int q = 0; q < Queries; ++q) query[q] = broadcast(x.row(q)[d]);
      for (int v = 0; v < vectors; ++v) {
        const Vector some = load(keys.row(d) + v * kLanes);
        for (int q = 0; q < Queries; ++q) sums[q][v] = multiply_add(query[q], some, sums[q][v]);
      }
    }
    for (int q = 0; q < Queries; ++q)
      for (int v = 0; v < vectors; ++v) store(scores.row(q) + j + v * kLanes, sums[q][v]);
  }
  for (int q = 0; q < Queries; ++q)
    for (int64_t j = count; j % kColumns != 0; ++j) scores.row(q)[j] = -__builtin_inff();
}

// The greatest of `count` scores and `least`; `count` is a multiple of kColumns.
TARGET inline float greatest(const float* scores, int64_t count, float least) {
  Vector best[2] = {broadcast(least), broadcast(least)};
  for (int64_t i = 0; i < count; i += 2 * kLanes)
    for (int u = 0; u < 2; ++u) best[u] = greater(load(scores + i + u * kLanes), best[u]);
  float lanes[kLanes];
  store(lanes, greater(best[0], best[1]));
  for (float lane : lanes) least = lane > least ? lane : least;
  return least;
}

// Turns `count` scores, a multiple of kColumns, into e^(score − highest), and returns their sum.
TARGET inline float exponentials(float* scores, int64_t count, float highest) {
  const Vector top = broadcast(highest);
  Vector totals[2] = {broadcast(0.0f), broadcast(0.0f)};
  for (int64_t i = 0; i < count; i += 2 * kLanes) {
    for (int u = 0; u < 2; ++u) {
      const Vector e = exponential(load(scores + i + u * kLanes) - top);
      store(scores + i + u * kLanes, e);
      totals[u] = totals[u] + e;
    }
  }
  return sum(totals[0] + totals[1]);
}

// y[q][d] = y[q][d] · scale[q] + Σ p[q][j] · values[j][d] over `count` keys, for Queries rows and Vectors · kLanes columns.
template <int Queries, int Vectors, class Element>
TARGET inline void add_values(Strided<const float> p, const float* scale, Strided<const Element> values, int64_t count,
                              Strided<float> y) {
  Vector sums[Queries][Vectors];
  for (int q = 0; q < Queries; ++q)
    for (int v = 0; v < Vectors; ++v) sums[q][v] = load(y.row(q) + v * kLanes) * broadcast(scale[q]);
  for (int64_t j = 0; j < count; ++j) {
    Vector value[Vectors];
    for (int v = 0; v < Vectors; ++v) value[v] = load(values.row(j) + v * kLanes);
    for (int q = 0; q < Queries; ++q) {
      const Vector probability = broadcast(p.row(q)[j]);
      for (int v = 0; v < Vectors; ++v) sums[q][v] = multiply_add(probability, value[v], sums[q][v]);
    }
  }
  for (int q = 0; q < Queries; ++q)
    for (int v = 0; v < Vectors; ++v) store(y.row(q) + v * kLanes, sums[q][v]);
}

// Both for Queries queries and `count` keys of a page.
template <int Queries, class Element>
TARGET inline void attend_tile(Strided<const float> x, Pages<const Element> pages, int64_t page, int64_t count,
                               float* highest, float* total, Strided<float> y) {
  alignas(64) float buffer[Queries * kKeys];
  float scale[Queries];
  const Strided<float> scores{buffer, kKeys};
  score<Queries>(x, pages, page, count, scores);
  const int64_t scored = (count + kColumns - 1) / kColumns * kColumns;
  for (int q = 0; q < Queries; ++q) {
    const float top = greatest(scores.row(q), scored, highest[q]);
    scale[q] = std::exp(highest[q] - top);
    total[q] = total[q] * scale[q] + exponentials(scores.row(q), scored, top);
    highest[q] = top;
  }
  const Strided<const float> p{buffer, kKeys};
  const Strided<const Element> values = pages.values(page);
  const int64_t width = pages.width;
  constexpr int wide = Queries == 1 && kLanes < 16 ? 8 : 4;
  int64_t d = 0;
  for (; d + wide * kLanes <= width; d += wide * kLanes)
    add_values<Queries, wide>(p, scale, values.right(d), count, y.right(d));
  for (; d + 2 * kLanes <= width; d += 2 * kLanes) add_values<Queries, 2>(p, scale, values.right(d), count, y.right(d));
  for (; d < width; d += kLanes) add_values<Queries, 1>(p, scale, values.right(d), count, y.right(d));
}

// The same for one query and one key with its value.
template <class Element>
TARGET inline void attend_one(const float* x, const float* key, const Element* value, int64_t width, float* highest,
                              float* total, float* y) {
  Vector products = broadcast(0.0f);
  for (int64_t d = 0; d < width; d += kLanes) products = multiply_add(load(x + d), load(key + d), products);
  const float score = sum(products), top = score > *highest ? score : *highest;
  const float scale = std::exp(*highest - top), p = std::exp(score - top);
  for (int64_t d = 0; d < width; d += kLanes)
    store(y + d, multiply_add(broadcast(p), load(value + d), load(y + d) * broadcast(scale)));
  *total = *total * scale + p;
  *highest = top;
}

// y [queries, width] = softmax(x · keysᵀ) · values, of the first `length` keys of the pages and one that is not in them yet;
// `width` is a multiple of kLanes, `queries` at most kMostQueries.
template <class Element>
TARGET inline void attend(Strided<const float> x, int64_t queries, Pages<const Element> pages, int64_t length,
                          int64_t width, const float* key, const Element* value, Strided<float> y) {
  float highest[kMostQueries], total[kMostQueries];
  for (int64_t q = 0; q < queries; ++q) {
    highest[q] = -__builtin_inff();
    total[q] = 0;
    for (int64_t d = 0; d < width; ++d) y.row(q)[d] = 0;
  }
  for (int64_t begin = 0; begin < length; begin += kKeys) {
    const int64_t count = length - begin < kKeys ? length - begin : kKeys;
    for (int64_t q = 0, size; q < queries; q += size) {
      const int64_t left = queries - q;
      size = left == 4 ? 2 : left < 3 ? left : 3;  // four are two and two: one alone would be slow
      const auto tile = size == 3 ? attend_tile<3, Element> : size == 2 ? attend_tile<2, Element> : attend_tile<1, Element>;
      tile(x.from(q), pages, begin / kKeys, count, highest + q, total + q, y.from(q));
    }
  }
  for (int64_t q = 0; q < queries; ++q) {
    attend_one(x.row(q), key, value, width, highest + q, total + q, y.row(q));
    for (int64_t d = 0; d < width; ++d) y.row(q)[d] /= total[q];
  }
}
