// maxmin_native::em_pass_indexed_cpu.
#include <tuple>

#include "torch_comparisons.h"

namespace maxmin::binding {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> em_pass_indexed(const Tensor& scores, const Tensor& indptr,
                                                           const Tensor& chosen, const Tensor& rejected,
                                                           const Tensor& log_weights, const MaybeTensor& choice_indptr,
                                                           const MaybeTensor& mixture_indptr,
                                                           const MaybeTensor& comparison_weight, double label_noise,
                                                           bool hard, double temperature) {
  check_dim(scores, 2, "scores");
  const ScalarType real = accumulation(scores);
  Tensor table = contiguous_as(scores, real);
  Tensor c = index_tensor(chosen, "chosen"), r = index_tensor(rejected, "rejected");
  check_size(r, 0, c.size(0), "rejected");
  Comparisons comparisons(c.size(0), indptr, choice_indptr, comparison_weight, label_noise, real);
  Mixtures mixtures(scores.size(1), mixture_indptr, log_weights, hard, temperature, real);
  const int64_t n_heads = scores.size(1);
  Tensor log_likelihood = torch::stable::new_empty(scores, {mixtures.data.n_mixtures}, ScalarType::Double);
  Tensor log_resp = torch::stable::new_empty(scores, {comparisons.data.n_annotators, n_heads}, real);
  Tensor mass = torch::stable::new_empty(scores, {n_heads}, ScalarType::Double);
  Tensor grad_scores = torch::stable::new_empty(scores, {scores.size(0), n_heads}, real);
  maxmin_em_outputs out{log_likelihood.mutable_data_ptr<double>(), log_resp.mutable_data_ptr(),
                        mass.mutable_data_ptr<double>(), grad_scores.mutable_data_ptr()};
  check_pointers(maxmin_em_pass_indexed_cpu(&comparisons.data, &mixtures.data, table.const_data_ptr(),
                                            dtype_code(table, "scores"), scores.size(0), c.const_data_ptr<int64_t>(),
                                            r.const_data_ptr<int64_t>(), &out, parallel()),
                 "em_pass");
  return {log_likelihood, log_resp, mass, grad_scores};
}

}  // namespace
}  // namespace maxmin::binding

STABLE_TORCH_LIBRARY_FRAGMENT(maxmin_native, m) {
  m.def(
      "em_pass_indexed_cpu(Tensor scores, Tensor indptr, Tensor chosen, Tensor rejected, Tensor log_weights, "
      "Tensor? choice_indptr, Tensor? mixture_indptr, Tensor? comparison_weight, float label_noise, bool hard, "
      "float temperature) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CPU, m) {
  m.impl("em_pass_indexed_cpu", TORCH_BOX(&maxmin::binding::em_pass_indexed));
}
