// Newton's curvature in the basis of the items. A comparison with probabilities p of its items adds the covariance
// diag(p) - p p^T, whose rows sum to 0: only what lies off the diagonal, -p_a p_b, is added up, one vector of heads for
// each pair of items. Annotators are cut into parts whose sums are added in order.
#include "gram_weights.h"
#include "maxmin/weighted_gram.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kParts = 16;                   // at most
constexpr int64_t kPartRows = 4096;              // worth a part
constexpr int64_t kSumBytes = int64_t(1) << 28;  // of all parts

template <class Real>
struct Job {
  const maxmin_comparisons& data;
  int64_t n_items;
  const int64_t *chosen, *rejected;
  int64_t n_heads, stride;  // stride: n_heads in whole vectors
  const Real *resp, *share;
  Real* out;
  int64_t n_parts, size;  // size: of a part's sums
  Real *sums, *gammas;    // (n_parts, pairs of items, stride), (n_parts, stride)

  int64_t first(int64_t part) const {  // annotator
    if (part == n_parts) return data.n_annotators;
    return lower_bound(data.indptr, data.n_annotators, data.n_comparisons * part / n_parts);
  }
};

// Place of a pair of items in the lower triangle.
inline int64_t place(int64_t a, int64_t b) { return a > b ? a * (a - 1) / 2 + b : b * (b - 1) / 2 + a; }

template <class Real>
void part_task(void* context, int64_t part) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  const maxmin_comparisons& data = job.data;
  constexpr int w = kWidth<Real>;
  Real *sums = job.sums + part * job.size, *gamma = job.gammas + part * job.stride;
  memset(sums, 0, job.size * sizeof(Real));
  auto share = [&](int64_t i, int64_t h) { return load_heads(job.share, i, data.n_rows, job.n_heads, h); };
  auto add = [&](int64_t a, int64_t b, int64_t h, Vec<Real> x) {
    Real* to = sums + place(a, b) * job.stride + h;
    store(to, load(to) + x);
  };
  for (int64_t a = job.first(part); a < job.first(part + 1); a++) {
    memset(gamma, 0, job.stride * sizeof(Real));
    memcpy(gamma, job.resp + a * job.n_heads, job.n_heads * sizeof(Real));
    for (int64_t c = data.indptr[a]; c < data.indptr[a + 1]; c++) {
      const Real v = weight_of<Real>(data, c);
      const int64_t begin = first_row(data, c), end = first_row(data, c + 1);
      if (!data.choice_indptr) {
        if (job.chosen[c] == job.rejected[c]) continue;
        Real* to = sums + place(job.chosen[c], job.rejected[c]) * job.stride;
        for (int64_t h = 0; h < job.stride; h += w) {
          const Vec<Real> s = share(c, h);
          store(to + h, load(to + h) + load(gamma + h) * v * s * (Real(1) - s));
        }
        continue;
      }
      for (int64_t h = 0; h < job.stride; h += w) {
        const Vec<Real> scale = load(gamma + h) * v;
        Vec<Real> rest = splat(Real(1));
        for (int64_t i = begin; i < end; i++) rest -= share(i, h);
        for (int64_t i = begin; i < end; i++) {
          const Vec<Real> p = scale * share(i, h);
          const int64_t item = job.rejected[i];
          if (item != job.chosen[i]) add(item, job.chosen[i], h, p * rest);
          for (int64_t j = begin; j < i; j++)
            if (item != job.rejected[j]) add(item, job.rejected[j], h, p * share(j, h));
        }
      }
    }
  }
}

// One item's row of every head's matrix.
template <class Real>
void row_task(void* context, int64_t a) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  const int64_t n = job.n_items;
  for (int64_t h = 0; h < job.n_heads; h++) job.out[(h * n + a) * n + a] = 0;
  for (int64_t b = 0; b < n; b++) {
    if (b == a) continue;
    const Real* from = job.sums + place(a, b) * job.stride;
    for (int64_t h = 0; h < job.n_heads; h++) {
      Real sum = 0;
      for (int64_t part = 0; part < job.n_parts; part++) sum += from[part * job.size + h];
      job.out[(h * n + a) * n + b] = -sum;
      job.out[(h * n + a) * n + a] += sum;
    }
  }
}

template <class Real>
int run(const maxmin_comparisons& data, int64_t n_items, const int64_t* chosen, const int64_t* rejected,
        int64_t n_heads, const void* resp, const void* share, void* out, const maxmin_parallel* parallel) {
  Job<Real> job{data,
                n_items,
                chosen,
                rejected,
                n_heads,
                round_up(n_heads, kWidth<Real>),
                static_cast<const Real*>(resp),
                static_cast<const Real*>(share),
                static_cast<Real*>(out)};
  const int64_t pairs = n_items * (n_items - 1) / 2;
  job.size = most(0, pairs) * job.stride;
  const int64_t affordable = kSumBytes / most(1, job.size * (int64_t)sizeof(Real));
  job.n_parts = clamp(least(data.n_rows / most(kPartRows, 2 * pairs), affordable), 1, kParts);
  Scratch<Real> sums(job.n_parts * job.size), gammas(job.n_parts * job.stride);
  if (!sums.data || !gammas.data) return MAXMIN_OUT_OF_MEMORY;
  job.sums = sums.data;
  job.gammas = gammas.data;
  run_tasks(parallel, job.n_parts, part_task<Real>, &job);
  run_tasks(parallel, n_items, row_task<Real>, &job);
  return MAXMIN_OK;
}

}  // namespace

int weighted_laplacian(const maxmin_comparisons* data, int64_t n_items, const int64_t* chosen, const int64_t* rejected,
                       int64_t n_heads, const void* resp, const void* share, int dtype, void* out,
                       const maxmin_parallel* parallel) {
  if (!good_comparisons(*data) || !in_range(chosen, data->n_rows, n_items) ||
      !in_range(rejected, data->n_rows, n_items))
    return MAXMIN_BAD_ARGUMENT;
  switch (dtype) {
    case MAXMIN_F64: return run<double>(*data, n_items, chosen, rejected, n_heads, resp, share, out, parallel);
    case MAXMIN_F32: return run<float>(*data, n_items, chosen, rejected, n_heads, resp, share, out, parallel);
  }
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
