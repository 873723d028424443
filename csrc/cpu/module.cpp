// The Python module megatron_lwz.kernels._cpu; _cpu.pyi has its signatures.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "instructions.h"
#include "parallel.h"

namespace py = pybind11;

void bind_decode_attention(py::module_& module);
void bind_softmax_epilogue(py::module_& module);
void bind_thin_product(py::module_& module);

namespace {

void use_instructions(const std::string& name) {
  if (name != "portable" && !(name == "avx2" && has_avx2()))
    throw std::invalid_argument("instructions " + name + ": this processor and build offer portable" +
                                (has_avx2() ? " and avx2" : " only"));
  use_avx2 = name == "avx2";
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Kernels on a CPU. For kernels/linear_logprob/cpp.py, kernels/thin_product.py and kernels/decode_attention.py alone.";
  bind_decode_attention(module);
  bind_softmax_epilogue(module);
  bind_thin_product(module);
  module.def("instructions", [] { return use_avx2 ? "avx2" : "portable"; }, "The instruction set in use.");
  module.def("use_instructions", &use_instructions, "Chooses avx2 or portable. Raises ValueError.");
  module.def("thread_runtime", &thread_runtime, "The OpenMP library whose threads are used, or \"threads\".");
}
