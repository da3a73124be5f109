// Linear heads over rows: out = x W^T + b, dx = g W, dW = g^T x, db = sum g, where a row x is a row of features, a
// chosen token of a sequence, or the difference of two rows (1). Rows are widened in tiles to a small buffer, once for
// all heads. Only the rows that are asked for are read.
#include "maxmin/heads.h"

#include <stdlib.h>

#include "lanes.h"
#include "storage.h"
#include "tasks.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int kTile = MAXMIN_VECTOR_BYTES == 64 ? 8 : 4;  // rows held in registers
constexpr int64_t kChunk = 512;                           // features widened at a time
constexpr int64_t kBlock = 64;                            // rows that go through a chunk one after the other
constexpr int64_t kWork = 1 << 20;                        // multiply-adds worth a task
constexpr int64_t kPartials = 64;                         // sums of dW that are kept apart, at most

int64_t rows_per_task(const maxmin_rows& rows, int64_t n_heads) {
  return most(kTile, ceil_div(kWork, (rows.n_features + 1) * (n_heads + 4)));
}

template <class Real>
int64_t whole_vectors(int64_t n) {
  return ceil_div(n, kWidth<Real>) * kWidth<Real>;
}

// From one head to the next, in W and dW: an odd number of cache lines, or heads would share few sets of the cache.
template <class Real>
int64_t head_stride(int64_t n_features) {
  constexpr int64_t line = 64 / sizeof(Real);
  return (ceil_div(n_features, line) | 1) * line;
}

// Heads in the accumulation type, padded with zeros.
template <class Real>
Real* widen_weight(const maxmin_rows& rows, const maxmin_heads& heads, int64_t stride) {
  Real* weight = static_cast<Real*>(calloc(most(1, heads.n_heads * stride), sizeof(Real)));
  if (!weight) return nullptr;
  for (int64_t h = 0; h < heads.n_heads; h++)
    widen_any(heads.weight, heads.dtype, h * heads.stride_head, heads.stride_feature, rows.n_features,
              weight + h * stride);
  return weight;
}

// Element offset of row i in features, -1 if it has none.
inline int64_t offset_of(const maxmin_rows& rows, int64_t i) {
  int64_t at = i * rows.stride_row;
  if (!rows.token_index) return at;
  int64_t t = rows.token_index[i];
  return t < 0 || t >= rows.n_tokens ? -1 : at + t * rows.stride_token;
}

// Features d0 ... d0 + n of the tile's rows, zeros behind them up to whole vectors and for rows that are absent.
template <class T, class Real>
void pack(const maxmin_rows& rows, int64_t first, int count, int64_t d0, int64_t n, int64_t padded, Real* x) {
  for (int r = 0; r < kTile; r++, x += kChunk) {
    int64_t offset = r < count ? offset_of(rows, first + r) : -1;
    int64_t done = offset < 0 ? 0 : n;
    if (done) {
      widen_row(static_cast<const T*>(rows.features) + offset + d0 * rows.stride_feature, rows.stride_feature, n, x);
      if (rows.rejected)
        subtract_row(static_cast<const T*>(rows.rejected) + (first + r) * rows.rejected_stride_row +
                         d0 * rows.rejected_stride_feature,
                     rows.rejected_stride_feature, n, x);
    }
    memset(x + done, 0, (padded - done) * sizeof(Real));
  }
}

// out[r][h] += x[r] . w[h] for a tile of rows and kHeads heads.
template <class Real, int kHeads>
MAXMIN_INLINE void dots(const Real* x, const Real* w, int64_t stride_head, int64_t n, int count, Real* out,
                        int64_t stride_out) {
  constexpr int kSums = kTile * kHeads, kAtOnce = kSums < kWidth<Real> ? kSums : kWidth<Real>;
  Vec<Real> sum[kSums] = {};  // (kTile, kHeads)
  for (int64_t d = 0; d < n; d += kWidth<Real>) {
    Vec<Real> wd[kHeads];
    MAXMIN_UNROLL for (int h = 0; h < kHeads; h++) wd[h] = load(w + h * stride_head + d);
    MAXMIN_UNROLL for (int r = 0; r < kTile; r++) {
      Vec<Real> xd = load(x + r * kChunk + d);
      MAXMIN_UNROLL for (int h = 0; h < kHeads; h++) sum[r * kHeads + h] += xd * wd[h];
    }
  }
  Real total[kSums + kWidth<Real>] = {};
  MAXMIN_UNROLL for (int i = 0; i < kSums; i += kAtOnce) store(total + i, sum_each<Real, kAtOnce>(sum + i));
  for (int r = 0; r < count; r++)
    for (int h = 0; h < kHeads; h++) out[r * stride_out + h] += total[r * kHeads + h];
}

