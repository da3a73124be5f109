// em_pass for NumPy arrays, rows and indexed form.
#include "core_arrays.h"
#include "maxmin/em_pass.h"

namespace maxmin::core {
namespace {

// Arguments of both forms, and the outputs that they share.
struct Pass {
  py::array indptr, weight, log_weights;
  MaybeArray choice_indptr, mixture_indptr, comparison_weight;
  int64_t whole[2];  // all heads in one mixture
  maxmin_comparisons comparisons{};
  maxmin_mixtures mixtures{};
  py::array log_likelihood, log_resp, mass;

  Pass(int64_t n_rows, int dtype, const py::array& ptr, const py::array& w, const py::array& log_w,
       const MaybeArray& choices, const MaybeArray& mixture_ptr, const MaybeArray& each_weight, double label_noise,
       bool hard, double temperature)
      : indptr(indices(ptr, -1, "indptr")),
        weight(contiguous(w, real(dtype))),
        log_weights(vector(log_w, real(dtype), w.shape(0), "log_weights")),
        choice_indptr(indices(choices, -1, "choice_indptr")),
        mixture_indptr(indices(mixture_ptr, -1, "mixture_indptr")),
        whole{0, w.shape(0)} {
    require(indptr.size() > 0, "indptr", "expected at least one entry (a leading 0)");
    require(!choice_indptr || choice_indptr->size() > 0, "choice_indptr", "expected at least one entry (a leading 0)");
    require(!mixture_indptr || mixture_indptr->size() > 0, "mixture_indptr",
            "expected at least one entry (a leading 0)");
    const int64_t n_comparisons = choice_indptr ? choice_indptr->size() - 1 : n_rows;
    comparison_weight = vector(each_weight, real(dtype), n_comparisons, "comparison_weight");
    comparisons = {indptr.size() - 1,       n_comparisons, n_rows, data<int64_t>(indptr), data<int64_t>(choice_indptr),
                   data(comparison_weight), label_noise};
    mixtures = {w.shape(0),
                mixture_indptr ? mixture_indptr->size() - 1 : 1,
                mixture_indptr ? data<int64_t>(mixture_indptr) : whole,
                log_weights.data(),
                temperature,
                hard};
    log_likelihood = empty({mixtures.n_mixtures}, py::dtype::of<double>());
    log_resp = empty({comparisons.n_annotators, mixtures.n_heads}, real(dtype));
    mass = empty({mixtures.n_heads}, py::dtype::of<double>());
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  maxmin_em_outputs outputs(py::array& gradient) {
    return {static_cast<double*>(log_likelihood.mutable_data()), log_resp.mutable_data(),
            static_cast<double*>(mass.mutable_data()), gradient.mutable_data()};
  }
};

py::array matmul(const py::object& a, const py::object& b) { return py::module_::import("numpy").attr("matmul")(a, b); }

py::tuple em_pass(const py::array& features, const py::array& indptr, const py::array& weight,
                  const py::array& log_weights, const MaybeArray& chosen, const MaybeArray& rejected,
                  const MaybeArray& choice_indptr, const MaybeArray& mixture_indptr,
                  const MaybeArray& comparison_weight, double label_noise, bool hard, double temperature) {
  check_dim(features, 2, "features");
  check_dim(weight, 2, "weight");
  check_size(weight, 1, features.shape(1), "weight");
  require(chosen.has_value() == rejected.has_value(), "rejected", "expected together with chosen");
  const int dtype = dtype_code(features, "features");
  const MaybeArray winners = indices(chosen, -1, "chosen");
  const int64_t n_rows = winners ? winners->shape(0) : features.shape(0);
  const MaybeArray losers = indices(rejected, n_rows, "rejected");
  Pass pass(n_rows, dtype, indptr, weight, log_weights, choice_indptr, mixture_indptr, comparison_weight, label_noise,
            hard, temperature);
  int status;
  py::array gradient;
  if (!winners) {
    const py::array x = whole_strides(features);
    gradient = empty({weight.shape(0), weight.shape(1)}, real(dtype));
    const maxmin_em_outputs out = pass.outputs(gradient);
    const void *from = x.data(), *heads = pass.weight.data();
    const int64_t n_features = x.shape(1), stride_row = stride(x, 0), stride_feature = stride(x, 1);
    py::gil_scoped_release release;
    status = maxmin_em_pass_rows_cpu(&pass.comparisons, &pass.mixtures, from, dtype, n_features, stride_row,
                                     stride_feature, heads, &out, parallel());
  } else {
    const py::array items = contiguous(features, real(dtype));
    const py::array scores = contiguous(matmul(items, pass.weight.attr("T")), real(dtype));
    py::array by_score = empty({scores.shape(0), scores.shape(1)}, real(dtype));
    const maxmin_em_outputs out = pass.outputs(by_score);
    const void* from = scores.data();
    const int64_t n_items = items.shape(0), *won = data<int64_t>(winners), *lost = data<int64_t>(losers);
    {
      py::gil_scoped_release release;
      status = maxmin_em_pass_indexed_cpu(&pass.comparisons, &pass.mixtures, from,
                                          dtype == MAXMIN_F64 ? MAXMIN_F64 : MAXMIN_F32, n_items, won, lost, &out,
                                          parallel());
    }
    gradient = matmul(by_score.attr("T"), items);
  }
  check_status(status, "em_pass");
  return py::make_tuple(pass.log_likelihood, pass.log_resp, pass.mass, gradient);
}

}  // namespace

void bind_em_pass(py::module_& m) {
  m.def(
      "em_pass", &em_pass, py::arg("features"), py::arg("indptr"), py::arg("weight"), py::arg("log_weights"),
      py::kw_only(), py::arg("chosen") = py::none(), py::arg("rejected") = py::none(),
      py::arg("choice_indptr") = py::none(), py::arg("mixture_indptr") = py::none(),
      py::arg("comparison_weight") = py::none(), py::arg("label_noise") = 0.0, py::arg("hard") = false,
      py::arg("temperature") = 1.0,
      "features (N, D), or items (M, D) with chosen, rejected (N,) int64 -> log_likelihood (G,) float64, log_resp (A, "
      "H), mass (H,) float64, grad_weight (H, D). Arguments as in maxmin_kernels.em_pass.");
}

}  // namespace maxmin::core
