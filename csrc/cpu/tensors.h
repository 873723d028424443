// What Python passes: torch's tensors as objects, of which only addresses, sizes and strides are read. So nothing of torch is
// needed to build the module.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

template <class Number>
Number* address(const py::object& tensor) {
  return tensor.is_none() ? nullptr : reinterpret_cast<Number*>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

// A matrix of fp32 or bf16 numbers whose rows are contiguous.
struct Matrix {
  explicit Matrix(const py::object& tensor)
      : start(address<char>(tensor)),
        rows(tensor.attr("size")(0).cast<int64_t>()),
        columns(tensor.attr("size")(1).cast<int64_t>()),
        stride(tensor.attr("stride")(0).cast<int64_t>()),
        is_bfloat16(tensor.attr("element_size")().cast<int>() == 2) {}

  template <class Element>
  Element* row(int64_t index) const {
    return reinterpret_cast<Element*>(start) + index * stride;
  }

  char* start;
  int64_t rows, columns, stride;
  bool is_bfloat16;
};
