// maxmin_native::mixture_log_likelihood_*_cpu, choice_shares_*_cpu, weighted_gram_cpu, weighted_laplacian_cpu.
#include <tuple>

#include "maxmin/choice_shares.h"
#include "maxmin/mixture_log_likelihood.h"
#include "maxmin/weighted_gram.h"
#include "torch_comparisons.h"

namespace maxmin::binding {
namespace {

using torch::stable::new_empty;

// A matrix (rows, heads) in a dtype, contiguous.
Tensor matrix(const Tensor& t, ScalarType dtype, int64_t n_rows, int64_t n_columns, const char* name) {
  check_dim(t, 2, name);
  check_size(t, 0, n_rows, name);
  check_size(t, 1, n_columns, name);
  return contiguous_as(t, dtype);
}

std::tuple<Tensor, Tensor> mixture_log_likelihood_fwd(const Tensor& margins, const Tensor& indptr,
                                                      const Tensor& log_weights, const MaybeTensor& choice_indptr,
                                                      const MaybeTensor& mixture_indptr,
                                                      const MaybeTensor& comparison_weight, double label_noise,
                                                      bool hard, double temperature) {
  check_dim(margins, 2, "margins");
  const ScalarType real = accumulation(margins);
  const int64_t n_heads = margins.size(1);
  Tensor m = torch::stable::contiguous(margins);
  Comparisons comparisons(m.size(0), indptr, choice_indptr, comparison_weight, label_noise, real);
  Mixtures mixtures(n_heads, mixture_indptr, log_weights, hard, temperature, real);
  Tensor z = new_empty(margins, {comparisons.data.n_annotators, mixtures.data.n_mixtures}, real);
  Tensor log_resp = new_empty(margins, {comparisons.data.n_annotators, n_heads}, real);
  check_pointers(maxmin_mixture_log_likelihood_fwd_cpu(&comparisons.data, &mixtures.data, m.const_data_ptr(),
                                                       dtype_code(m, "margins"), z.mutable_data_ptr(),
                                                       log_resp.mutable_data_ptr(), parallel()),
                 "mixture_log_likelihood");
  return {z, log_resp};
}

std::tuple<Tensor, Tensor> mixture_log_likelihood_bwd(const Tensor& grad_z, const Tensor& margins, const Tensor& indptr,
                                                      const Tensor& log_resp, const MaybeTensor& choice_indptr,
                                                      const MaybeTensor& mixture_indptr,
                                                      const MaybeTensor& comparison_weight, double label_noise) {
  check_dim(margins, 2, "margins");
  const ScalarType real = accumulation(margins);
  const int64_t n_heads = margins.size(1);
  Tensor m = torch::stable::contiguous(margins);
  Comparisons comparisons(m.size(0), indptr, choice_indptr, comparison_weight, label_noise, real);
  Mixtures mixtures(n_heads, mixture_indptr, std::nullopt, false, 1, real);
  Tensor grad = matrix(grad_z, real, comparisons.data.n_annotators, mixtures.data.n_mixtures, "grad_z");
  Tensor resp = matrix(log_resp, real, comparisons.data.n_annotators, n_heads, "log_resp");
  Tensor grad_margins = new_empty(margins, {m.size(0), n_heads}, margins.scalar_type());
  Tensor grad_log_weights = new_empty(margins, {n_heads}, real);
  check_pointers(maxmin_mixture_log_likelihood_bwd_cpu(&comparisons.data, &mixtures.data, m.const_data_ptr(),
                                                       dtype_code(m, "margins"), resp.const_data_ptr(),
                                                       grad.const_data_ptr(), grad_margins.mutable_data_ptr(),
                                                       grad_log_weights.mutable_data_ptr(), parallel()),
                 "mixture_log_likelihood");
  return {grad_margins, grad_log_weights};
}

// Comparisons without annotators.
struct Choices {
  MaybeTensor choice_indptr;
  maxmin_comparisons data{};

