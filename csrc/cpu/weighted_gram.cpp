// Newton's curvature from rows of differences. Two kernels: few features (lanes are heads, the whole triangle of D x D
// in registers) and many (lanes are features; blocks of rows are packed and multiplied as in a matrix product, the
// upper triangle alone). Annotators are cut into parts whose sums are added in order.
#include "maxmin/weighted_gram.h"

#include "gram_weights.h"
#include "storage.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kFew = 8;          // features at which lanes are still heads
constexpr int64_t kPanel = 128;      // rows of D x D that a task owns, at most
constexpr int64_t kBlock = 128;      // rows of differences packed at once
constexpr int64_t kPartRows = 2048;  // rows worth a part
constexpr int64_t kTasks = 32;       // wanted; parts are made until there are so many
constexpr int64_t kChunk = 256;      // comparisons gone through before the next vector of heads
constexpr int kTileRows = MAXMIN_VECTOR_BYTES == 64 ? 8 : 4;  // of D x D in registers
constexpr int kTileVectors = MAXMIN_VECTOR_BYTES == 64 ? 3 : 2;

template <class Real>
struct Job {
  const maxmin_comparisons& data;
  const maxmin_differences& rows;
  int64_t n_heads;
  const Real *resp, *share;
  Real* out;
  int64_t n_parts, n_panels, panel;
  Real* sums;        // few features: (n_parts, vectors of heads, triangle, width); many: (n_parts - 1, H, D, D)
  Real* workspaces;  // (n_tasks, workspace)
  int64_t workspace;

  int64_t first(int64_t part) const {  // annotator
    if (part == n_parts) return data.n_annotators;
    return lower_bound(data.indptr, data.n_annotators, data.n_comparisons * part / n_parts);
  }
};

// Row i of the differences, in the accumulation type.
template <class T, class Real>
MAXMIN_INLINE void difference(const maxmin_differences& rows, int64_t i, Real* x) {
  const T* features = static_cast<const T*>(rows.features);
  const int64_t from = rows.chosen ? rows.chosen[i] : i;
  widen_row(features + from * rows.stride_row, rows.stride_feature, rows.n_features, x);
  if (rows.chosen) subtract_row(features + rows.rejected[i] * rows.stride_row, rows.stride_feature, rows.n_features, x);
}

// ---- few features

template <class Real, int D>
MAXMIN_INLINE void rank_one(const Vec<Real>* left, const Vec<Real>* right, Vec<Real>* sum) {
  int at = 0;
  MAXMIN_UNROLL for (int d = 0; d < D; d++) MAXMIN_UNROLL for (int e = d; e < D; e++) sum[at++] += left[d] * right[e];
}

// Comparisons c0 .. c1 of annotator a, heads from h; x: rows of the chunk, whose first is row0.
template <class Real, int D>
void add_few(const Job<Real>& job, int64_t a, int64_t c0, int64_t c1, int64_t h, const Real* x, int64_t row0,
             Vec<Real>* sums) {
  const maxmin_comparisons& data = job.data;
  Vec<Real> sum[D * (D + 1) / 2], left[D], right[D];
  memcpy(sum, sums, sizeof sum);
  const Vec<Real> gamma = load_heads(job.resp, a, data.n_annotators, job.n_heads, h);
  for (int64_t c = c0; c < c1; c++) {
    const Vec<Real> scale = gamma * weight_of<Real>(data, c);
    const int64_t begin = first_row(data, c), end = first_row(data, c + 1);
    if (!data.choice_indptr) {
      const Vec<Real> s = load_heads(job.share, begin, data.n_rows, job.n_heads, h), k = scale * s * (Real(1) - s);
      MAXMIN_UNROLL for (int d = 0; d < D; d++) {
        right[d] = splat(x[(begin - row0) * D + d]);
        left[d] = k * right[d];
      }
      rank_one<Real, D>(left, right, sum);
      continue;
    }
    Vec<Real> mean[D] = {}, total{};
    for (int64_t i = begin; i < end; i++) {
      const Vec<Real> s = load_heads(job.share, i, data.n_rows, job.n_heads, h);
      total += s;
      MAXMIN_UNROLL for (int d = 0; d < D; d++) mean[d] += s * x[(i - row0) * D + d];
    }
    for (int64_t i = begin; i < end; i++) {
      const Vec<Real> k = scale * load_heads(job.share, i, data.n_rows, job.n_heads, h);
      MAXMIN_UNROLL for (int d = 0; d < D; d++) {
        right[d] = x[(i - row0) * D + d] - mean[d];
        left[d] = k * right[d];
      }
      rank_one<Real, D>(left, right, sum);
    }
    const Vec<Real> k = scale * (Real(1) - total);
    MAXMIN_UNROLL for (int d = 0; d < D; d++) left[d] = k * mean[d];
    rank_one<Real, D>(left, mean, sum);
  }
  memcpy(sums, sum, sizeof sum);
}

