// maxmin_native::reward_heads_*_cpu and preference_margins_*_cpu.
#include <tuple>

#include "maxmin/heads.h"
#include "torch_tensor.h"

namespace maxmin::binding {
namespace {

maxmin_rows describe_rows(const Tensor& features, const Tensor* rejected, const Tensor* token_index) {
  maxmin_rows rows{};
  const int64_t last = features.dim() - 1;
  rows.n_rows = features.size(0);
  rows.n_features = features.size(last);
  rows.dtype = dtype_code(features, "features");
  rows.features = features.const_data_ptr();
  rows.stride_row = features.stride(0);
  rows.stride_feature = features.stride(last);
  if (rejected) {
    STD_TORCH_CHECK(rejected->scalar_type() == features.scalar_type(), "rejected: expected the dtype of chosen");
    check_dim(*rejected, 2, "rejected");
    check_size(*rejected, 0, rows.n_rows, "rejected");
    check_size(*rejected, 1, rows.n_features, "rejected");
    rows.rejected = rejected->const_data_ptr();
    rows.rejected_stride_row = rejected->stride(0);
    rows.rejected_stride_feature = rejected->stride(1);
  }
  if (token_index) {
    check_dim(*token_index, 1, "token_index");
    check_size(*token_index, 0, rows.n_rows, "token_index");
    rows.token_index = token_index->const_data_ptr<int64_t>();
    rows.n_tokens = features.size(1);
    rows.stride_token = features.stride(1);
  }
  return rows;
}

maxmin_heads describe_heads(const Tensor& weight, const void* bias, const maxmin_rows& rows) {
  check_dim(weight, 2, "weight");
  check_size(weight, 1, rows.n_features, "weight");
  return {
      weight.size(0), dtype_code(weight, "weight"), weight.const_data_ptr(), weight.stride(0), weight.stride(1), bias};
}

MaybeTensor checked_index(const Tensor& hidden, const MaybeTensor& token_index) {
  check_dim(hidden, token_index ? 3 : 2, "hidden");
  if (!token_index) return std::nullopt;
  STD_TORCH_CHECK(token_index->scalar_type() == ScalarType::Long, "token_index: expected dtype int64");
  return torch::stable::contiguous(*token_index);
}

Tensor forward(const maxmin_rows& rows, const maxmin_heads& heads, const Tensor& like, const char* name) {
  Tensor out = torch::stable::new_empty(like, {rows.n_rows, heads.n_heads}, accumulation(like));
  check_status(maxmin_heads_fwd_cpu(&rows, &heads, out.mutable_data_ptr(), parallel()), name);
  return out;
}

Tensor reward_heads_fwd(const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias,
                        const MaybeTensor& token_index) {
  MaybeTensor index = checked_index(hidden, token_index), shift = contiguous_as(bias, accumulation(hidden));
  maxmin_rows rows = describe_rows(hidden, nullptr, index ? &*index : nullptr);
  maxmin_heads heads = describe_heads(weight, data_or_null(shift), rows);
  if (shift) {
    check_dim(*shift, 1, "bias");
    check_size(*shift, 0, heads.n_heads, "bias");
  }
  return forward(rows, heads, hidden, "reward_heads");
}

// grad in the accumulation type, contiguous, one row a row of the features.
Tensor upstream(const Tensor& grad, const maxmin_rows& rows, const maxmin_heads& heads, const Tensor& like) {
  check_dim(grad, 2, "grad");
  check_size(grad, 0, rows.n_rows, "grad");
  check_size(grad, 1, heads.n_heads, "grad");
  return contiguous_as(grad, accumulation(like));
}

std::tuple<Tensor, Tensor, Tensor> reward_heads_bwd(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                                    const MaybeTensor& token_index, bool need_hidden,
                                                    bool need_weight) {
  MaybeTensor index = checked_index(hidden, token_index);
  maxmin_rows rows = describe_rows(hidden, nullptr, index ? &*index : nullptr);
  maxmin_heads heads = describe_heads(weight, nullptr, rows);
  Tensor g = upstream(grad, rows, heads, hidden);
  Tensor grad_hidden = nothing(hidden, hidden.scalar_type()), grad_weight = nothing(weight, weight.scalar_type());
  if (need_hidden)
    grad_hidden =
        index ? torch::stable::new_zeros(hidden, hidden.sizes()) : torch::stable::new_empty(hidden, hidden.sizes());
  if (need_weight) grad_weight = torch::stable::new_empty(weight, weight.sizes());
  Tensor grad_bias = torch::stable::new_empty(hidden, {heads.n_heads}, accumulation(hidden));
  int status = maxmin_heads_bwd_cpu(
      &rows, &heads, g.const_data_ptr(), need_hidden ? grad_hidden.mutable_data_ptr() : nullptr, nullptr,
      need_weight ? grad_weight.mutable_data_ptr() : nullptr, grad_bias.mutable_data_ptr(), parallel());
  check_status(status, "reward_heads");
  return {grad_hidden, grad_weight, grad_bias};
}

Tensor preference_margins_fwd(const Tensor& chosen, const Tensor& rejected, const Tensor& weight) {
  check_dim(chosen, 2, "chosen");
  maxmin_rows rows = describe_rows(chosen, &rejected, nullptr);
  return forward(rows, describe_heads(weight, nullptr, rows), chosen, "preference_margins");
}

std::tuple<Tensor, Tensor, Tensor> preference_margins_bwd(const Tensor& grad, const Tensor& chosen,
                                                          const Tensor& rejected, const Tensor& weight,
                                                          bool need_features, bool need_weight) {
  check_dim(chosen, 2, "chosen");
  maxmin_rows rows = describe_rows(chosen, &rejected, nullptr);
  maxmin_heads heads = describe_heads(weight, nullptr, rows);
  Tensor g = upstream(grad, rows, heads, chosen);
  Tensor grad_chosen = nothing(chosen, chosen.scalar_type()), grad_rejected = nothing(chosen, chosen.scalar_type());
  Tensor grad_weight = nothing(weight, weight.scalar_type());
  if (need_features) {
    grad_chosen = torch::stable::new_empty(chosen, chosen.sizes());
    grad_rejected = torch::stable::new_empty(rejected, rejected.sizes());
  }
  if (need_weight) grad_weight = torch::stable::new_empty(weight, weight.sizes());
  int status =
      maxmin_heads_bwd_cpu(&rows, &heads, g.const_data_ptr(), need_features ? grad_chosen.mutable_data_ptr() : nullptr,
                           need_features ? grad_rejected.mutable_data_ptr() : nullptr,
                           need_weight ? grad_weight.mutable_data_ptr() : nullptr, nullptr, parallel());
  check_status(status, "preference_margins");
  return {grad_chosen, grad_rejected, grad_weight};
}

}  // namespace
}  // namespace maxmin::binding

STABLE_TORCH_LIBRARY_FRAGMENT(maxmin_native, m) {
  m.def("reward_heads_fwd_cpu(Tensor hidden, Tensor weight, Tensor? bias, Tensor? token_index) -> Tensor");
  m.def(
      "reward_heads_bwd_cpu(Tensor grad, Tensor hidden, Tensor weight, Tensor? token_index, bool need_hidden, "
      "bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def("preference_margins_fwd_cpu(Tensor chosen, Tensor rejected, Tensor weight) -> Tensor");
  m.def(
      "preference_margins_bwd_cpu(Tensor grad, Tensor chosen, Tensor rejected, Tensor weight, bool need_features, "
      "bool need_weight) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CPU, m) {
  m.impl("reward_heads_fwd_cpu", TORCH_BOX(&maxmin::binding::reward_heads_fwd));
  m.impl("reward_heads_bwd_cpu", TORCH_BOX(&maxmin::binding::reward_heads_bwd));
  m.impl("preference_margins_fwd_cpu", TORCH_BOX(&maxmin::binding::preference_margins_fwd));
  m.impl("preference_margins_bwd_cpu", TORCH_BOX(&maxmin::binding::preference_margins_bwd));
}
