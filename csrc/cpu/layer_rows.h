// The ops of a layer on one row, for any instruction set: included by each vector_*.h inside its namespace. Widths are
// multiples of kLanes. Everything is computed in fp32 and rounded once. A row is computed in one order.

#include "exponential.h"

// Returns the number that rms_norm multiplies a row by: 1 / sqrt(mean(x²) + eps).
template <class Element>
TARGET inline float rms_scale(const Element* x, int64_t width, float eps) {
  Vector sums[2] = {broadcast(0.0f), broadcast(0.0f)};
  for (int64_t i = 0, u = 0; i < width; i += kLanes, u ^= 1) {
    const Vector a = load(x + i);
    sums[u] = multiply_add(a, a, sums[u]);
  }
  return 1.0f / std::sqrt(sum(sums[0] + sums[1]) / static_cast<float>(width) + eps);
}

template <class Element>
TARGET inline void rms_norm(const Element* x, const Element* weight, float scale, int64_t width, Element* out) {
  const Vector factor = broadcast(scale);
  for (int64_t i = 0; i < width; i += kLanes) store(out + i, load(x + i) * factor * load(weight + i));
}

// dx = scale · (g·w − n · mean(g·w·n)) with n = x · scale; adds g · n to the weight's gradient.
template <class Element>
TARGET inline void rms_norm_backward(const Element* gradient, const Element* x, const Element* weight, float scale,
                                     int64_t width, Element* dx, float* dw) {
  const Vector factor = broadcast(scale);
  Vector total = broadcast(0.0f);
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vector product = load(gradient + i) * (load(x + i) * factor);
    store(dw + i, load(dw + i) + product);
    total = multiply_add(product, load(weight + i), total);
  }
  const Vector shared = broadcast(sum(total) / static_cast<float>(width));
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vector direct = load(gradient + i) * load(weight + i);
    store(dx + i, subtract_product(direct, load(x + i) * factor, shared) * factor);
  }
}

// σ(x) = 1 / (1 + e^−x), without a large exponential for either sign.
INLINE Vector sigmoid(Vector x) {
  const Vector zero = broadcast(0.0f), one = broadcast(1.0f);
  const Vector e = exponential(zero - greater(zero - x, x));
  return (e + where_not_below(x, zero, one - e)) / (one + e);
}

// out = silu(gate) · up of a row [gate | up].
template <class Element>
TARGET inline void swiglu(const Element* x, int64_t width, Element* out) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vector gate = load(x + i);
    store(out + i, gate * sigmoid(gate) * load(x + width + i));
  }
}

// The gradient of [gate | up].
template <class Element>
TARGET inline void swiglu_backward(const Element* gradient, const Element* x, int64_t width, Element* dx) {
  const Vector one = broadcast(1.0f);
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vector g = load(gradient + i), gate = load(x + i), up = load(x + width + i);
    const Vector s = sigmoid(gate), silu = gate * s;
    store(dx + i, g * up * multiply_add(silu, one - s, s));  // silu' = σ + gate·σ·(1 − σ)
    store(dx + width + i, g * silu);
  }
}

// Turns a head's halves by the token's angles, of which `cos` and `sin` hold one each per pair; `sign` −1 turns it back.
template <class Element>
TARGET inline void rotate(const Element* x, const float* cos, const float* sin, float sign, int64_t half, Element* out) {
  const Vector signs = broadcast(sign);
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vector c = load(cos + i), s = load(sin + i) * signs;
    const Vector first = load(x + i), second = load(x + half + i);
    store(out + i, subtract_product(first * c, second, s));
    store(out + half + i, multiply_add(second, c, first * s));
  }
}