template <class T, class Real, int D>
void few_task(void* context, int64_t part) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  const maxmin_comparisons& data = job.data;
  constexpr int64_t triangle = D * (D + 1) / 2;
  const int64_t vectors = ceil_div(job.n_heads, kWidth<Real>);
  Real *x = job.workspaces + part * job.workspace, *sums = job.sums + part * vectors * triangle * kWidth<Real>;
  memset(sums, 0, vectors * triangle * sizeof(Vec<Real>));
  const int64_t a0 = job.first(part), end = data.indptr[job.first(part + 1)];
  int64_t start = a0;
  for (int64_t c = data.indptr[a0]; c < end; c += kChunk) {
    const int64_t cut = least(end, c + kChunk), row0 = first_row(data, c), row1 = first_row(data, cut);
    for (int64_t i = row0; i < row1; i++) difference<T>(job.rows, i, x + (i - row0) * D);
    while (data.indptr[start + 1] <= c) start++;
    for (int64_t v = 0; v < vectors; v++) {
      int64_t a = start;
      for (int64_t from = c; from < cut; a++) {
        const int64_t to = least(cut, data.indptr[a + 1]);
        if (from < to)
          add_few<Real, D>(job, a, from, to, v * kWidth<Real>, x, row0,
                           reinterpret_cast<Vec<Real>*>(sums + v * triangle * kWidth<Real>));
        from = to;
      }
    }
  }
}

template <class Real>
void few_sum_task(void* context, int64_t h) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  const int64_t n = job.rows.n_features, triangle = n * (n + 1) / 2, w = kWidth<Real>;
  const int64_t vectors = ceil_div(job.n_heads, w);
  Real* out = job.out + h * n * n;
  for (int64_t d = 0, at = 0; d < n; d++)
    for (int64_t e = d; e < n; e++, at++) {
      Real sum = 0;
      for (int64_t part = 0; part < job.n_parts; part++)
        sum += job.sums[((part * vectors + h / w) * triangle + at) * w + h % w];
      out[d * n + e] = out[e * n + d] = sum;
    }
}

// ---- many features

// Rows of differences y, weighted, packed as two operands: left (groups of kTileRows features, k, kTileRows) of weight
// y within a panel, right (tiles of features, k, tile) of y from the panel on.
template <class Real>
struct Packed {
  static constexpr int64_t kTile = kTileVectors * kWidth<Real>;
  int64_t n_features, first, panel;  // features of the panel: first .. first + panel; both in whole tiles' steps
  Real *left, *right, *sum;
  int64_t count;

  void flush() {
    const int64_t first_tile = first / kTile * kTile;
    for (int64_t e = first_tile; e < n_features; e += kTile)
      for (int64_t d = 0; d < panel && first + d < least(n_features, e + kTile); d += kTileRows)
        multiply(left + d * kBlock, right + (e - first_tile) * kBlock, first + d, e);
    count = 0;
  }

