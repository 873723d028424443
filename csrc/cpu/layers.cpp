// RMSNorm, SwiGLU and the rotary embedding of a layer, forward and backward. megatron_lwz/kernels/layers/cpp.py is its caller.

#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "elements.h"
#include "parallel.h"
#include "tensors.h"

#define KERNELS "layer_rows.h"
#include "vector.h"

namespace {

constexpr int64_t kRowsPerSum = 64;  // whose weight gradients are added up together, whatever the number of threads

template <class Element>
void normalise(const Matrix& x, const Matrix& weight, const Matrix& out, float* scales, float eps, int threads) {
  for_each_row(x.rows, x.columns, threads, [&](int64_t i) {
    const Element* row = x.row<const Element>(i);
    scales[i] = KERNEL_OF_WIDTH(x.columns, rms_scale(row, x.columns, eps));
    KERNEL_OF_WIDTH(x.columns, rms_norm(row, weight.row<const Element>(0), scales[i], x.columns, out.row<Element>(i)));
  });
}

void rms_norm(const py::object& x, const py::object& weight, const py::object& out, const py::object& scales, float eps,
              int threads) {
  const Matrix from(x), factors(weight), to(out);
  if (factors.columns != from.columns) throw std::invalid_argument("shapes do not fit together");
  auto* scale = address<float>(scales);
  const py::gil_scoped_release others_may_run;
  (from.is_bfloat16 ? normalise<Bfloat16> : normalise<float>)(from, factors, to, scale, eps, threads);
}

template <class Element>
void denormalise(const Matrix& gradient, const Matrix& x, const Matrix& weight, const float* scales, const Matrix& dx,
                 const Matrix& partial, int threads) {
  for_each_row(partial.rows, kRowsPerSum * x.columns, threads, [&](int64_t block) {
    auto* dw = partial.row<float>(block);
    const int64_t end = std::min(x.rows, (block + 1) * kRowsPerSum);
    for (int64_t i = block * kRowsPerSum; i < end; ++i)
      KERNEL_OF_WIDTH(x.columns, rms_norm_backward(gradient.row<const Element>(i), x.row<const Element>(i), weight.row<const Element>(0),
                               scales[i], x.columns, dx.row<Element>(i), dw));
  });
}

void rms_norm_backward(const py::object& gradient, const py::object& x, const py::object& weight, const py::object& scales,
                       const py::object& dx, const py::object& partial, int threads) {
  const Matrix g(gradient), from(x), factors(weight), to(dx), sums(partial);
  const auto* scale = address<const float>(scales);
  const py::gil_scoped_release others_may_run;
  (from.is_bfloat16 ? denormalise<Bfloat16> : denormalise<float>)(g, from, factors, scale, to, sums, threads);
}

template <class Element>
void activate(const Matrix& x, const Matrix& out, int threads) {
  for_each_row(x.rows, out.columns, threads,
               [&](int64_t i) { KERNEL_OF_WIDTH(out.columns, swiglu(x.row<const Element>(i), out.columns, out.row<Element>(i))); });
}

void swiglu(const py::object& x, const py::object& out, int threads) {
  const Matrix from(x), to(out);
  const py::gil_scoped_release others_may_run;
  (from.is_bfloat16 ? activate<Bfloat16> : activate<float>)(from, to, threads);
}

template <class Element>
void deactivate(const Matrix& gradient, const Matrix& x, const Matrix& dx, int threads) {
  for_each_row(x.rows, gradient.columns, threads, [&](int64_t i) {
    KERNEL_OF_WIDTH(gradient.columns, swiglu_backward(gradient.row<const Element>(i), x.row<const Element>(i), gradient.columns, dx.row<Element>(i)));
  });
}

void swiglu_backward(const py::object& gradient, const py::object& x, const py::object& dx, int threads) {
  const Matrix g(gradient), from(x), to(dx);
  const py::gil_scoped_release others_may_run;
  (from.is_bfloat16 ? deactivate<Bfloat16> : deactivate<float>)(g, from, to, threads);
}

// Heads [tokens, heads, width] with any distance between tokens and between heads.
struct Heads {
  explicit Heads(const py::object& tensor) : start(address<char>(tensor)) {
    for (int i = 0; i < 3; ++i) sizes[i] = size(tensor, i);
    for (int i = 0; i < 2; ++i) strides[i] = stride(tensor, i);
    is_bfloat16 = is_of_two_bytes(tensor);
  }

  template <class Element>
  Element* head(int64_t token, int64_t index) const {
    return reinterpret_cast<Element*>(start) + token * strides[0] + index * strides[1];
  }

  char* start;
  int64_t sizes[3], strides[2];
  bool is_bfloat16;
};

template <class Element>
void turn(const Heads& x, const Matrix& cos, const Matrix& sin, float sign, const Heads& out, int threads) {
  for_each_row(x.sizes[0], x.sizes[1] * x.sizes[2], threads, [&](int64_t t) {
    for (int64_t h = 0; h < x.sizes[1]; ++h)
      KERNEL_OF_WIDTH(x.sizes[2] / 2, rotate(x.head<const Element>(t, h), cos.row<const float>(t), sin.row<const float>(t), sign, x.sizes[2] / 2,
                    out.head<Element>(t, h)));
  });
}

void rotate(const py::object& x, const py::object& cos, const py::object& sin, float sign, const py::object& out,
            int threads) {
  const Heads from(x), to(out);
  const Matrix c(cos), s(sin);
  const py::gil_scoped_release others_may_run;
  (from.is_bfloat16 ? turn<Bfloat16> : turn<float>)(from, c, s, sign, to, threads);
}

}  // namespace

void bind_layers(py::module_& module) {
  module.def("rms_norm", &rms_norm, "Writes w · x · scale to `out` and each row's scale, 1 / sqrt(mean(x²) + eps).");
  module.def("rms_norm_backward", &rms_norm_backward,
             "Writes dx, and adds the weight's gradient of every 64 rows to a row of `partial`.");
  module.def("swiglu", &swiglu, "Writes silu(gate) · up of the rows [gate | up].");
  module.def("swiglu_backward", &swiglu_backward, "Writes the gradient of the rows [gate | up].");
  module.def("rotate", &rotate, "Writes heads turned by cos and sin of their token; sign −1 turns them back.");
}
