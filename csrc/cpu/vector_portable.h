// Four floats in the vector extension GCC and Clang have on every processor, for those without AVX2: the operations of
// vector_avx2.h, except that products are rounded before they are added.
#pragma once

#include "elements.h"

#define TARGET
#define INLINE __attribute__((always_inline)) inline

namespace portable {

constexpr int kLanes = 4;

typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(32)));
typedef uint32_t Bits __attribute__((vector_size(16)));

struct Vector {
  Floats lanes;
};

INLINE Vector broadcast(float value) { return {Floats{value, value, value, value}}; }

template <class Element>
INLINE Vector load(const Element* address) {
  return {Floats{read(address), read(address + 1), read(address + 2), read(address + 3)}};
}

template <class Element>
INLINE void store(Element* address, Vector a) {
  for (int i = 0; i < kLanes; ++i) write(address + i, a.lanes[i]);
}

INLINE Vector operator+(Vector a, Vector b) { return {a.lanes + b.lanes}; }
INLINE Vector operator-(Vector a, Vector b) { return {a.lanes - b.lanes}; }
INLINE Vector operator*(Vector a, Vector b) { return {a.lanes * b.lanes}; }
INLINE Vector operator/(Vector a, Vector b) { return {a.lanes / b.lanes}; }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
INLINE Vector subtract_product(Vector c, Vector a, Vector b) { return c - a * b; }

INLINE Vector exact_difference(Vector a, Vector b, Vector c) {
  const Doubles product = __builtin_convertvector(a.lanes, Doubles) * __builtin_convertvector(b.lanes, Doubles);
  return {__builtin_convertvector(product - __builtin_convertvector(c.lanes, Doubles), Floats)};
}

INLINE Vector greater(Vector a, Vector b) { return {a.lanes > b.lanes ? a.lanes : b.lanes}; }

INLINE Vector where_not_below(Vector a, Vector b, Vector value) {
  return {a.lanes <= b.lanes ? Floats{} : value.lanes};
}

INLINE Vector low_bits_as_exponent(Vector a) {
  return {reinterpret_cast<Floats>(reinterpret_cast<Bits>(a.lanes) << 23)};
}

INLINE float sum(Vector a) { return (a.lanes[0] + a.lanes[2]) + (a.lanes[1] + a.lanes[3]); }

// The kernels of the file that the including one names.
#include KERNELS

}  // namespace portable

#undef TARGET
#undef INLINE
