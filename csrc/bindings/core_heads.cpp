// reward_heads and preference_margins for NumPy arrays.
#include "core_arrays.h"
#include "maxmin/heads.h"

namespace maxmin::core {
namespace {

py::array forward(const maxmin_rows& rows, const py::array& weight, const MaybeArray& bias, const char* operation) {
  check_dim(weight, 2, "weight");
  check_size(weight, 1, rows.n_features, "weight");
  const py::array w = whole_strides(weight);
  const MaybeArray b = vector(bias, real(rows.dtype), w.shape(0), "bias");
  const maxmin_heads heads = {w.shape(0), dtype_code(w, "weight"), w.data(), stride(w, 0), stride(w, 1), data(b)};
  py::array out = empty({rows.n_rows, heads.n_heads}, real(rows.dtype));
  void* to = out.mutable_data();
  int status;
  {
    py::gil_scoped_release release;
    status = maxmin_heads_fwd_cpu(&rows, &heads, to, parallel());
  }
  check_status(status, operation);
  return out;
}

py::array reward_heads(const py::array& hidden, const py::array& weight, const MaybeArray& bias,
                       const MaybeArray& token_index) {
  check_dim(hidden, token_index ? 3 : 2, "hidden");
  const py::array h = whole_strides(hidden);
  const MaybeArray index = indices(token_index, h.shape(0), "token_index");
  const int64_t last = h.ndim() - 1;
  maxmin_rows rows{};
  rows.n_rows = h.shape(0);
  rows.n_features = h.shape(last);
  rows.dtype = dtype_code(h, "hidden");
  rows.features = h.data();
  rows.stride_row = stride(h, 0);
  rows.stride_feature = stride(h, last);
  if (index) {
    rows.token_index = data<int64_t>(index);
    rows.n_tokens = h.shape(1);
    rows.stride_token = stride(h, 1);
  }
  return forward(rows, weight, bias, "reward_heads");
}

py::array preference_margins(const py::array& chosen, const py::array& rejected, const py::array& weight) {
  check_dim(chosen, 2, "chosen");
  check_dim(rejected, 2, "rejected");
  check_size(rejected, 0, chosen.shape(0), "rejected");
  check_size(rejected, 1, chosen.shape(1), "rejected");
  const py::array c = whole_strides(chosen), r = whole_strides(rejected);
  maxmin_rows rows{};
  rows.n_rows = c.shape(0);
  rows.n_features = c.shape(1);
  rows.dtype = dtype_code(c, "chosen");
  if (dtype_code(r, "rejected") != rows.dtype) throw py::type_error("rejected: expected the dtype of chosen");
  rows.features = c.data();
  rows.stride_row = stride(c, 0);
  rows.stride_feature = stride(c, 1);
  rows.rejected = r.data();
  rows.rejected_stride_row = stride(r, 0);
  rows.rejected_stride_feature = stride(r, 1);
  return forward(rows, weight, std::nullopt, "preference_margins");
}

}  // namespace

void bind_heads(py::module_& m) {
  m.def("reward_heads", &reward_heads, py::arg("hidden"), py::arg("weight"), py::arg("bias") = py::none(),
        py::arg("token_index") = py::none(),
        "hidden (B, D), or (B, T, D) with token_index (B,) int64; weight (H, D); bias (H,) -> (B, H).");
  m.def("preference_margins", &preference_margins, py::arg("chosen"), py::arg("rejected"), py::arg("weight"),
        "chosen, rejected (N, D); weight (H, D) -> (N, H), the margins (2).");
}

}  // namespace maxmin::core
