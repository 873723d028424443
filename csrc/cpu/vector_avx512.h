// Sixteen floats in a register of AVX-512: the operations of vector_avx2.h, which also explains the attributes.
#pragma once

#include <immintrin.h>

#include "elements.h"

#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define INLINE __attribute__((target("avx512f,avx2,fma"), always_inline)) inline

namespace avx512 {

constexpr int kLanes = 16;

struct Vector {
  __m512 lanes;
};

INLINE Vector broadcast(float value) { return {_mm512_set1_ps(value)}; }

INLINE Vector load(const float* address) { return {_mm512_loadu_ps(address)}; }

INLINE Vector load(const Bfloat16* address) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(address));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}

INLINE void store(float* address, Vector a) { _mm512_storeu_ps(address, a.lanes); }

INLINE void store(Bfloat16* address, Vector a) {
  const __m512i bits = _mm512_castps_si512(a.lanes);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(address), _mm512_cvtepi32_epi16(rounded));
}

INLINE Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
INLINE Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
INLINE Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
INLINE Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
INLINE Vector subtract_product(Vector c, Vector a, Vector b) { return {_mm512_fnmadd_ps(a.lanes, b.lanes, c.lanes)}; }
INLINE Vector exact_difference(Vector a, Vector b, Vector c) { return {_mm512_fmsub_ps(a.lanes, b.lanes, c.lanes)}; }
INLINE Vector greater(Vector a, Vector b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }

INLINE Vector where_not_below(Vector a, Vector b, Vector value) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_NLE_UQ), value.lanes)};
}

INLINE Vector low_bits_as_exponent(Vector a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.lanes), 23))};
}

// The sums of lanes i and i + 8.
INLINE __m256 fold(Vector a) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.lanes), 1));
  return _mm256_add_ps(_mm512_castps512_ps256(a.lanes), high);
}

INLINE float sum(Vector a) {
  const __m256 eight = fold(a);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The kernels of the file that the including one names.
#include KERNELS

}  // namespace avx512

#undef TARGET
#undef INLINE