  Choices(int64_t n_rows, const MaybeTensor& choice_ptr, double label_noise) {
    if (choice_ptr) choice_indptr = indptr_tensor(*choice_ptr, "choice_indptr");
    data.n_rows = n_rows;
    data.n_comparisons = choice_indptr ? choice_indptr->size(0) - 1 : n_rows;
    data.choice_indptr = indices(choice_indptr);
    data.label_noise = label_noise;
  }
};

std::tuple<Tensor, Tensor> choice_shares_fwd(const Tensor& margins, const MaybeTensor& choice_indptr,
                                             double label_noise) {
  check_dim(margins, 2, "margins");
  const ScalarType real = accumulation(margins);
  const int64_t n_heads = margins.size(1);
  Tensor m = torch::stable::contiguous(margins);
  Choices choices(m.size(0), choice_indptr, label_noise);
  Tensor log_prob = new_empty(margins, {choices.data.n_comparisons, n_heads}, real);
  Tensor share = new_empty(margins, {m.size(0), n_heads}, real);
  check_pointers(maxmin_choice_shares_fwd_cpu(&choices.data, n_heads, m.const_data_ptr(), dtype_code(m, "margins"),
                                              log_prob.mutable_data_ptr(), share.mutable_data_ptr(), parallel()),
                 "choice_shares");
  return {log_prob, share};
}

Tensor choice_shares_bwd(const Tensor& grad_log_prob, const Tensor& share, const MaybeTensor& choice_indptr) {
  check_dim(share, 2, "share");
  const ScalarType real = accumulation(share);
  const int64_t n_heads = share.size(1);
  Tensor s = contiguous_as(share, real);
  Choices choices(s.size(0), choice_indptr, 0);
  Tensor grad = matrix(grad_log_prob, real, choices.data.n_comparisons, n_heads, "grad_log_prob");
  Tensor grad_margins = new_empty(s, {s.size(0), n_heads}, real);
  check_pointers(maxmin_choice_shares_bwd_cpu(&choices.data, n_heads, grad.const_data_ptr(), s.const_data_ptr(),
                                              dtype_code(s, "share"), grad_margins.mutable_data_ptr(), parallel()),
                 "choice_shares");
  return grad_margins;
}

Tensor weighted_gram(const Tensor& features, const Tensor& resp, const Tensor& share, const Tensor& indptr,
                     const MaybeTensor& chosen, const MaybeTensor& rejected, const MaybeTensor& choice_indptr,
                     const MaybeTensor& comparison_weight) {
  check_dim(features, 2, "features");
  check_dim(share, 2, "share");
  const ScalarType real = accumulation(features);
  const int64_t n_rows = share.size(0), n_heads = share.size(1), n_features = features.size(1);
  Comparisons comparisons(n_rows, indptr, choice_indptr, comparison_weight, 0, real);
  Tensor s = contiguous_as(share, real);
  Tensor gamma = matrix(resp, real, comparisons.data.n_annotators, n_heads, "resp");
  STD_TORCH_CHECK(chosen.has_value() == rejected.has_value(), "chosen, rejected: expected both or neither");
  MaybeTensor c, r;
  if (chosen) {
    c = index_tensor(*chosen, "chosen"), r = index_tensor(*rejected, "rejected");
    check_size(*c, 0, n_rows, "chosen");
    check_size(*r, 0, n_rows, "rejected");
  }
  maxmin_differences rows{features.size(0),
                          n_features,
                          dtype_code(features, "features"),
                          features.const_data_ptr(),
                          features.stride(0),
                          features.stride(1),
                          indices(c),
                          indices(r)};
  Tensor out = new_empty(features, {n_heads, n_features, n_features}, real);
  check_pointers(maxmin_weighted_gram_cpu(&comparisons.data, &rows, n_heads, gamma.const_data_ptr(), s.const_data_ptr(),
                                          out.mutable_data_ptr(), parallel()),
                 "weighted_gram");
  return out;
}

Tensor weighted_laplacian(int64_t n_items, const Tensor& resp, const Tensor& share, const Tensor& indptr,
                          const Tensor& chosen, const Tensor& rejected, const MaybeTensor& choice_indptr,
                          const MaybeTensor& comparison_weight) {
  check_dim(share, 2, "share");
  const ScalarType real = accumulation(share);
  const int64_t n_rows = share.size(0), n_heads = share.size(1);
  Comparisons comparisons(n_rows, indptr, choice_indptr, comparison_weight, 0, real);
  Tensor s = contiguous_as(share, real);
  Tensor gamma = matrix(resp, real, comparisons.data.n_annotators, n_heads, "resp");
  Tensor c = index_tensor(chosen, "chosen"), r = index_tensor(rejected, "rejected");
  check_size(c, 0, n_rows, "chosen");
  check_size(r, 0, n_rows, "rejected");
  Tensor out = new_empty(s, {n_heads, n_items, n_items}, real);
  check_pointers(
      maxmin_weighted_laplacian_cpu(&comparisons.data, n_items, c.const_data_ptr<int64_t>(),
                                    r.const_data_ptr<int64_t>(), n_heads, gamma.const_data_ptr(), s.const_data_ptr(),
                                    dtype_code(s, "share"), out.mutable_data_ptr(), parallel()),
      "weighted_gram");
  return out;
}

}  // namespace
}  // namespace maxmin::binding

STABLE_TORCH_LIBRARY_FRAGMENT(maxmin_native, m) {
  m.def(
      "mixture_log_likelihood_fwd_cpu(Tensor margins, Tensor indptr, Tensor log_weights, Tensor? choice_indptr, "
      "Tensor? mixture_indptr, Tensor? comparison_weight, float label_noise, bool hard, float temperature) "
      "-> (Tensor, Tensor)");
  m.def(
      "mixture_log_likelihood_bwd_cpu(Tensor grad_z, Tensor margins, Tensor indptr, Tensor log_resp, "
      "Tensor? choice_indptr, Tensor? mixture_indptr, Tensor? comparison_weight, float label_noise) "
      "-> (Tensor, Tensor)");
  m.def("choice_shares_fwd_cpu(Tensor margins, Tensor? choice_indptr, float label_noise) -> (Tensor, Tensor)");
  m.def("choice_shares_bwd_cpu(Tensor grad_log_prob, Tensor share, Tensor? choice_indptr) -> Tensor");
  m.def(
      "weighted_gram_cpu(Tensor features, Tensor resp, Tensor share, Tensor indptr, Tensor? chosen, Tensor? rejected, "
      "Tensor? choice_indptr, Tensor? comparison_weight) -> Tensor");
  m.def(
      "weighted_laplacian_cpu(int n_items, Tensor resp, Tensor share, Tensor indptr, Tensor chosen, Tensor rejected, "
      "Tensor? choice_indptr, Tensor? comparison_weight) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CPU, m) {
  m.impl("mixture_log_likelihood_fwd_cpu", TORCH_BOX(&maxmin::binding::mixture_log_likelihood_fwd));
  m.impl("mixture_log_likelihood_bwd_cpu", TORCH_BOX(&maxmin::binding::mixture_log_likelihood_bwd));
  m.impl("choice_shares_fwd_cpu", TORCH_BOX(&maxmin::binding::choice_shares_fwd));
  m.impl("choice_shares_bwd_cpu", TORCH_BOX(&maxmin::binding::choice_shares_bwd));
  m.impl("weighted_gram_cpu", TORCH_BOX(&maxmin::binding::weighted_gram));
  m.impl("weighted_laplacian_cpu", TORCH_BOX(&maxmin::binding::weighted_laplacian));
}