  // sum[d ..][e ..] += left right over the packed rows
  void multiply(const Real* a, const Real* b, int64_t d, int64_t e) {
    constexpr int w = kWidth<Real>;
    Vec<Real> tile[kTileRows][kTileVectors] = {};
    for (int64_t k = 0; k < count; k++, a += kTileRows, b += kTile) {
      Vec<Real> y[kTileVectors];
      MAXMIN_UNROLL for (int v = 0; v < kTileVectors; v++) y[v] = load(b + v * w);
      MAXMIN_UNROLL for (int r = 0; r < kTileRows; r++) {
        const Vec<Real> ar = splat(a[r]);
        MAXMIN_UNROLL for (int v = 0; v < kTileVectors; v++) tile[r][v] += ar * y[v];
      }
    }
    Real flat[kTileRows * kTile];
    MAXMIN_UNROLL for (int r = 0; r < kTileRows; r++) MAXMIN_UNROLL for (int v = 0; v < kTileVectors; v++)
        store(flat + r * kTile + v * w, tile[r][v]);
    for (int64_t r = 0; r < least(kTileRows, n_features - d); r++)
      for (int64_t j = 0; j < least(kTile, n_features - e); j++)
        sum[(d + r) * n_features + e + j] += flat[r * kTile + j];
  }

  // y: n_features numbers and zeros up to a whole tile
  void add(const Real* y, Real weight) {
    const int64_t first_tile = first / kTile * kTile;
    for (int64_t e = first_tile; e < n_features; e += kTile)
      memcpy(right + (e - first_tile) * kBlock + count * kTile, y + e, kTile * sizeof(Real));
    for (int64_t d = 0; d < panel && first + d < n_features; d += kTileRows)
      for (int r = 0; r < kTileRows; r++) left[d * kBlock + count * kTileRows + r] = weight * y[first + d + r];
    if (++count == kBlock) flush();
  }
};

template <class T, class Real>
void many_task(void* context, int64_t task) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  const maxmin_comparisons& data = job.data;
  const int64_t n = job.rows.n_features, n_heads = job.n_heads, padded = round_up(n, Packed<Real>::kTile);
  const int64_t part = task % job.n_parts, h = task / job.n_parts / job.n_panels, p = task / job.n_parts % job.n_panels;
  Real *x = job.workspaces + task * job.workspace, *mean = x + padded, *memory = mean + padded;
  Packed<Real> packed{n,
                      p * job.panel,
                      job.panel,
                      memory,
                      memory + job.panel * kBlock,
                      part ? job.sums + ((part - 1) * n_heads + h) * n * n : job.out + h * n * n,
                      0};
  memset(x, 0, 2 * padded * sizeof(Real));
  for (int64_t a = job.first(part); a < job.first(part + 1); a++) {
    const Real gamma = job.resp[a * n_heads + h];
    for (int64_t c = data.indptr[a]; c < data.indptr[a + 1]; c++) {
      const Real scale = gamma * weight_of<Real>(data, c);
      const int64_t begin = first_row(data, c), end = first_row(data, c + 1);
      if (!data.choice_indptr) {
        const Real s = job.share[c * n_heads + h];
        difference<T>(job.rows, c, x);
        packed.add(x, scale * s * (1 - s));
        continue;
      }
      Real total = 0;
      memset(mean, 0, n * sizeof(Real));
      for (int64_t i = begin; i < end; i++) {
        const Real s = job.share[i * n_heads + h];
        difference<T>(job.rows, i, x);
        for (int64_t d = 0; d < n; d++) mean[d] += s * x[d];
        total += s;
      }
      for (int64_t i = begin; i < end; i++) {
        difference<T>(job.rows, i, x);
        for (int64_t d = 0; d < n; d++) x[d] -= mean[d];
        packed.add(x, scale * job.share[i * n_heads + h]);
      }
      packed.add(mean, scale * (1 - total));
    }
  }
  packed.flush();
}

// One row of one head's matrix: the parts' sums in order, mirrored.
template <class Real>
void many_sum_task(void* context, int64_t task) {
  const Job<Real>& job = *static_cast<const Job<Real>*>(context);
  const int64_t n = job.rows.n_features, h = task / n, d = task % n, size = job.n_heads * n * n;
  Real* out = job.out + h * n * n;
  for (int64_t part = 1; part < job.n_parts; part++)
    for (int64_t e = d; e < n; e++) out[d * n + e] += job.sums[(part - 1) * size + (h * n + d) * n + e];
  for (int64_t e = d + 1; e < n; e++) out[e * n + d] = out[d * n + e];
}

