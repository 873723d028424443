// Attention of a decode step: the newest token of every sequence to all its cached keys, each of which is read once. Its own
// key is turned by its position, and stored with its value, on the way. megatron_lwz/kernels/decode_attention.py is its caller.

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "elements.h"
#include "parallel.h"
#include "strided.h"
#include "tensors.h"

constexpr int64_t kKeys = 128;         // of a page: their values (32 KiB at a width of 64) come from the L1 and L2 caches
constexpr int64_t kColumns = 32;       // keys whose numbers of one dimension lie together
constexpr int64_t kMostQueries = 16;   // per key-value head
constexpr int64_t kWidth = 8;          // divides that of a head

// The pages of one sequence, for one head of one layer. A page holds [layers, heads, 2] times kKeys · width numbers: keys
// [kKeys / kColumns, width, kColumns], so that the products with a query run along the keys, and values [kKeys, width].
template <class Element>
struct Pages {
  Strided<Element> keys(int64_t page, int64_t first) const {  // from `first` on, a multiple of kColumns
    return {reinterpret_cast<Element*>(addresses[page]) + offset + first * width, kColumns};
  }
  Strided<Element> values(int64_t page) const { return {keys(page, kKeys).start, width}; }

  const int64_t* addresses;
  int64_t offset, width;
};

#define KERNELS "attention.h"
#include "vector.h"

namespace {

// Queries, key and value of every sequence [rows, heads, queries + 2, width], before the rotary embedding.
struct Projected {
  explicit Projected(const py::object& tensor)
      : start(address<char>(tensor)),
        rows(size(tensor, 0)),
        heads(size(tensor, 1)),
        queries(size(tensor, 2) - 2),
        width(size(tensor, 3)),
        is_bfloat16(is_of_two_bytes(tensor)) {}

  template <class Element>
  Strided<const Element> head(int64_t row, int64_t head) const {
    return {reinterpret_cast<const Element*>(start) + (row * heads + head) * (queries + 2) * width, width};
  }

  char* start;
  int64_t rows, heads, queries, width;
  bool is_bfloat16;
};

// Angles [positions, width], the sine of the first half with its minus sign.
struct Angles {
  const float *cos, *sin;
};

// out = x turned by the angles, rounded to the type of x as the trainer rounds it.
template <class Element>
void turn(const Element* x, Angles angles, int64_t width, float* out) {
  const auto turn_half = [&](int64_t begin, int64_t other) {
    for (int64_t d = 0; d < width / 2; ++d) {
      Element rounded;
      convert(to_float(x[begin + d]) * angles.cos[begin + d] + to_float(x[other + d]) * angles.sin[begin + d], rounded);
      out[begin + d] = to_float(rounded);
    }
  };
  turn_half(0, width / 2);
  turn_half(width / 2, 0);
}

template <class Element>
void attend_all(const Projected& mixed, Angles table, const int64_t* addresses, int64_t most, int64_t layer,
                const int64_t* lengths, float* out, float scale, int threads) {
  const int64_t heads = mixed.heads, queries = mixed.queries, width = mixed.width;
  int64_t longest = 1;
  for (int64_t row = 0; row < mixed.rows; ++row) longest = std::max(longest, lengths[row]);
  for_each_row(mixed.rows * heads, longest * width, threads, [&](int64_t task) {
    const int64_t row = task / heads, head = task % heads, last = lengths[row] - 1;
    const Angles angles{table.cos + last * width, table.sin + last * width};
    const auto from = mixed.head<Element>(row, head);
    const Pages<Element> pages{addresses + row * most, (layer * heads + head) * 2 * kKeys * width, width};
    std::vector<float> turned((queries + 1) * width);  // the queries, then the key
    for (int64_t q = 0; q <= queries; ++q) turn(from.row(q), angles, width, &turned[q * width]);
    for (int64_t i = 0; i < queries * width; ++i) turned[i] *= scale;
    const Strided<const float> x{turned.data(), width};
    const float* key = x.row(queries);
    const Element* value = from.row(queries + 1);
    const Pages<const Element> seen{pages.addresses, pages.offset, width};
    KERNEL_OF_WIDTH(width, attend(x, queries, seen, last, width, key, value, Strided<float>{out + task * queries * width, width}));
    const int64_t page = last / kKeys, place = last % kKeys;  // stored last: the other keys have brought its memory near
    const Strided<Element> to = pages.keys(page, place - place % kColumns);
    for (int64_t d = 0; d < width; ++d) convert(key[d], to.row(d)[place % kColumns]);
    std::copy_n(value, width, pages.values(page).row(place));
  });
}

void decode_attention(const py::object& mixed, const py::object& cos, const py::object& sin, const py::object& pages,
                      int64_t layer, const py::object& lengths, const py::object& out, float scale, int threads) {
  const Projected projected(mixed);
  const Angles table{address<const float>(cos), address<const float>(sin)};
  const auto* addresses = address<const int64_t>(pages);
  auto* to = address<float>(out);
  const auto* known = address<const int64_t>(lengths);
  const int64_t positions = size(cos, 0), most = size(pages, 1);
  if (projected.queries < 1 || projected.queries > kMostQueries || projected.width % kWidth != 0)
    throw std::invalid_argument("no such shape");
  for (int64_t row = 0; row < projected.rows; ++row) {
    if (known[row] < 1 || known[row] > std::min(most * kKeys, positions))
      throw std::invalid_argument("a length is outside the cache");
    for (int64_t page = 0; page * kKeys < known[row]; ++page)
      if (addresses[row * most + page] == 0) throw std::invalid_argument("a length is outside the cache");
  }
  const py::gil_scoped_release others_may_run;
  (projected.is_bfloat16 ? attend_all<Bfloat16> : attend_all<float>)(projected, table, addresses, most, layer, known, to,
                                                                     scale, threads);
}

}  // namespace

void bind_decode_attention(py::module_& module) {
  module.def("decode_attention", &decode_attention,
             "Turns queries and key, stores key and value, and writes softmax(query · keysᵀ) · values to `out`, which is fp32.");
}
