// e^x, for any instruction set: included by the kernels of a vector_*.h inside its namespace.

constexpr float kLowest = -87.0f;        // e^x is 0 from here down: the result stays a normal number

// e^x for x ≤ 0 (and a little above), relative error below 1.2e-7: 2^r · e^f, r = round(x / ln 2), |f| ≤ ln 2 / 2. 0 for
// x ≤ kLowest. The polynomial is the minimax one of its degree under the relative error.
INLINE Vector exponential(Vector x) {
  const Vector magic = broadcast(0x1.8p23f + 127.0f);  // adding it rounds to an integer, left in the low bits
  const Vector shifted = multiply_add(x, broadcast(1.44269504f), magic);
  const Vector r = shifted - magic;
  Vector f = subtract_product(x, r, broadcast(0.693359375f));      // ln 2 in two parts, the first one short: the
  f = subtract_product(f, r, broadcast(-2.12194440e-4f));          // product with r is exact
  Vector p = broadcast(1.384360669e-3f);
  p = multiply_add(p, f, broadcast(8.374195613e-3f));
  p = multiply_add(p, f, broadcast(4.166800473e-2f));
  p = multiply_add(p, f, broadcast(1.666643080e-1f));
  p = multiply_add(p, f, broadcast(4.999999419e-1f));
  p = multiply_add(p, f, broadcast(1.0f));
  p = multiply_add(p, f, broadcast(1.0f));
  return where_not_below(x, broadcast(kLowest), p * low_bits_as_exponent(shifted));
}
