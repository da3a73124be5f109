// maxmin_native::welfare_fwd_cpu, maxmin_reduce_fwd_cpu, maxmin_reduce_bwd_cpu.
#include <string>
#include <tuple>

#include "maxmin/welfare.h"
#include "torch_tensor.h"

namespace maxmin::binding {
namespace {

int kind_code(const std::string& kind) {
  static const char* const names[] = {"min", "softmin", "mean", "nash", "power", "cvar",
                                      "owa", "leximin", "kl",   "chi2", "tv",    "floor"};
  for (int code = 0; code < 12; code++)
    if (kind == names[code]) return code;
  STD_TORCH_CHECK(false, "kind: no welfare is called ", kind);
  return -1;
}

// A kind of welfare over n groups; the tensors in double keep its arrays alive.
struct Welfare {
  MaybeTensor group_weights, rank_weights, floor;
  maxmin_welfare c;

  Welfare(const std::string& kind, int64_t n, const MaybeTensor& shares, const MaybeTensor& ranks,
          const MaybeTensor& least, double param)
      : group_weights(contiguous_as(shares, ScalarType::Double)),
        rank_weights(contiguous_as(ranks, ScalarType::Double)),
        floor(contiguous_as(least, ScalarType::Double)) {
    STD_TORCH_CHECK(n > 0, "welfare: expected at least one group");
    c = {kind_code(kind),
         param,
         n,
         array(group_weights, n, "group_weights"),
         array(rank_weights, n, "rank_weights"),
         array(floor, n, "floor")};
    STD_TORCH_CHECK(c.kind != MAXMIN_LEXIMIN, "kind: leximin is handed over as owa");
    STD_TORCH_CHECK(c.kind != MAXMIN_OWA || c.rank_weights, "rank_weights: owa needs them");
  }

