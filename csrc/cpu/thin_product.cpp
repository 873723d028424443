// y = x · Wᵀ for few rows of x, as in decoding: the time should be that of reading W once. megatron_lwz/kernels/
// thin_product.py is its caller.

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "elements.h"
#include "parallel.h"
#include "strided.h"
#include "tensors.h"

constexpr int64_t kPanel = 8;    // rows of x that lie together
constexpr int64_t kOutputs = 6;  // rows of W by 2 panels of x: 12 sums, 2 of x and 1 of W fill the registers of AVX2

#define KERNELS "products.h"
#include "vector.h"

namespace {

constexpr int64_t kOutputsPerTask = 8 * kOutputs;  // rows of W; the part of x that they share is read into the L2 cache once
constexpr int64_t kInputs = 1024;                  // at a time: those of 6 rows of W (24 KiB) stay in the L1 cache while x passes

// Rows of W as floats.
class Rows {
 public:
  Strided<const float> of(Strided<const float> w, int64_t, int64_t) { return w; }

  Strided<const float> of(Strided<const Bfloat16> w, int64_t outputs, int64_t inputs) {
    numbers_.resize(kOutputs * kInputs);
    KERNEL_OF_AVX2(to_floats(w, outputs, inputs, Strided<float>{numbers_.data(), kInputs}));
    return {numbers_.data(), kInputs};
  }

 private:
  std::vector<float> numbers_;
};

std::vector<float> in_panels(const Matrix& x) {
  std::vector<float> panels((x.rows + kPanel - 1) / kPanel * x.columns * kPanel);  // missing rows are zeros
  for (int64_t first = 0; first < x.rows; first += kPanel) {
    float* to = &panels[first * x.columns];
    const int64_t rows = std::min(kPanel, x.rows - first);
    const Strided<const float> from{x.row<const float>(first), x.stride};
    if (rows == kPanel) {  // written in order, by a loop of known length
      for (int64_t i = 0; i < x.columns; ++i)
        for (int64_t row = 0; row < kPanel; ++row) to[i * kPanel + row] = from.row(row)[i];
    } else {
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = 0; i < x.columns; ++i) to[i * kPanel + row] = from.row(row)[i];
    }
  }
  return panels;
}

// AVX-512 was measured to be no faster: on Zen 4 it multiplies as many numbers per cycle.
template <class Element>
void multiply_all(const Matrix& x, const Matrix& weight, const Matrix& y, int threads) {
  const std::vector<float> panels = in_panels(x);
  const int64_t tasks = (weight.rows + kOutputsPerTask - 1) / kOutputsPerTask;
  for_each_row(tasks, kOutputsPerTask * weight.columns, threads, [&](int64_t task) {
    Rows rows;
    const int64_t end = std::min((task + 1) * kOutputsPerTask, weight.rows);
    for (int64_t i = 0; i < weight.columns; i += kInputs) {
      const int64_t inputs = std::min(kInputs, weight.columns - i);
      const Strided<const float> part{&panels[i * kPanel], x.columns * kPanel};
      for (int64_t first = task * kOutputsPerTask; first < end; first += kOutputs) {
        const int64_t outputs = std::min(kOutputs, end - first);
        const Strided<const float> w =
            rows.of(Strided<const Element>{weight.row<const Element>(first) + i, weight.stride}, outputs, inputs);
        const Strided<float> to{y.row<float>(0) + first, y.stride};
        const bool more = sizeof(Element) == sizeof(float) && first + 2 * kOutputs <= weight.rows;
        KERNEL_OF_AVX2(multiply<kOutputs>(w, outputs, part, x.rows, inputs, to, i > 0, more));
      }
    }
  });
}

void thin_product(const py::object& x, const py::object& weight, const py::object& y, int threads) {
  const Matrix inputs(x), weights(weight), result(y);
  if (inputs.columns < 1 || inputs.columns != weights.columns || result.columns != weights.rows || result.rows != inputs.rows)
    throw std::invalid_argument("shapes do not fit together");
  const py::gil_scoped_release others_may_run;
  (weights.is_bfloat16 ? multiply_all<Bfloat16> : multiply_all<float>)(inputs, weights, result, threads);
}

}  // namespace

void bind_thin_product(py::module_& module) {
  module.def("thin_product", &thin_product, "Writes x · Wᵀ to y; x and y are fp32, W is fp32 or bf16.");
}
