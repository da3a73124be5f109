// What the torch bindings share: dtype codes, checks, allocation, and torch's thread pool lent to the kernels.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "maxmin/common.h"

namespace maxmin::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// The maxmin_dtype of a floating tensor.
inline int dtype_code(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return MAXMIN_F64;
    case ScalarType::Float: return MAXMIN_F32;
    case ScalarType::BFloat16: return MAXMIN_BF16;
    case ScalarType::Half: return MAXMIN_F16;
    default: STD_TORCH_CHECK(false, name, ": expected dtype float64, float32, bfloat16, float16");
  }
  return -1;
}

// The accumulation type of a storage type.
inline ScalarType accumulation(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_dim(const Tensor& t, int64_t dim, const char* name) {
  STD_TORCH_CHECK(t.dim() == dim, name, ": expected ", dim, " dimensions, got ", t.dim());
}
inline void check_size(const Tensor& t, int64_t dim, int64_t size, const char* name) {
  STD_TORCH_CHECK(t.size(dim) == size, name, ": expected size ", size, " of dimension ", dim, ", got ", t.size(dim));
}
inline void check_status(int status, const char* name) {
  STD_TORCH_CHECK(status == MAXMIN_OK, name, ": ", status == MAXMIN_OUT_OF_MEMORY ? "out of memory" : "bad argument");
}

// `t` in a dtype, contiguous: itself if it is so already.
inline Tensor contiguous_as(const Tensor& t, ScalarType dtype) {
  return torch::stable::contiguous(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}
inline MaybeTensor contiguous_as(const MaybeTensor& t, ScalarType dtype) {
  return t ? MaybeTensor(contiguous_as(*t, dtype)) : std::nullopt;
}
inline const void* data_or_null(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }
// The output of something that was not asked for.
inline Tensor nothing(const Tensor& like, ScalarType dtype) { return torch::stable::new_empty(like, {0}, dtype); }

// torch's own pool runs the tasks.
inline const maxmin_parallel* parallel() {
  static const auto run = [](int64_t n_tasks, maxmin_task task, void* context) {
    torch::stable::parallel_for(0, n_tasks, 1, [=](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) task(context, t);
    });
  };
  thread_local maxmin_parallel lent;
  lent = {run, static_cast<int>(torch::stable::get_num_threads())};
  return &lent;
}

}  // namespace maxmin::binding
