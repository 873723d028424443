// Products of a few rows of x with some rows of W, for any instruction set: included by each vector_*.h inside its
// namespace. Both operands are read along their rows, so W stays in the layout that training has.

constexpr int kOutputs = 4;  // rows of W at a time …
constexpr int kTokens = 3;   // … by rows of x: 12 sums, 3 of x and 1 of W fill the 16 registers of AVX2

// y[t][o] (+)= Σ x[t][i] · w[o][i] over `count` inputs, for Outputs rows of W and Tokens rows of x. With Fetch it meanwhile
// reads the two rows of W at `next` into the caches, because they are needed soon.
template <int Outputs, int Tokens, bool Fetch, class Element>
TARGET inline void multiply_block(Strided<const Element> w, Strided<const float> x, int64_t count, Strided<float> y,
                                  bool add, const Element* next) {
  constexpr int64_t line = 64 / sizeof(Element);  // elements
  Vector sums[Outputs][Tokens];
  for (auto& row : sums)
    for (auto& one : row) one = broadcast(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    if constexpr (Fetch) {
      if (i % line == 0) __builtin_prefetch(next + i);
      if (i % line == line - kLanes) __builtin_prefetch(next + w.stride + i);
    }
    Vector inputs[Tokens];
    for (int t = 0; t < Tokens; ++t) inputs[t] = load(x.row(t) + i);
    for (int o = 0; o < Outputs; ++o) {
      const Vector weights = load(w.row(o) + i);
      for (int t = 0; t < Tokens; ++t) sums[o][t] = multiply_add(weights, inputs[t], sums[o][t]);
    }
  }
  if constexpr (Outputs == 4) {
    if (i == count && !add) {
      for (int t = 0; t < Tokens; ++t) store_sums(y.row(t), sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
      return;
    }
  }
  for (int t = 0; t < Tokens; ++t) {
    for (int o = 0; o < Outputs; ++o) {
      float result = sum(sums[o][t]);
      for (int64_t j = i; j < count; ++j) result += read(w.row(o) + j) * x.row(t)[j];
      float& target = y.row(t)[o];
      target = add ? target + result : result;
    }
  }
}

// The same for `tokens` <= Tokens rows of x.
template <int Outputs, int Tokens, class Element>
TARGET inline void multiply_rest(Strided<const Element> w, Strided<const float> x, int64_t tokens, int64_t count,
                                 Strided<float> y, bool add) {
  if (tokens == Tokens) return multiply_block<Outputs, Tokens, false, Element>(w, x, count, y, add, nullptr);
  if constexpr (Tokens > 1) multiply_rest<Outputs, Tokens - 1>(w, x, tokens, count, y, add);
}

// The same for all `tokens` rows of x; `more`: as many rows of W follow.
template <int Outputs, class Element>
TARGET inline void multiply_rows(Strided<const Element> w, Strided<const float> x, int64_t tokens, int64_t count,
                                 Strided<float> y, bool add, bool more) {
  int64_t t = 0;
  for (int fetched = 0; more && fetched < Outputs && t + kTokens <= tokens; t += kTokens, fetched += 2)
    multiply_block<Outputs, kTokens, true>(w, x.from(t), count, y.from(t), add, w.row(Outputs + fetched));
  for (; t + kTokens <= tokens; t += kTokens)
    multiply_block<Outputs, kTokens, false, Element>(w, x.from(t), count, y.from(t), add, nullptr);
  multiply_rest<Outputs, kTokens - 1>(w, x.from(t), tokens - t, count, y.from(t), add);
}

// y (+)= x · Wᵀ for `outputs` rows of W.
template <class Element>
TARGET inline void multiply(Strided<const Element> w, int64_t outputs, Strided<const float> x, int64_t tokens,
                            int64_t count, Strided<float> y, bool add) {
  int64_t o = 0;
  for (; o + kOutputs <= outputs; o += kOutputs)
    multiply_rows<kOutputs>(w.from(o), x, tokens, count, y.right(o), add, o + 2 * kOutputs <= outputs);
  for (; o < outputs; ++o) multiply_rows<1>(w.from(o), x, tokens, count, y.right(o), add, false);
}
