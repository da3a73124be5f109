// Arguments that the operations on mixtures share: comparisons by annotator, and the mixtures' heads.
#pragma once
#include "maxmin/em_pass.h"
#include "torch_tensor.h"

namespace maxmin::binding {

// A pointer, or item rows: int64, contiguous.
inline Tensor index_tensor(const Tensor& t, const char* name) {
  check_dim(t, 1, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, name, ": expected dtype int64");
  return torch::stable::contiguous(t);
}
inline Tensor indptr_tensor(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) > 0, name, ": expected at least one entry (a leading 0)");
  return index_tensor(t, name);
}
inline const int64_t* indices(const MaybeTensor& t) { return t ? t->const_data_ptr<int64_t>() : nullptr; }

// Keeps the tensors that `data` points into.
struct Comparisons {
  Tensor indptr;
  MaybeTensor choice_indptr, weight;
  maxmin_comparisons data{};

  // `real`: the accumulation type.
  Comparisons(int64_t n_rows, const Tensor& ptr, const MaybeTensor& choice_ptr, const MaybeTensor& comparison_weight,
              double label_noise, ScalarType real)
      : indptr(indptr_tensor(ptr, "indptr")) {
    if (choice_ptr) choice_indptr = indptr_tensor(*choice_ptr, "choice_indptr");
    data.n_annotators = indptr.size(0) - 1;
    data.n_rows = n_rows;
    data.n_comparisons = choice_indptr ? choice_indptr->size(0) - 1 : n_rows;
    if (comparison_weight) {
      check_dim(*comparison_weight, 1, "comparison_weight");
      check_size(*comparison_weight, 0, data.n_comparisons, "comparison_weight");
      weight = contiguous_as(*comparison_weight, real);
    }
    data.indptr = indptr.const_data_ptr<int64_t>();
    data.choice_indptr = indices(choice_indptr);
    data.comparison_weight = data_or_null(weight);
    data.label_noise = label_noise;
  }
};

// Keeps the tensors that `data` points into; without mixture_indptr all heads are one mixture's.
struct Mixtures {
  MaybeTensor indptr, log_weights;
  int64_t whole[2] = {0, 0};
  maxmin_mixtures data{};

  Mixtures(int64_t n_heads, const MaybeTensor& mixture_indptr, const MaybeTensor& weights, bool hard,
           double temperature, ScalarType real) {
    if (mixture_indptr) indptr = indptr_tensor(*mixture_indptr, "mixture_indptr");
    if (weights) {
      check_dim(*weights, 1, "log_weights");
      check_size(*weights, 0, n_heads, "log_weights");
      log_weights = contiguous_as(*weights, real);
    }
    whole[1] = n_heads;
    data.n_heads = n_heads;
    data.n_mixtures = indptr ? indptr->size(0) - 1 : 1;
    data.mixture_indptr = indptr ? indices(indptr) : whole;
    data.log_weights = data_or_null(log_weights);
    data.temperature = temperature;
    data.hard = hard;
  }
  Mixtures(const Mixtures&) = delete;
  Mixtures& operator=(const Mixtures&) = delete;
};

// Kernels refuse pointers and indices that they would have to follow out of bounds.
inline void check_pointers(int status, const char* name) {
  STD_TORCH_CHECK(status != MAXMIN_BAD_ARGUMENT, name,
                  ": a pointer (indptr, choice_indptr, mixture_indptr) that does not run from 0 to the end without a "
                  "step down, or an index (chosen, rejected) out of range");
  check_status(status, name);
}

}  // namespace maxmin::binding
