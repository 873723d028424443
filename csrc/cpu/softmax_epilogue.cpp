// The epilogue of the log-prob op on a CPU: see megatron_lwz/kernels/linear_logprob/epilogue.py for what it computes
// and cpp.py for its caller.

#include <cmath>
#include <cstdint>

#include "elements.h"
#include "parallel.h"
#include "tensors.h"

// References to a row's m, s, w.
struct RowStatistics {
  float &m, &s, &w;
};

struct RowCoefficients {
  float lse, base, slope;
};

#define KERNELS "rows.h"
#include "vector.h"

namespace {

template <class Element>
void merge_row(const Element* z, int64_t columns, float scale, RowStatistics row) {
  KERNEL(merge_row(z, columns, scale, row));
}

template <class Element, class Result>
void gradient_row(const Element* z, Result* out, int64_t columns, float scale, RowCoefficients row) {
  KERNEL(gradient_row(z, out, columns, scale, row));
}

template <class Element>
void merge_tile(const Matrix& z, const int64_t* labels, float scale, float* running, int threads) {
  const int64_t n = z.rows;
  for_each_row(n, z.columns, threads, [=](int64_t i) {
    const Element* row = z.row<const Element>(i);
    merge_row(row, z.columns, scale, RowStatistics{running[i], running[n + i], running[2 * n + i]});
    if (labels[i] >= 0 && labels[i] < z.columns) running[3 * n + i] += read(row + labels[i]) * scale;
  });
}

// Per-row inputs, one number per row each; h and k may be null.
struct Gradients {
  const float *lse, *mean, *g, *h, *k;
};

template <class Element, class Result>
void gradient_tile(const Matrix& z, const Matrix& out, const int64_t* labels, float scale, Gradients rows, int threads) {
  for_each_row(z.rows, z.columns, threads, [=](int64_t i) {
    const Element* from = z.row<const Element>(i);
    Result* to = out.row<Result>(i);
    const float g = rows.g[i], h = rows.h ? rows.h[i] : 0.0f, k = rows.k ? rows.k[i] : 0.0f;
    if (g == 0 && h == 0 && k == 0) {
      std::memset(to, 0, z.columns * sizeof(Result));
      return;
    }
    // p · (k − g − h · (y − b)) with y − b = (y − lse) + (lse − b).
    const double base = double{k} - g - double{h} * (double{rows.lse[i]} - rows.mean[i]);
    const RowCoefficients row{rows.lse[i], static_cast<float>(base * scale), -h * scale};
    const bool own = labels[i] >= 0 && labels[i] < z.columns;
    float chosen = own ? read(from + labels[i]) : 0;  // before its memory is written over
    gradient_row(from, to, z.columns, scale, row);
    if (own) {
      gradient_row(&chosen, &chosen, 1, scale, row);
      write(to + labels[i], chosen + g * scale);
    }
  });
}

void statistics(const py::object& z, const py::object& labels, float scale, const py::object& running, int threads) {
  const Matrix tile(z);
  const auto* chosen = address<const int64_t>(labels);
  auto* result = address<float>(running);
  const py::gil_scoped_release others_may_run;
  (tile.is_bfloat16 ? merge_tile<Bfloat16> : merge_tile<float>)(tile, chosen, scale, result, threads);
}

void gradient(const py::object& z, const py::object& out, const py::object& labels, float scale, const py::object& rows,
              int threads) {
  const Matrix tile(z), result(out);
  const auto* chosen = address<const int64_t>(labels);
  const auto vector = [&](const char* name) { return address<const float>(rows.attr(name)); };
  const Gradients gradients{vector("lse"), vector("mean"), vector("logprob"), vector("entropy"), vector("lse_gradient")};
  const auto run = tile.is_bfloat16
                       ? (result.is_bfloat16 ? gradient_tile<Bfloat16, Bfloat16> : gradient_tile<Bfloat16, float>)
                       : (result.is_bfloat16 ? gradient_tile<float, Bfloat16> : gradient_tile<float, float>);
  const py::gil_scoped_release others_may_run;
  run(tile, result, chosen, scale, gradients, threads);
}

}  // namespace

void bind_softmax_epilogue(py::module_& module) {
  module.def("statistics", &statistics, "Merges a tile into the running statistics.");
  module.def("gradient", &gradient, "Writes a tile's gradient to `out`, which may be the tile's own memory.");
}