template <class Real>
struct Forward {
  maxmin_rows rows;
  maxmin_heads heads;
  const Real* weight;  // widened, (n_heads, stride)
  int64_t stride, task_rows;
  Real* out;
};

template <class T, class Real>
void forward_task(void* context, int64_t task) {
  const Forward<Real>& f = *static_cast<const Forward<Real>*>(context);
  const int64_t n_heads = f.heads.n_heads, end = least(f.rows.n_rows, (task + 1) * f.task_rows);
  const Real* bias = static_cast<const Real*>(f.heads.bias);
  Real x[kTile * kChunk];
  for (int64_t i = task * f.task_rows; i < end; i++) {
    const bool absent = offset_of(f.rows, i) < 0;
    for (int64_t h = 0; h < n_heads; h++)
      f.out[i * n_heads + h] = absent ? (Real)__builtin_nan("") : bias ? bias[h] : Real(0);
  }
  for (int64_t block = task * f.task_rows; block < end; block += kBlock)
    for (int64_t d = 0; d < f.rows.n_features; d += kChunk)
      for (int64_t i = block; i < least(block + kBlock, end); i += kTile) {
        const int count = (int)least(kTile, end - i);
        const int64_t n = least(kChunk, f.rows.n_features - d), n_padded = whole_vectors<Real>(n);
        pack<T>(f.rows, i, count, d, n, n_padded, x);
        const Real* w = f.weight + d;
        Real* out = f.out + i * n_heads;
        int64_t h = 0;
        for (; h + 2 <= n_heads; h += 2)
          dots<Real, 2>(x, w + h * f.stride, f.stride, n_padded, count, out + h, n_heads);
        if (h < n_heads) dots<Real, 1>(x, w + h * f.stride, f.stride, n_padded, count, out + h, n_heads);
      }
}

template <class T, class Real>
int forward(const maxmin_rows& rows, const maxmin_heads& heads, void* out, const maxmin_parallel* parallel) {
  Forward<Real> f{rows, heads, nullptr, 0, rows_per_task(rows, heads.n_heads), static_cast<Real*>(out)};
  f.stride = head_stride<Real>(rows.n_features);
  Real* weight = widen_weight<Real>(rows, heads, f.stride);
  if (!weight) return MAXMIN_OUT_OF_MEMORY;
  f.weight = weight;
  run_tasks(parallel, ceil_div(rows.n_rows, f.task_rows), forward_task<T, Real>, &f);
  free(weight);
  return MAXMIN_OK;
}

// dx[r] = sum_h g[r][h] w[h] and dw[h] += sum_r g[r][h] x[r], over n features of a tile of rows.
template <class Real, bool kFeatures, bool kWeight>
MAXMIN_INLINE void pull_back(const Real* const* g, const Real* x, const Real* w, int64_t stride_head, int64_t n_heads,
                             int64_t n, Real* dx, Real* dw) {
  for (int64_t d = 0; d < n; d += kWidth<Real>) {
    Vec<Real> dxd[kTile] = {}, xd[kTile];
    if (kWeight) MAXMIN_UNROLL for (int r = 0; r < kTile; r++) xd[r] = load(x + r * kChunk + d);
    for (int64_t h = 0; h < n_heads; h++) {
      Vec<Real> wd = kFeatures ? load(w + h * stride_head + d) : Vec<Real>{}, dwd{};
      MAXMIN_UNROLL for (int r = 0; r < kTile; r++) {
        Vec<Real> gr = splat(g[r][h]);
        if (kFeatures) dxd[r] += gr * wd;
        if (kWeight) dwd += gr * xd[r];
      }
      if (kWeight) store(dw + h * stride_head + d, load(dw + h * stride_head + d) + dwd);
    }
    if (kFeatures) MAXMIN_UNROLL for (int r = 0; r < kTile; r++) store(dx + r * kChunk + d, dxd[r]);
  }
}

