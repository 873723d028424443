// The Python module megatron_lwz.kernels._cpu; _cpu.pyi has its signatures.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "instructions.h"
#include "parallel.h"

namespace py = pybind11;

void bind_decode_attention(py::module_& module);
void bind_layers(py::module_& module);
void bind_sampling(py::module_& module);
void bind_softmax_epilogue(py::module_& module);
void bind_thin_product(py::module_& module);

namespace {

void use_instructions(const std::string& name) {
  std::string offered;
  for (int set = 0; set <= static_cast<int>(best_instructions()); ++set) {
    if (name == kNames[set]) {
      instructions = static_cast<Instructions>(set);
      return;
    }
    offered += offered.empty() ? kNames[set] : std::string(", ") + kNames[set];
  }
  throw std::invalid_argument("instructions " + name + ": this processor and build offer " + offered);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Kernels on a CPU. For the modules of megatron_lwz/kernels alone, which check what they pass.";
  bind_decode_attention(module);
  bind_layers(module);
  bind_sampling(module);
  bind_softmax_epilogue(module);
  bind_thin_product(module);
  module.def("instructions", [] { return kNames[static_cast<int>(instructions)]; }, "The instruction set in use.");
  module.def("use_instructions", &use_instructions, "Chooses portable, avx2 or avx512. Raises ValueError.");
  module.def("thread_runtime", &thread_runtime, "The OpenMP library whose threads are used, or \"threads\".");
}
