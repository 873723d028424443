// Attention of a decode step: the newest token of every sequence to all its cached keys, each of which is read once.
// megatron_lwz/kernels/decode_attention.py is its caller.

#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "elements.h"
#include "instructions.h"
#include "parallel.h"
#include "strided.h"
#include "tensors.h"

constexpr int64_t kKeys = 128;         // at a time: their values (32 KiB at a width of 64) come from the L1 and L2 caches
constexpr int64_t kMostQueries = 16;   // per key-value head

#define KERNELS "attention.h"
#include "vector.h"

namespace {

template <class Element>
void attend_head(Strided<const float> x, int64_t queries, Strided<const Element> keys, Strided<const Element> values,
                 int64_t length, int64_t width, Strided<float> y) {
#if defined(__x86_64__)
  if (use_avx2) return avx2::attend(x, queries, keys, values, length, width, y);
#endif
  portable::attend(x, queries, keys, values, length, width, y);
}

// Sizes and strides of the cache [rows, heads, 2, capacity, width].
struct Cache {
  explicit Cache(const py::object& tensor) : start(address<char>(tensor)) {
    for (int i = 0; i < 5; ++i) {
      sizes[i] = tensor.attr("size")(i).cast<int64_t>();
      strides[i] = tensor.attr("stride")(i).cast<int64_t>();
    }
    is_bfloat16 = tensor.attr("element_size")().cast<int>() == 2;
  }

  // The keys (0) or values (1) of a head.
  template <class Element>
  Strided<const Element> matrix(int64_t row, int64_t head, int64_t which) const {
    const auto* first = reinterpret_cast<const Element*>(start);
    return {first + row * strides[0] + head * strides[1] + which * strides[2], strides[3]};
  }

  char* start;
  int64_t sizes[5], strides[5];
  bool is_bfloat16;
};

template <class Element>
void attend_all(const float* query, const Cache& cache, const int64_t* lengths, float* out, int64_t rows, int64_t queries,
                int threads) {
  const int64_t heads = cache.sizes[1], width = cache.sizes[4];
  int64_t longest = 1;
  for (int64_t row = 0; row < rows; ++row) longest = std::max(longest, lengths[row]);
  for_each_row(rows * heads, longest * width, threads, [&](int64_t task) {
    const int64_t row = task / heads, head = task % heads, offset = task * queries * width;
    attend_head(Strided<const float>{query + offset, width}, queries, cache.matrix<Element>(row, head, 0),
                cache.matrix<Element>(row, head, 1), lengths[row], width, Strided<float>{out + offset, width});
  });
}

void decode_attention(const py::object& query, const py::object& store, const py::object& lengths, const py::object& out,
                      int threads) {
  const Cache cache(store);
  const auto rows = query.attr("size")(0).cast<int64_t>(), queries = query.attr("size")(2).cast<int64_t>();
  const auto* from = address<const float>(query);
  auto* to = address<float>(out);
  const auto* known = address<const int64_t>(lengths);
  if (queries > kMostQueries || cache.sizes[4] % 8 != 0) throw std::invalid_argument("no such shape");
  for (int64_t row = 0; row < rows; ++row)
    if (known[row] < 1 || known[row] > cache.sizes[3]) throw std::invalid_argument("a length is outside the cache");
  const py::gil_scoped_release others_may_run;
  (cache.is_bfloat16 ? attend_all<Bfloat16> : attend_all<float>)(from, cache, known, to, rows, queries,
                                                                threads);
}

}  // namespace

void bind_decode_attention(py::module_& module) {
  module.def("decode_attention", &decode_attention,
             "Writes softmax(query · keysᵀ) · values to `out`; query and out are fp32, the cache is fp32 or bf16.");
}