// ---- the whole

template <class T, class Real>
maxmin_task few_of(int64_t n_features) {
  switch (n_features) {
    case 1: return few_task<T, Real, 1>;
    case 2: return few_task<T, Real, 2>;
    case 3: return few_task<T, Real, 3>;
    case 4: return few_task<T, Real, 4>;
    case 5: return few_task<T, Real, 5>;
    case 6: return few_task<T, Real, 6>;
    case 7: return few_task<T, Real, 7>;
    default: return few_task<T, Real, 8>;
  }
}

template <class T, class Real>
int run(const maxmin_comparisons& data, const maxmin_differences& rows, int64_t n_heads, const void* resp,
        const void* share, void* out, const maxmin_parallel* parallel) {
  const int64_t n = rows.n_features, w = kWidth<Real>;
  const bool few = n <= kFew;
  if (n == 0 || n_heads == 0) return MAXMIN_OK;
  Job<Real> job{
      data, rows, n_heads, static_cast<const Real*>(resp), static_cast<const Real*>(share), static_cast<Real*>(out)};
  job.n_panels = few ? 1 : ceil_div(n, kPanel);
  job.panel = round_up(ceil_div(n, job.n_panels), Packed<Real>::kTile);
  job.n_panels = few ? 1 : ceil_div(n, job.panel);
  const int64_t tasks = few ? 1 : n_heads * job.n_panels;
  job.n_parts = clamp(kTasks / tasks, 1, most(1, data.n_rows / kPartRows));
  const int64_t n_tasks = tasks * job.n_parts, padded = round_up(n, Packed<Real>::kTile);
  int64_t longest = kChunk;  // rows of a chunk
  if (few && data.choice_indptr)
    for (int64_t c = 0; c < data.n_comparisons; c++)
      longest = most(longest, data.choice_indptr[least(data.n_comparisons, c + kChunk)] - data.choice_indptr[c]);
  job.workspace = few ? round_up(longest * n, 64) : 2 * padded + (job.panel + padded) * kBlock;
  const int64_t sums =
      few ? job.n_parts * ceil_div(n_heads, w) * w * n * (n + 1) / 2 : (job.n_parts - 1) * n_heads * n * n;
  Scratch<Real> memory(sums), workspaces(n_tasks * job.workspace);
  if (!memory.data || !workspaces.data) return MAXMIN_OUT_OF_MEMORY;
  job.sums = memory.data;
  job.workspaces = workspaces.data;
  if (few) {
    run_tasks(parallel, job.n_parts, few_of<T, Real>(n), &job);
    run_tasks(parallel, n_heads, few_sum_task<Real>, &job);
    return MAXMIN_OK;
  }
  memset(out, 0, n_heads * n * n * sizeof(Real));
  memset(job.sums, 0, sums * sizeof(Real));
  run_tasks(parallel, n_tasks, many_task<T, Real>, &job);
  run_tasks(parallel, n_heads * n, many_sum_task<Real>, &job);
  return MAXMIN_OK;
}

}  // namespace

int weighted_gram(const maxmin_comparisons* data, const maxmin_differences* rows, int64_t n_heads, const void* resp,
                  const void* share, void* out, const maxmin_parallel* parallel) {
  if (!good_comparisons(*data)) return MAXMIN_BAD_ARGUMENT;
  if (rows->chosen ? !in_range(rows->chosen, data->n_rows, rows->n_items) ||
                         !in_range(rows->rejected, data->n_rows, rows->n_items)
                   : rows->n_items != data->n_rows)
    return MAXMIN_BAD_ARGUMENT;
  switch (rows->dtype) {
    case MAXMIN_F64: return run<double, double>(*data, *rows, n_heads, resp, share, out, parallel);
    case MAXMIN_F32: return run<float, float>(*data, *rows, n_heads, resp, share, out, parallel);
    case MAXMIN_BF16: return run<bf16, float>(*data, *rows, n_heads, resp, share, out, parallel);
    case MAXMIN_F16: return run<f16, float>(*data, *rows, n_heads, resp, share, out, parallel);
  }
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
