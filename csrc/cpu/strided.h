// Rows of numbers at a fixed distance.
#pragma once

#include <cstdint>

template <class Element>
struct Strided {
  Element* row(int64_t index) const { return start + index * stride; }
  Strided from(int64_t index) const { return {row(index), stride}; }
  Strided right(int64_t columns) const { return {start + columns, stride}; }

  Element* start;
  int64_t stride;
};
