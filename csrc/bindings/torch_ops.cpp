// maxmin_kernels._C: importing it registers torch.ops.maxmin_native.*. Each family of operations adds its own part in
// torch_<family>.cpp; the module itself is empty.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(maxmin_native, m) {}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
