// maxmin_kernels._core: what the compiled kernels offer without torch.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>
#include <vector>

#include "core_arrays.h"
#include "isa.h"

namespace py = pybind11;

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

py::dict build_info() {
#ifdef MAXMIN_X86
  const std::vector<std::string> compiled = {"baseline", "avx2", "avx512"};
#else
  const std::vector<std::string> compiled = {"baseline"};
#endif
  py::dict info;
  info["version"] = MAXMIN_VERSION;
#if defined(__clang__)
  info["compiler"] = __VERSION__;  // names itself
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
  info["instruction_sets"] = compiled;
  info["instruction_set"] = maxmin::isa_name(maxmin::isa());
  info["threads"] = maxmin::core::num_threads();
  info["cuda_archs"] = split(MAXMIN_CUDA_ARCHS);
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "CPU kernels for NumPy arrays, and how they were built.";
  m.def("build_info", &build_info,
        "What was compiled: version, compiler, instruction_sets (compiled), instruction_set (in use), threads, "
        "cuda_archs.");
  maxmin::core::bind_em_pass(m);
  maxmin::core::bind_heads(m);
  maxmin::core::bind_welfare(m);
}