template <class Real>
struct Backward {
  maxmin_rows rows;
  maxmin_heads heads;
  const Real* weight;   // widened, (n_heads, stride)
  const Real* nothing;  // (n_heads) zeros: the gradient of an absent row
  int64_t stride, task_rows, n_tasks;
  const Real* grad;
  void *grad_features, *grad_rejected, *grad_weight, *grad_bias;
  Real* partial;  // (n_tasks, n_heads, stride + 1): each task's dW and, last, db
};

// n features, from d on, of row i's gradient to where it belongs.
template <class T, class Real>
void write_features(const Backward<Real>& f, int64_t i, int64_t d, int64_t n, Real* dx) {
  const int64_t row = f.rows.token_index ? i * f.rows.n_tokens + f.rows.token_index[i] : i;
  const int64_t at = row * f.rows.n_features + d;
  if (f.grad_features) narrow_row(dx, n, static_cast<T*>(f.grad_features) + at);
  if (!f.grad_rejected) return;
  for (int64_t j = 0; j < n; j++) dx[j] = -dx[j];
  narrow_row(dx, n, static_cast<T*>(f.grad_rejected) + at);
}

// db of a block of rows, summed before it is added: sums of sums keep their digits over many rows.
template <class Real>
void sum_grads(const Backward<Real>& f, int64_t begin, int64_t end, Real* db) {
  for (int64_t h = 0; h < f.heads.n_heads; h++) {
    Real sum = 0;
    for (int64_t i = begin; i < end; i++) sum += offset_of(f.rows, i) < 0 ? Real(0) : f.grad[i * f.heads.n_heads + h];
    db[h] += sum;
  }
}

template <class T, class Real>
void backward_task(void* context, int64_t task) {
  const Backward<Real>& f = *static_cast<const Backward<Real>*>(context);
  const int64_t n_heads = f.heads.n_heads, n_features = f.rows.n_features;
  const int64_t end = least(f.rows.n_rows, (task + 1) * f.task_rows);
  const bool features = f.grad_features || f.grad_rejected, weight = f.grad_weight;
  Real* dw = f.partial ? f.partial + task * n_heads * (f.stride + 1) : nullptr;
  Real* db = dw ? dw + n_heads * f.stride : nullptr;
  Real x[kTile * kChunk], dx[kTile * kChunk];
  for (int64_t block = task * f.task_rows; block < end; block += kBlock) {
    const int64_t block_end = least(block + kBlock, end);
    if (db) sum_grads(f, block, block_end, db);
    for (int64_t d = 0; d < n_features; d += kChunk)
      for (int64_t i = block; i < block_end; i += kTile) {
        const int count = (int)least(kTile, end - i);
        const int64_t n = least(kChunk, n_features - d), n_padded = whole_vectors<Real>(n);
        const Real* g[kTile];
        for (int r = 0; r < kTile; r++) {
          const bool absent = r >= count || offset_of(f.rows, i + r) < 0;
          g[r] = absent ? f.nothing : f.grad + (i + r) * n_heads;
        }
        const Real* w = f.weight + d;
        if (weight) pack<T>(f.rows, i, count, d, n, n_padded, x);
        if (features && weight)
          pull_back<Real, true, true>(g, x, w, f.stride, n_heads, n_padded, dx, dw + d);
        else if (features)
          pull_back<Real, true, false>(g, x, w, f.stride, n_heads, n_padded, dx, nullptr);
        else if (weight)
          pull_back<Real, false, true>(g, x, w, f.stride, n_heads, n_padded, nullptr, dw + d);
        for (int r = 0; features && r < count; r++)
          if (g[r] != f.nothing) write_features<T>(f, i + r, d, n, dx + r * kChunk);
      }
  }
}

