// Products of a few rows of x with some rows of W, for any instruction set: included by each vector_*.h inside its namespace.
// x lies transposed in panels of kPanel rows, [panels][inputs][kPanel], and W in the layout that training has. Each number of W
// is multiplied with registers full of rows, so no sum runs across a register, and every sum adds its products in order.

constexpr int kRegisters = kPanel / kLanes;  // of one panel and input; 0 for AVX-512, which is not used

// y[t][o] (+)= Σ x[t][i] · w[o][i] over `count` inputs, for Outputs rows of W and `tokens` rows of x, which lie in Panels
// panels. Meanwhile it reads `fetched` rows at `next` into the caches, because they are needed soon.
template <int Outputs, int Panels>
TARGET inline void multiply_block(Strided<const float> w, Strided<const float> x, int64_t tokens, int64_t count,
                                  Strided<float> y, bool add, Strided<const float> next, int64_t fetched) {
  constexpr int64_t line = 64 / sizeof(float);
  constexpr int columns = Panels * kRegisters;
  Vector sums[Outputs][columns];
  for (auto& row : sums)
    for (auto& one : row) one = broadcast(0.0f);
  for (int64_t i = 0; i < count; ++i) {
    if (i % line < fetched) __builtin_prefetch(next.row(i % line) + i);
    Vector inputs[columns];
    for (int p = 0; p < Panels; ++p)
      for (int r = 0; r < kRegisters; ++r) inputs[p * kRegisters + r] = load(x.row(p) + i * kPanel + r * kLanes);
    for (int o = 0; o < Outputs; ++o) {
      const Vector weight = broadcast(w.row(o)[i]);
      for (int c = 0; c < columns; ++c) sums[o][c] = multiply_add(weight, inputs[c], sums[o][c]);
    }
  }
  float results[Outputs][Panels * kPanel];
  for (int o = 0; o < Outputs; ++o)
    for (int c = 0; c < columns; ++c) store(results[o] + c * kLanes, sums[o][c]);
  for (int64_t t = 0; t < tokens; ++t)
    for (int o = 0; o < Outputs; ++o) y.row(t)[o] = add ? y.row(t)[o] + results[o][t] : results[o][t];
}

// The same for all `tokens` rows of x and `outputs` <= Outputs rows of W; `more`: as many rows of W follow.
template <int Outputs>
TARGET inline void multiply(Strided<const float> w, int64_t outputs, Strided<const float> x, int64_t tokens,
                            int64_t count, Strided<float> y, bool add, bool more) {
  if (outputs < Outputs) {
    if constexpr (Outputs > 1) multiply<Outputs - 1>(w, outputs, x, tokens, count, y, add, false);
    return;
  }
  const int64_t passes = (tokens + 2 * kPanel - 1) / (2 * kPanel), fetched = more ? (Outputs + passes - 1) / passes : 0;
  Strided<const float> next = w.from(Outputs);
  for (; tokens > 0; tokens -= 2 * kPanel) {
    const auto block = tokens > kPanel ? multiply_block<Outputs, 2> : multiply_block<Outputs, 1>;
    block(w, x, std::min<int64_t>(tokens, 2 * kPanel), count, y, add, next, fetched);
    x = x.from(2);
    y = y.from(2 * kPanel);
    next = next.from(fetched);
  }
}

// to[o] = w[o] for `outputs` rows of bf16, `count` numbers each.
TARGET inline void to_floats(Strided<const Bfloat16> w, int64_t outputs, int64_t count, Strided<float> to) {
  for (int64_t o = 0; o < outputs; ++o) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to.row(o) + i, load(w.row(o) + i));
    for (; i < count; ++i) to.row(o)[i] = read(w.row(o) + i);
  }
}
