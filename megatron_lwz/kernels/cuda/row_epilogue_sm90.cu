// The epilogue of the vocabulary-parallel log-prob for Hopper: the work on logits z [rows, columns] between the matrix
// products.
//
//   lwz_row_statistics   merges a tile into the running (m, s, w, label's logit) of its rows
//   lwz_row_gradient     dL/dz of a tile, in its own memory or elsewhere
//
// y = z · scale, scale = 1 / temperature. Rows are contiguous, `stride` elements apart. All in fp32 except the storage of
// z and of the gradient. No atomics: every sum has one order. Functions return a cudaError_t; launches do not wait.
#include "row_passes.cuh"

// The C ABI: also in kernels/linear_logprob/cuda.py, which must agree with it.
extern "C" {


struct LwzTile {
  const void* z;
  int64_t stride;  // elements from row to row
  int64_t rows, columns;
  const int64_t* labels;  // [rows], relative to the tile's first column
  float scale;
  int32_t is_bf16;
};

struct LwzTarget {
  void* gradient;  // may be z
  int64_t stride;
  int32_t is_bf16;
};

}  // extern "C"

namespace {

bool aligned(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}

bool logits(const LwzTile& tile, const LwzTarget* target, Logits& z) {
  const int64_t bytes = tile.is_bf16 ? 2 : 4;
  if (tile.rows <= 0 || tile.columns <= 0 || tile.columns > INT32_MAX - 8192) return false;  // indices run past the end
  const char* data = static_cast<const char*>(tile.z);
  const bool vectors = aligned(data, tile.stride * bytes);
  z = {data, tile.stride * bytes, static_cast<int>(tile.columns), vectors, tile.labels, tile.scale};
  if (target) z.aligned = z.aligned && aligned(target->gradient, target->stride * (target->is_bf16 ? 2 : 4));
  return true;
}

// One CTA of THREADS threads per row.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t rows, void* stream, Arguments... arguments) {
  if (rows <= 0 || rows > INT32_MAX) return cudaErrorInvalidValue;
  cudaLaunchConfig_t config = {};
  config.gridDim.x = static_cast<unsigned>(rows);
  config.gridDim.y = config.gridDim.z = 1;
  config.blockDim.x = THREADS;
  config.blockDim.y = config.blockDim.z = 1;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

extern "C" {

// running [4, rows] fp32.
int lwz_row_statistics(const LwzTile* tile, float* running, void* stream) {
  Logits z;
  if (!logits(*tile, nullptr, z)) return cudaErrorInvalidValue;
  const auto kernel = tile->is_bf16 ? row_statistics<Bf16> : row_statistics<Fp32>;
  return launch(kernel, tile->rows, stream, z, tile->rows, running);
}

// upstream: lse, mean, d logprob, d entropy, d lse, each [rows] fp32; the last two may be null.
int lwz_row_gradient(const LwzTile* tile, const LwzTarget* target, const float* const* upstream, void* stream) {
  Logits z;
  if (!logits(*tile, target, z)) return cudaErrorInvalidValue;
  const Target out = {static_cast<char*>(target->gradient), target->stride * (target->is_bf16 ? 2 : 4)};
  const Upstream of = {upstream[0], upstream[1], upstream[2], upstream[3], upstream[4]};
  const auto from_fp32 = target->is_bf16 ? row_gradient<Fp32, Bf16> : row_gradient<Fp32, Fp32>;
  const auto from_bf16 = target->is_bf16 ? row_gradient<Bf16, Bf16> : row_gradient<Bf16, Fp32>;
  return launch(tile->is_bf16 ? from_bf16 : from_fp32, tile->rows, stream, z, out, of);
}

const char* lwz_error_name(int code) { return cudaGetErrorName(static_cast<cudaError_t>(code)); }

}  // extern "C"