 private:
  static const double* array(const MaybeTensor& t, int64_t n, const char* name) {
    if (!t) return nullptr;
    check_dim(*t, 1, name);
    check_size(*t, 0, n, name);
    return t->const_data_ptr<double>();
  }
};

maxmin_matrix matrix_of(const Tensor& t, const char* name) {
  return {t.const_data_ptr(), dtype_code(t, name), t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

struct Mask {
  const uint8_t* data = nullptr;
  int64_t stride_row = 0, stride_column = 0;

  Mask(const MaybeTensor& mask, const Tensor& rewards) {
    if (!mask) return;
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool, "mask: expected dtype bool");
    check_dim(*mask, 2, "mask");
    check_size(*mask, 0, rewards.size(0), "mask");
    check_size(*mask, 1, rewards.size(1), "mask");
    data = static_cast<const uint8_t*>(mask->const_data_ptr());
    stride_row = mask->stride(0);
    stride_column = mask->stride(1);
  }
};

std::tuple<Tensor, Tensor> welfare_fwd(const Tensor& utilities, std::string kind, const MaybeTensor& group_weights,
                                       const MaybeTensor& rank_weights, const MaybeTensor& floor, double param) {
  STD_TORCH_CHECK(utilities.dim() > 0, "utilities: expected shape (..., K), got a scalar");
  const int64_t n = utilities.size(utilities.dim() - 1);
  const Welfare welfare(kind, n, group_weights, rank_weights, floor, param);
  auto sizes = utilities.sizes();
  Tensor rows = torch::stable::reshape(utilities, {utilities.numel() / n, n});
  Tensor value = torch::stable::new_empty(utilities, {sizes.data(), sizes.size() - 1}, accumulation(utilities));
  Tensor weights = torch::stable::new_empty(utilities, sizes, accumulation(utilities));
  maxmin_matrix matrix = matrix_of(rows, "utilities");
  check_status(
      maxmin_welfare_fwd_cpu(&welfare.c, &matrix, value.mutable_data_ptr(), weights.mutable_data_ptr(), parallel()),
      "welfare");
  return {value, weights};
}

std::tuple<Tensor, Tensor, Tensor> reduce_fwd(const Tensor& rewards, std::string kind, const MaybeTensor& mask,
                                              const MaybeTensor& running, const MaybeTensor& group_weights,
                                              const MaybeTensor& rank_weights, const MaybeTensor& floor, double param) {
  check_dim(rewards, 2, "rewards");
  const int64_t n = rewards.size(1);
  const Welfare welfare(kind, n, group_weights, rank_weights, floor, param);
  const ScalarType real = accumulation(rewards);
  MaybeTensor estimate = contiguous_as(running, real);
  if (estimate) {
    check_dim(*estimate, 1, "running");
    check_size(*estimate, 0, n, "running");
  }
  const Mask hidden(mask, rewards);
  Tensor value = torch::stable::new_empty(rewards, {}, real);
  Tensor weights = torch::stable::new_empty(rewards, {n}, real),
         utilities = torch::stable::new_empty(rewards, {n}, real);
  maxmin_matrix matrix = matrix_of(rewards, "rewards");
  check_status(maxmin_reduce_fwd_cpu(&welfare.c, &matrix, hidden.data, hidden.stride_row, hidden.stride_column,
                                     data_or_null(estimate), value.mutable_data_ptr(), weights.mutable_data_ptr(),
                                     utilities.mutable_data_ptr(), parallel()),
               "maxmin_reduce");
  return {value, weights, utilities};
}

Tensor reduce_bwd(const Tensor& grad_value, const Tensor& grad_utilities, const Tensor& rewards,
                  const MaybeTensor& mask, const Tensor& weights) {
  check_dim(rewards, 2, "rewards");
  const ScalarType real = accumulation(rewards);
  Tensor by_value = contiguous_as(grad_value, real), by_utility = contiguous_as(grad_utilities, real);
  Tensor w = contiguous_as(weights, real);
  STD_TORCH_CHECK(by_value.numel() == 1, "grad_value: expected one number");
  STD_TORCH_CHECK(by_utility.numel() == rewards.size(1), "grad_utilities: expected one number a group");
  STD_TORCH_CHECK(w.numel() == rewards.size(1), "weights: expected one number a group");
  const Mask hidden(mask, rewards);
  Tensor out = torch::stable::new_empty(rewards, rewards.sizes());
  maxmin_matrix matrix = matrix_of(rewards, "rewards");
  check_status(
      maxmin_reduce_bwd_cpu(&matrix, hidden.data, hidden.stride_row, hidden.stride_column, by_value.const_data_ptr(),
                            by_utility.const_data_ptr(), w.const_data_ptr(), out.mutable_data_ptr(), parallel()),
      "maxmin_reduce");
  return out;
}

}  // namespace
}  // namespace maxmin::binding

STABLE_TORCH_LIBRARY_FRAGMENT(maxmin_native, m) {
  m.def(
      "welfare_fwd_cpu(Tensor utilities, str kind, Tensor? group_weights, Tensor? rank_weights, Tensor? floor, "
      "float param) -> (Tensor, Tensor)");
  m.def(
      "maxmin_reduce_fwd_cpu(Tensor rewards, str kind, Tensor? mask, Tensor? running, Tensor? group_weights, "
      "Tensor? rank_weights, Tensor? floor, float param) -> (Tensor, Tensor, Tensor)");
  m.def(
      "maxmin_reduce_bwd_cpu(Tensor grad_value, Tensor grad_utilities, Tensor rewards, Tensor? mask, Tensor weights) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CPU, m) {
  m.impl("welfare_fwd_cpu", TORCH_BOX(&maxmin::binding::welfare_fwd));
  m.impl("maxmin_reduce_fwd_cpu", TORCH_BOX(&maxmin::binding::reduce_fwd));
  m.impl("maxmin_reduce_bwd_cpu", TORCH_BOX(&maxmin::binding::reduce_bwd));
}
