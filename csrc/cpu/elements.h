// The two formats of a tile of logits, and access to memory that may hold first one and then the other: a gradient may be
// written over the logits it is computed from, so every access goes through memcpy (or a vector load, likewise safe).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct Bfloat16 {
  uint16_t bits;
};

inline float to_float(float value) { return value; }

inline float to_float(Bfloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline void convert(float value, float& result) { result = value; }

// Rounds to nearest, ties to even; any NaN becomes the quiet one.
inline void convert(float value, Bfloat16& result) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  result.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

template <class Element>
inline float read(const Element* address) {
  Element value;
  std::memcpy(&value, address, sizeof value);
  return to_float(value);
}

template <class Element>
inline void write(Element* address, float value) {
  Element result;
  convert(value, result);
  std::memcpy(address, &result, sizeof result);
}