// One head's dW and db: the tasks' sums, always in the same order.
template <class Real>
void reduce_task(void* context, int64_t h) {
  const Backward<Real>& f = *static_cast<const Backward<Real>*>(context);
  const int64_t n_heads = f.heads.n_heads, size = n_heads * (f.stride + 1);
  Real* sum = f.partial + h * f.stride;
  Real bias = 0;
  for (int64_t t = 0; t < f.n_tasks; t++) {
    const Real* next = f.partial + t * size;
    bias += next[n_heads * f.stride + h];
    next += h * f.stride;
    if (t > 0 && f.grad_weight)
      for (int64_t d = 0; d < f.stride; d++) sum[d] += next[d];
  }
  if (f.grad_weight) narrow_any(sum, f.rows.n_features, f.grad_weight, f.heads.dtype, h * f.rows.n_features);
  if (f.grad_bias) static_cast<Real*>(f.grad_bias)[h] = bias;
}

template <class T, class Real>
int backward(const maxmin_rows& rows, const maxmin_heads& heads, const void* grad, void* grad_features,
             void* grad_rejected, void* grad_weight, void* grad_bias, const maxmin_parallel* parallel) {
  Backward<Real> f{rows,          heads,         nullptr,     nullptr,   0,      0, 0, static_cast<const Real*>(grad),
                   grad_features, grad_rejected, grad_weight, grad_bias, nullptr};
  const int64_t n_heads = heads.n_heads;
  const bool sums = grad_weight || grad_bias;
  f.stride = ceil_div(rows.n_features, kWidth<Real>) * kWidth<Real>;
  f.task_rows = rows_per_task(rows, 2 * n_heads);
  if (sums) f.task_rows = most(most(f.task_rows, kBlock), ceil_div(rows.n_rows, kPartials));  // few rows: one sum
  f.n_tasks = ceil_div(rows.n_rows, f.task_rows);
  Real* weight = widen_weight<Real>(rows, heads, f.stride);
  Real* nothing = static_cast<Real*>(calloc(most(1, n_heads), sizeof(Real)));
  Real* partial = nullptr;
  if (sums) partial = static_cast<Real*>(calloc(most(1, f.n_tasks) * most(1, n_heads) * (f.stride + 1), sizeof(Real)));
  int status = weight && nothing && (partial || !sums) ? MAXMIN_OK : MAXMIN_OUT_OF_MEMORY;
  if (status == MAXMIN_OK) {
    f.weight = weight;
    f.nothing = nothing;
    f.partial = partial;
    run_tasks(parallel, f.n_tasks, backward_task<T, Real>, &f);
    if (sums) run_tasks(parallel, n_heads, reduce_task<Real>, &f);
  }
  free(weight);
  free(nothing);
  free(partial);
  return status;
}

}  // namespace

int heads_fwd(const maxmin_rows* rows, const maxmin_heads* heads, void* out, const maxmin_parallel* parallel) {
  switch (rows->dtype) {
    case MAXMIN_F64: return forward<double, double>(*rows, *heads, out, parallel);
    case MAXMIN_F32: return forward<float, float>(*rows, *heads, out, parallel);
    case MAXMIN_BF16: return forward<bf16, float>(*rows, *heads, out, parallel);
    case MAXMIN_F16: return forward<f16, float>(*rows, *heads, out, parallel);
  }
  return MAXMIN_BAD_ARGUMENT;
}

int heads_bwd(const maxmin_rows* rows, const maxmin_heads* heads, const void* grad, void* grad_features,
              void* grad_rejected, void* grad_weight, void* grad_bias, const maxmin_parallel* parallel) {
#define MAXMIN_BACKWARD(T, Real) \
  backward<T, Real>(*rows, *heads, grad, grad_features, grad_rejected, grad_weight, grad_bias, parallel)
  switch (rows->dtype) {
    case MAXMIN_F64: return MAXMIN_BACKWARD(double, double);
    case MAXMIN_F32: return MAXMIN_BACKWARD(float, float);
    case MAXMIN_BF16: return MAXMIN_BACKWARD(bf16, float);
    case MAXMIN_F16: return MAXMIN_BACKWARD(f16, float);
  }
#undef MAXMIN_BACKWARD
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
