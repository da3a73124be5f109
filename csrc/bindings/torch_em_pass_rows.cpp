// maxmin_native::em_pass_rows_cpu.
#include <tuple>

#include "torch_comparisons.h"

namespace maxmin::binding {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> em_pass_rows(const Tensor& features, const Tensor& indptr,
                                                        const Tensor& weight, const Tensor& log_weights,
                                                        const MaybeTensor& choice_indptr,
                                                        const MaybeTensor& mixture_indptr,
                                                        const MaybeTensor& comparison_weight, double label_noise,
                                                        bool hard, double temperature) {
  check_dim(features, 2, "features");
  check_dim(weight, 2, "weight");
  check_size(weight, 1, features.size(1), "weight");
  const ScalarType real = accumulation(features);
  Tensor heads = contiguous_as(weight, real);
  Comparisons comparisons(features.size(0), indptr, choice_indptr, comparison_weight, label_noise, real);
  Mixtures mixtures(weight.size(0), mixture_indptr, log_weights, hard, temperature, real);
  const int64_t n_heads = weight.size(0), n_features = features.size(1);
  Tensor log_likelihood = torch::stable::new_empty(features, {mixtures.data.n_mixtures}, ScalarType::Double);
  Tensor log_resp = torch::stable::new_empty(features, {comparisons.data.n_annotators, n_heads}, real);
  Tensor mass = torch::stable::new_empty(features, {n_heads}, ScalarType::Double);
  Tensor grad_weight = torch::stable::new_empty(features, {n_heads, n_features}, real);
  maxmin_em_outputs out{log_likelihood.mutable_data_ptr<double>(), log_resp.mutable_data_ptr(),
                        mass.mutable_data_ptr<double>(), grad_weight.mutable_data_ptr()};
  check_pointers(maxmin_em_pass_rows_cpu(&comparisons.data, &mixtures.data, features.const_data_ptr(),
                                         dtype_code(features, "features"), n_features, features.stride(0),
                                         features.stride(1), heads.const_data_ptr(), &out, parallel()),
                 "em_pass");
  return {log_likelihood, log_resp, mass, grad_weight};
}

}  // namespace
}  // namespace maxmin::binding

STABLE_TORCH_LIBRARY_FRAGMENT(maxmin_native, m) {
  m.def(
      "em_pass_rows_cpu(Tensor features, Tensor indptr, Tensor weight, Tensor log_weights, Tensor? choice_indptr, "
      "Tensor? mixture_indptr, Tensor? comparison_weight, float label_noise, bool hard, float temperature) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CPU, m) {
  m.impl("em_pass_rows_cpu", TORCH_BOX(&maxmin::binding::em_pass_rows));
}
