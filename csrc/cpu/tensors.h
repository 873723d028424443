// What Python passes: torch's tensors as objects, of which only addresses, sizes and strides are read. So nothing of torch is
// needed to build the module.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

// Methods of a tensor. Their names are looked up once: a decode step of a small model asks tensors some hundred times.
inline PyObject* const data_ptr_method = PyUnicode_InternFromString("data_ptr");
inline PyObject* const dim_method = PyUnicode_InternFromString("dim");
inline PyObject* const element_size_method = PyUnicode_InternFromString("element_size");
inline PyObject* const numel_method = PyUnicode_InternFromString("numel");
inline PyObject* const size_method = PyUnicode_InternFromString("size");
inline PyObject* const stride_method = PyUnicode_InternFromString("stride");

inline int64_t checked(PyObject* returned) {
  const auto number = py::reinterpret_steal<py::object>(returned);
  const int64_t value = number ? PyLong_AsLongLong(number.ptr()) : -1;
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

inline int64_t ask(const py::object& tensor, PyObject* method) {
  return checked(PyObject_CallMethodNoArgs(tensor.ptr(), method));
}

inline int64_t ask(const py::object& tensor, PyObject* method, int64_t dimension) {
  return checked(PyObject_CallMethodOneArg(tensor.ptr(), method, py::int_(dimension).ptr()));
}

inline int64_t size(const py::object& tensor, int64_t dimension) { return ask(tensor, size_method, dimension); }
inline int64_t stride(const py::object& tensor, int64_t dimension) { return ask(tensor, stride_method, dimension); }
inline bool is_of_two_bytes(const py::object& tensor) { return ask(tensor, element_size_method) == 2; }

template <class Number>
Number* address(const py::object& tensor) {
  return tensor.is_none() ? nullptr : reinterpret_cast<Number*>(ask(tensor, data_ptr_method));
}

// A tensor of fp32 or bf16 numbers as a matrix: contiguous, or with two dimensions and contiguous rows. (Where a dimension has
// one element, its stride says nothing.)
struct Matrix {
  explicit Matrix(const py::object& tensor)
      : start(address<char>(tensor)),
        columns(size(tensor, -1)),
        rows(columns ? ask(tensor, numel_method) / columns : 0),
        stride(ask(tensor, dim_method) == 2 ? ::stride(tensor, 0) : columns),
        is_bfloat16(is_of_two_bytes(tensor)) {}

  template <class Element>
  Element* row(int64_t index) const {
    return reinterpret_cast<Element*>(start) + index * stride;
  }

  char* start;
  int64_t columns, rows, stride;
  bool is_bfloat16;
};
