// What the NumPy bindings share: checks in the words that the torch operations use, dtypes, outputs.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>  // std::optional

#include <optional>
#include <string>
#include <vector>

#include "core_pool.h"
#include "maxmin/common.h"

namespace maxmin::core {

namespace py = pybind11;
using MaybeArray = std::optional<py::array>;

inline void require(bool holds, const char* argument, const std::string& message) {
  if (!holds) throw py::value_error(std::string(argument) + ": " + message);
}

// The maxmin_dtype of a floating array. bfloat16 is what the ml_dtypes package calls so.
inline int dtype_code(const py::array& a, const char* argument) {
  const std::string name = py::str(a.dtype().attr("name"));
  if (name == "float64") return MAXMIN_F64;
  if (name == "float32") return MAXMIN_F32;
  if (name == "bfloat16") return MAXMIN_BF16;
  if (name == "float16") return MAXMIN_F16;
  throw py::type_error(std::string(argument) + ": expected dtype float64, float32, bfloat16 or float16, got " + name);
}

// The accumulation type.
inline py::dtype real(int dtype) { return dtype == MAXMIN_F64 ? py::dtype::of<double>() : py::dtype::of<float>(); }

inline void check_dim(const py::array& a, int64_t dim, const char* argument) {
  require(a.ndim() == dim, argument,
          "expected " + std::to_string(dim) + " dimensions, got " + std::to_string(a.ndim()));
}
inline void check_size(const py::array& a, int64_t axis, int64_t size, const char* argument) {
  require(a.shape(axis) == size, argument,
          "expected size " + std::to_string(size) + " of dimension " + std::to_string(axis) + ", got " +
              std::to_string(a.shape(axis)));
}
inline void check_status(int status, const char* operation) {
  if (status == MAXMIN_OUT_OF_MEMORY) throw std::bad_alloc();
  require(status == MAXMIN_OK, operation,
          "a pointer (indptr, choice_indptr, mixture_indptr) that does not run from 0 to the end without a step down, "
          "an index (chosen, rejected) out of range, or a parameter out of its domain");
}

// In a dtype, contiguous, aligned: itself if it is so already.
inline py::array contiguous(const py::array& a, const py::dtype& dtype) {
  return py::module_::import("numpy").attr("require")(a, dtype, "CA");
}
// One-dimensional and of a size; -1: of any.
inline py::array vector(const py::array& a, const py::dtype& dtype, int64_t size, const char* argument) {
  check_dim(a, 1, argument);
  if (size >= 0) check_size(a, 0, size, argument);
  return contiguous(a, dtype);
}
inline MaybeArray vector(const MaybeArray& a, const py::dtype& dtype, int64_t size, const char* argument) {
  return a ? MaybeArray(vector(*a, dtype, size, argument)) : std::nullopt;
}
// Pointers and row numbers: int64, nothing is rounded.
inline py::array indices(const py::array& a, int64_t size, const char* argument) {
  if (!py::isinstance<py::array_t<int64_t>>(a))
    throw py::type_error(std::string(argument) + ": expected dtype int64, got " +
                         std::string(py::str(a.dtype().attr("name"))));
  return vector(a, py::dtype::of<int64_t>(), size, argument);
}
inline MaybeArray indices(const MaybeArray& a, int64_t size, const char* argument) {
  return a ? MaybeArray(indices(*a, size, argument)) : std::nullopt;
}
template <class T = void>
const T* data(const py::array& a) {
  return static_cast<const T*>(a.data());
}
template <class T = void>
const T* data(const MaybeArray& a) {
  return a ? data<T>(*a) : nullptr;
}

// Strides in elements. Views whose strides are no multiple of the element (fields of records) are copied first.
inline py::array whole_strides(const py::array& a) {
  const auto item = static_cast<py::ssize_t>(a.itemsize());
  bool whole = py::cast<bool>(a.attr("flags").attr("aligned"));
  for (py::ssize_t i = 0; i < a.ndim(); i++) whole = whole && a.strides(i) % item == 0;
  return whole ? a : contiguous(a, a.dtype());
}
inline int64_t stride(const py::array& a, int64_t axis) {
  return a.strides(axis) / static_cast<py::ssize_t>(a.itemsize());
}

inline py::array empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  return py::array(dtype, shape);
}

// The bindings of a family, in core_<family>.cpp.
void bind_em_pass(py::module_& m);
void bind_heads(py::module_& m);
void bind_welfare(py::module_& m);

}  // namespace maxmin::core
