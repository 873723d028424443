// Eight floats in a register of AVX2 with FMA. The functions carry their instruction set as an attribute, so that the file
// compiles without -mavx2 and the library runs on any x86-64; the caller checks the processor before it calls them.
#pragma once

#include <immintrin.h>

#include "elements.h"

#define TARGET __attribute__((target("avx2,fma")))
#define INLINE __attribute__((target("avx2,fma"), always_inline)) inline

namespace avx2 {

constexpr int kLanes = 8;

struct Vector {
  __m256 lanes;
};

INLINE Vector broadcast(float value) { return {_mm256_set1_ps(value)}; }

INLINE Vector load(const float* address) { return {_mm256_loadu_ps(address)}; }

INLINE Vector load(const Bfloat16* address) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(address));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
}

INLINE void store(float* address, Vector a) { _mm256_storeu_ps(address, a.lanes); }

INLINE void store(Bfloat16* address, Vector a) {
  const __m256i bits = _mm256_castps_si256(a.lanes);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q));
  const __m256i rounded = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
  const __m128i low = _mm256_castsi256_si128(rounded), high = _mm256_extracti128_si256(rounded, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(address), _mm_packus_epi32(low, high));
}

INLINE Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
INLINE Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
INLINE Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }

INLINE Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }

// a · b + c, rounded once.
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }

// c − a · b, rounded once.
INLINE Vector subtract_product(Vector c, Vector a, Vector b) { return {_mm256_fnmadd_ps(a.lanes, b.lanes, c.lanes)}; }

// a · b − c without rounding in between, also where a · b and c are large.
INLINE Vector exact_difference(Vector a, Vector b, Vector c) { return {_mm256_fmsub_ps(a.lanes, b.lanes, c.lanes)}; }

// The greater one; b where either is NaN.
INLINE Vector greater(Vector a, Vector b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }

// `value` where a > b or either is NaN, else 0.
INLINE Vector where_not_below(Vector a, Vector b, Vector value) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.lanes, b.lanes, _CMP_NLE_UQ), value.lanes)};
}

// The floats whose bits are those of a, shifted left to where the exponent is.
INLINE Vector low_bits_as_exponent(Vector a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.lanes), 23))};
}

// The sum of the eight, in a fixed order.
INLINE float sum(Vector a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The kernels of the file that the including one names.
#include KERNELS

}  // namespace avx2

#undef TARGET
#undef INLINE
