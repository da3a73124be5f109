// welfare and maxmin_reduce for NumPy arrays.
#include "core_arrays.h"
#include "maxmin/welfare.h"

namespace maxmin::core {
namespace {

int kind_code(const std::string& kind) {
  static const char* const names[] = {"min", "softmin", "mean", "nash", "power", "cvar",
                                      "owa", "leximin", "kl",   "chi2", "tv",    "floor"};
  for (int code = 0; code < 12; code++)
    if (kind == names[code] && code != MAXMIN_LEXIMIN) return code;
  throw py::value_error("kind: no welfare of the compiled kernels is called " + kind);
}

// A kind of welfare over n groups; keeps the arrays that `c` points into.
struct Welfare {
  MaybeArray group_weights, rank_weights, floor;
  maxmin_welfare c;

  Welfare(const std::string& kind, int64_t n, const MaybeArray& shares, const MaybeArray& ranks,
          const MaybeArray& least, double param)
      : group_weights(vector(shares, py::dtype::of<double>(), n, "group_weights")),
        rank_weights(vector(ranks, py::dtype::of<double>(), n, "rank_weights")),
        floor(vector(least, py::dtype::of<double>(), n, "floor")),
        c{kind_code(kind), param, n, data<double>(group_weights), data<double>(rank_weights), data<double>(floor)} {
    require(n > 0, "welfare", "expected at least one group");
    require(c.kind != MAXMIN_OWA || c.rank_weights, "rank_weights", "owa needs them");
  }
};

maxmin_matrix matrix_of(const py::array& a, const char* argument) {
  return {a.data(), dtype_code(a, argument), a.shape(0), a.shape(1), stride(a, 0), stride(a, 1)};
}

py::tuple welfare(const py::array& utilities, const std::string& kind, const MaybeArray& group_weights,
                  const MaybeArray& rank_weights, const MaybeArray& floor, double param) {
  check_dim(utilities, 2, "utilities");
  const py::array u = whole_strides(utilities);
  const Welfare how(kind, u.shape(1), group_weights, rank_weights, floor, param);
  const maxmin_matrix matrix = matrix_of(u, "utilities");
  py::array value = empty({u.shape(0)}, real(matrix.dtype)),
            weights = empty({u.shape(0), u.shape(1)}, real(matrix.dtype));
  void *to_value = value.mutable_data(), *to_weights = weights.mutable_data();
  int status;
  {
    py::gil_scoped_release release;
    status = maxmin_welfare_fwd_cpu(&how.c, &matrix, to_value, to_weights, parallel());
  }
  check_status(status, "welfare");
  return py::make_tuple(value, weights);
}

py::tuple maxmin_reduce(const py::array& rewards, const std::string& kind, const MaybeArray& mask,
                        const MaybeArray& running, const MaybeArray& group_weights, const MaybeArray& rank_weights,
                        const MaybeArray& floor, double param) {
  check_dim(rewards, 2, "rewards");
  const py::array r = whole_strides(rewards);
  const int64_t n = r.shape(1);
  const Welfare how(kind, n, group_weights, rank_weights, floor, param);
  const maxmin_matrix matrix = matrix_of(r, "rewards");
  const MaybeArray estimate = vector(running, real(matrix.dtype), n, "running");
  if (mask) {
    if (!py::isinstance<py::array_t<bool>>(*mask)) throw py::type_error("mask: expected dtype bool");
    check_dim(*mask, 2, "mask");
    check_size(*mask, 0, r.shape(0), "mask");
    check_size(*mask, 1, n, "mask");
  }
  py::array value = empty({1}, real(matrix.dtype)), weights = empty({n}, real(matrix.dtype)),
            utilities = empty({n}, real(matrix.dtype));
  check_status(maxmin_reduce_fwd_cpu(&how.c, &matrix, data<uint8_t>(mask), mask ? mask->strides(0) : 0,
                                     mask ? mask->strides(1) : 0, data(estimate), value.mutable_data(),
                                     weights.mutable_data(), utilities.mutable_data(), parallel()),
               "maxmin_reduce");
  return py::make_tuple(value.attr("item")(), weights, utilities);
}

}  // namespace

void bind_welfare(py::module_& m) {
  m.def(
      "welfare", &welfare, py::arg("utilities"), py::arg("kind") = "min", py::kw_only(),
      py::arg("group_weights") = py::none(), py::arg("rank_weights") = py::none(), py::arg("floor") = py::none(),
      py::arg("param") = 0.0,
      "utilities (B, K) -> value (B,), weights (B, K). group_weights sum to one; param is the kind's tau, alpha, p or "
      "radius.");
  m.def(
      "maxmin_reduce", &maxmin_reduce, py::arg("rewards"), py::arg("kind") = "min", py::kw_only(),
      py::arg("mask") = py::none(), py::arg("running") = py::none(), py::arg("group_weights") = py::none(),
      py::arg("rank_weights") = py::none(), py::arg("floor") = py::none(), py::arg("param") = 0.0,
      "rewards (B, K) -> value, weights (K,), utilities (K,): means of what is neither NaN nor masked, then welfare.");
}

}  // namespace maxmin::core
