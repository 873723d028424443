// y = x · Wᵀ for few rows of x, as in decoding: the time should be that of reading W once. megatron_lwz/kernels/
// thin_product.py is its caller.

#include <algorithm>
#include <cstdint>

#include "elements.h"
#include "parallel.h"
#include "strided.h"
#include "tensors.h"

#define KERNELS "products.h"
#include "vector.h"

namespace {

constexpr int64_t kOutputsPerTask = 64;  // rows of W; the part of x that they share is read into the L2 cache once
constexpr int64_t kInputs = 1024;        // at a time: 4 rows of W (16 KiB) stay in the L1 cache while x passes

// AVX-512 was measured to be no faster: on Zen 4 it multiplies as many numbers per cycle, and sums cost more.
template <class Element>
void multiply_part(Strided<const Element> w, int64_t outputs, Strided<const float> x, int64_t tokens, int64_t count,
                   Strided<float> y, bool add) {
  KERNEL_OF_AVX2(multiply(w, outputs, x, tokens, count, y, add));
}

template <class Element>
void multiply_all(const Matrix& x, const Matrix& weight, const Matrix& y, int threads) {
  const int64_t tasks = (weight.rows + kOutputsPerTask - 1) / kOutputsPerTask;
  for_each_row(tasks, kOutputsPerTask * weight.columns, threads, [&](int64_t task) {
    const int64_t first = task * kOutputsPerTask, outputs = std::min(kOutputsPerTask, weight.rows - first);
    for (int64_t i = 0; i < weight.columns; i += kInputs) {
      const Strided<const Element> w{weight.row<const Element>(first) + i, weight.stride};
      const Strided<const float> inputs{x.row<const float>(0) + i, x.stride};
      const Strided<float> out{y.row<float>(0) + first, y.stride};
      multiply_part(w, outputs, inputs, x.rows, std::min(kInputs, weight.columns - i), out, i > 0);
    }
  });
}

void thin_product(const py::object& x, const py::object& weight, const py::object& y, int threads) {
  const Matrix inputs(x), weights(weight), result(y);
  const py::gil_scoped_release others_may_run;
  (weights.is_bfloat16 ? multiply_all<Bfloat16> : multiply_all<float>)(inputs, weights, result, threads);
}

}  // namespace

void bind_thin_product(py::module_& module) {
  module.def("thin_product", &thin_product, "Writes x · Wᵀ to y; x and y are fp32, W is fp32 or bf16.");
}
