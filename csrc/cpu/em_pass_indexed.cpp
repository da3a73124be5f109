// One EM pass over comparisons of items that are shared: margins are differences of a table of scores (items, heads),
// and the gradient by that table is returned. MATH (2)-(6), (8).
//
// Heads go in blocks of whole mixtures, small enough that the block's part of the table, its gradient and an
// annotator's shares stay in the nearest caches. A mixture wider than that is a block of its own, in several lanes of
// vectors. Within a block the annotators are cut into tasks, each with a gradient of its own; these are added in order.
// Where the items are too many for that (kScattered), the shares of one wave of rows after another are written down,
// and tasks that own a range of items each pick up theirs, in the order of the rows.
//
// Pairs whose scores are close enough take no exponential: with E = exp(score), s = E_r / (E_c + E_r), and the product
// of all an annotator's p = E_c / (E_c + E_r) takes one logarithm.
#include "choices.h"
#include "maxmin/em_pass.h"
#include "posterior.h"
#include "segments.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int kLanes = 3;                            // vectors of heads side by side
constexpr int64_t kChunk = 1024;                     // rows of shares that are kept; a longer annotator is read twice
constexpr int64_t kTaskRows = 8192;                  // worth a task
constexpr int64_t kTasks = 32;                       // at most
constexpr int64_t kItemRange = 512;                  // items of a task that goes over items
constexpr int64_t kPartialBytes = int64_t(1) << 27;  // of all tasks' gradients
constexpr int64_t kWaveBytes = int64_t(1) << 24;     // of the shares written down at once
constexpr int64_t kFactors = 32;                     // multiplied between two looks at the exponent, at most

template <class Real>
struct Limits;  // how far a head's scores may lie apart, so that the products below stay normal numbers
template <>
struct Limits<float> {
  static constexpr double range = 20, log_smallest = 85;
};
template <>
struct Limits<double> {
  static constexpr double range = 170, log_smallest = 700;
};

// What a task needs beside the data, all within one allocation.
template <class Real>
struct Workspace {
  Real *shares, *log_prob, *gamma, *gradient;
  double *joint, *resp, *evidence, *total, *mass, *log_likelihood;
};

template <class Real>
struct Pass {
  const maxmin_comparisons& data;
  const maxmin_mixtures& mixtures;
  const Real* scores;
  int64_t n_items;
  const int64_t *chosen, *rejected;
  const maxmin_em_outputs& out;
  const maxmin_parallel* parallel;

  // the block of heads
  int64_t first_mixture, first_head, n_heads, stride;  // stride: n_heads in whole vectors
  Mixtures block;
  Real* table;       // (n_items, stride) scores, or exp(scores - middle)
  double* extremes;  // (item ranges, 2, stride)
  bool exponential;
  int64_t batch;  // factors that stay normal numbers

  // tasks
  int64_t n_tasks, capacity;  // capacity: rows of a task's buffers
  Real* reals;
  double* doubles;
  int64_t task_reals, task_doubles;
  int64_t* cuts;  // (n_tasks + 1) annotators
  bool* bad;      // (n_tasks) item rows out of range

  // many items: gamma of all annotators, one wave's weighted shares, and one gradient
  bool scattered;
  Real *gamma, *wave, *gradient;
  int64_t wave_begin, wave_end;  // comparisons

  Workspace<Real> workspace(int64_t task) const {
    Workspace<Real> w;
    Real* r = reals + task * task_reals;
    w.shares = r, r += capacity * stride + kSlack;
    w.log_prob = r, r += capacity * stride + kSlack;
    w.gamma = r, r += stride + kSlack;
    w.gradient = r;
    double* d = doubles + task * task_doubles;
    w.joint = d, d += stride + kSlack;
    w.resp = d, d += stride + kSlack;
    w.evidence = d, d += block.count + kSlack;
    w.total = d, d += block.count + kSlack;
    w.mass = d, d += stride;
    w.log_likelihood = d;
    return w;
  }
};

// ---- margins to shares: s of the rows, and joint += log-probabilities

template <class Real, int V>
void differences(const Real* table, int64_t stride, const int64_t* chosen, const int64_t* rejected, int64_t n,
                 Real* margins) {
  for (int64_t i = 0; i < n; i++) {
    const Real *c = table + chosen[i] * stride, *r = table + rejected[i] * stride;
    MAXMIN_UNROLL for (int v = 0; v < V; v++)
        store(margins + i * stride + v * kWidth<Real>, load(c + v * kWidth<Real>) - load(r + v * kWidth<Real>));
  }
}

// The product of many probabilities p = 1 - s, as mantissa and exponent, so that it takes one logarithm at the end.
template <class Real>
struct Product {
  Vec<Real> mantissa, shares;  // shares: the sum of s
  IVec<Real> exponent;

  MAXMIN_INLINE void clear(Product& p) { p = {splat(Real(1)), Vec<Real>{}, IVec<Real>{}}; }
  MAXMIN_INLINE void split(Product& p) {
    constexpr int bits = sizeof(Real) == 4 ? 23 : 52;
    const IVec<Real> one = (IVec<Real>)splat(Real(1)), i = (IVec<Real>)p.mantissa - one;
    p.exponent += i >> bits;
    p.mantissa = (Vec<Real>)((i & (((IVec<Real>{} + 1) << bits) - 1)) + one);
  }
};

// The logarithm of a product, onto joint. When no choice was a surprise it lies in the digits that a product near 1 has
// rounded off: then it is taken from 1 - product, which the n shares give.
template <class Real>
void add_log(const Product<Real>& p, const Real* shares, int64_t stride, int64_t n, double* joint) {
  constexpr int w = kWidth<Real>;
  Vec<Real> log = vlog(p.mantissa), exponent = __builtin_convertvector(p.exponent, Vec<Real>);
  const auto near_one = p.shares < Real(0.5);  // so is 1 - product then
  bool any = false;
  for (int j = 0; j < w; j++) any |= near_one[j] != 0;
  if (any) {
    Vec<Real> rest{};
    for (int64_t i = 0; i < n; i++) {
      const Vec<Real> s = load(shares + i * stride);
      rest = (rest + s) - rest * s;
    }
    log = near_one ? -atanh2(rest / (Real(2) - rest)) : log;  // log1p(-rest)
    exponent = near_one ? Vec<Real>{} : exponent;
  }
  add_wide<Real>(joint, log, 1);
  add_wide<Real>(joint, exponent, 0.69314718055994530942);
}

// Pairs, from a table of exponentials. Four rows share a division: their sums multiply to a normal number.
template <class Real, int V>
void shares_of_exponentials(const Real* table, int64_t stride, const int64_t* chosen, const int64_t* rejected,
                            int64_t n, int64_t batch, Real* shares, double* joint) {
  constexpr int w = kWidth<Real>;
  Product<Real> product[V];
  MAXMIN_UNROLL for (int v = 0; v < V; v++) Product<Real>::clear(product[v]);
  for (int64_t begin = 0; begin < n; begin += batch) {
    const int64_t end = least(n, begin + batch);
    int64_t i = begin;
    for (; i + 4 <= end; i += 4) {
      const Real *c[4], *r[4];
      MAXMIN_UNROLL for (int k = 0; k < 4; k++) {
        c[k] = table + chosen[i + k] * stride;
        r[k] = table + rejected[i + k] * stride;
      }
      Real* to = shares + i * stride;
      MAXMIN_UNROLL for (int v = 0; v < V; v++) {
        Vec<Real> ec[4], er[4], sum[4], s[4];
        MAXMIN_UNROLL for (int k = 0; k < 4; k++) {
          ec[k] = load(c[k] + v * w), er[k] = load(r[k] + v * w);
          sum[k] = ec[k] + er[k];
        }
        Vec<Real> sum01 = sum[0] * sum[1], sum23 = sum[2] * sum[3], inverse = Real(1) / (sum01 * sum23);
        Vec<Real> inverse01 = inverse * sum23, inverse23 = inverse * sum01;
        s[0] = er[0] * (inverse01 * sum[1]), s[1] = er[1] * (inverse01 * sum[0]);
        s[2] = er[2] * (inverse23 * sum[3]), s[3] = er[3] * (inverse23 * sum[2]);
        MAXMIN_UNROLL for (int k = 0; k < 4; k++) store(to + k * stride + v * w, s[k]);
        product[v].mantissa *= ((ec[0] * ec[1]) * (ec[2] * ec[3])) * inverse;
        product[v].shares += (s[0] + s[1]) + (s[2] + s[3]);
      }
    }
    for (; i < end; i++) {
      const Real *c = table + chosen[i] * stride, *r = table + rejected[i] * stride;
      MAXMIN_UNROLL for (int v = 0; v < V; v++) {
        Vec<Real> ec = load(c + v * w), er = load(r + v * w), inverse = Real(1) / (ec + er), s = er * inverse;
        store(shares + i * stride + v * w, s);
        product[v].mantissa *= ec * inverse;
        product[v].shares += s;
      }
    }
    MAXMIN_UNROLL for (int v = 0; v < V; v++) Product<Real>::split(product[v]);
  }
  MAXMIN_UNROLL for (int v = 0; v < V; v++) add_log(product[v], shares + v * w, stride, n, joint + v * w);
}

// gradient[chosen] += gamma s, gradient[rejected] -= gamma s
template <class Real, int V>
void scatter(const Real* shares, int64_t stride, const int64_t* chosen, const int64_t* rejected, int64_t n,
             const Real* gamma, Real* gradient) {
  constexpr int w = kWidth<Real>;
  Vec<Real> g[V];
  MAXMIN_UNROLL for (int v = 0; v < V; v++) g[v] = load(gamma + v * w);
  for (int64_t i = 0; i < n; i++) {
    Real *c = gradient + chosen[i] * stride, *r = gradient + rejected[i] * stride;
    MAXMIN_UNROLL for (int v = 0; v < V; v++) {
      Vec<Real> pull = g[v] * load(shares + i * stride + v * w);
      store(c + v * w, load(c + v * w) + pull);
      store(r + v * w, load(r + v * w) - pull);
    }
  }
}

// f(lane, V): heads in strips of up to kLanes vectors.
#define MAXMIN_STRIPS(stride, call)                               \
  for (int64_t h = 0; h < (stride); h += kLanes * kWidth<Real>) { \
    const int64_t vectors = ((stride) - h) / kWidth<Real>;        \
    if (vectors >= 3) {                                           \
      constexpr int V = 3;                                        \
      call;                                                       \
    } else if (vectors == 2) {                                    \
      constexpr int V = 2;                                        \
      call;                                                       \
    } else {                                                      \
      constexpr int V = 1;                                        \
      call;                                                       \
    }                                                             \
  }

template <class Real>
void forward(const Pass<Real>& p, const Choices<Real>& part, Workspace<Real>& w) {
  const int64_t *chosen = p.chosen + part.first_row, *rejected = p.rejected + part.first_row;
  if (p.exponential) {
    MAXMIN_STRIPS(p.stride, (shares_of_exponentials<Real, V>(p.table + h, p.stride, chosen, rejected, part.n_rows,
                                                             p.batch, w.shares + h, w.joint + h)));
    return;
  }
  MAXMIN_STRIPS(p.stride, (differences<Real, V>(p.table + h, p.stride, chosen, rejected, part.n_rows, w.shares + h)));
  choose(part, p.stride, w.shares, w.log_prob);
  add_up(part, p.stride, w.log_prob, 0, part.count, w.joint);
}

template <class Real>
void backward(const Pass<Real>& p, const Choices<Real>& part, Workspace<Real>& w) {
  const int64_t *chosen = p.chosen + part.first_row, *rejected = p.rejected + part.first_row;
  const Real* gamma = w.gamma;
  Real ones[kLanes * kWidth<Real>];
  if (part.weight) {  // then gamma v s in place, once
    weigh(part, p.stride, gamma, 0, part.count, w.shares);
    for (Real& one : ones) one = 1;
  }
  MAXMIN_STRIPS(p.stride, (scatter<Real, V>(w.shares + h, p.stride, chosen, rejected, part.n_rows,
                                            part.weight ? ones : gamma + h, w.gradient + h)));
}

// ---- tasks over annotators

// Are the item rows of a task's annotators rows of the table? Cheap beside the pass, which follows them.
template <class Real>
void check_task(void* context, int64_t task) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const Choices<Real> part =
      choices_between<Real>(p.data, p.data.indptr[p.cuts[task]], p.data.indptr[p.cuts[task + 1]]);
  p.bad[task] = !in_range(p.chosen + part.first_row, part.n_rows, p.n_items) ||
                !in_range(p.rejected + part.first_row, part.n_rows, p.n_items);
}

template <class Real>
void annotators_task(void* context, int64_t task) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t n_all_heads = p.mixtures.n_heads;
  const Real* log_weights = static_cast<const Real*>(p.mixtures.log_weights) + p.first_head;
  Real* log_resp = static_cast<Real*>(p.out.log_resp) + p.first_head;
  Workspace<Real> w = p.workspace(task);
  memset(w.gradient, 0, p.scattered ? 0 : p.n_items * p.stride * sizeof(Real));
  memset(w.mass, 0, p.stride * sizeof(double));
  memset(w.log_likelihood, 0, p.block.count * sizeof(double));
  for (int64_t a = p.cuts[task]; a < p.cuts[task + 1]; a++) {
    const int64_t begin = p.data.indptr[a], end = p.data.indptr[a + 1];
    for (int64_t h = 0; h < p.n_heads; h++) w.joint[h] = log_weights[h];
    for (int64_t h = p.n_heads; h < p.stride; h++) w.joint[h] = 0;
    int64_t c = begin, cut = begin;
    for (; c < end; c = cut) {
      cut = next_cut<Real>(p.data, c, end, p.capacity);
      forward(p, choices_between<Real>(p.data, c, cut), w);
      if (cut == end) break;
    }
    posterior(p.block, w.joint, w.resp, w.evidence, w.total);
    for (int64_t g = 0; g < p.block.count; g++) w.log_likelihood[g] += w.evidence[g];
    for (int64_t h = 0; h < p.n_heads; h++) {
      w.mass[h] += w.resp[h];
      w.gamma[h] = (Real)w.resp[h];
      log_resp[a * n_all_heads + h] = (Real)w.joint[h];
    }
    for (int64_t h = p.n_heads; h < p.stride; h++) w.gamma[h] = 0;
    if (p.scattered) {
      memcpy(p.gamma + a * p.stride, w.gamma, p.stride * sizeof(Real));
    } else if (c == begin) {  // its shares are all there
      if (begin < end) backward(p, choices_between<Real>(p.data, begin, end), w);
    } else {
      for (c = begin; c < end; c = cut) {
        cut = next_cut<Real>(p.data, c, end, p.capacity);
        const Choices<Real> part = choices_between<Real>(p.data, c, cut);
        forward(p, part, w);
        backward(p, part, w);
      }
    }
  }
}

// ---- tasks over items: the table, and sums of the gradients

// Is x the lesser? A NaN is less than all, so that it stays.
bool below(double x, double other) { return x < other || x != x; }

template <class Real>
void table_task(void* context, int64_t range) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  double *low = p.extremes + range * 2 * p.stride, *high = low + p.stride;
  for (int64_t h = 0; h < p.stride; h++) low[h] = __builtin_inf(), high[h] = -__builtin_inf();
  for (int64_t i = range * kItemRange; i < least(p.n_items, (range + 1) * kItemRange); i++) {
    const Real* from = p.scores + i * p.mixtures.n_heads + p.first_head;
    Real* to = p.table + i * p.stride;
    memcpy(to, from, p.n_heads * sizeof(Real));
    for (int64_t h = p.n_heads; h < p.stride; h++) to[h] = 0;
    for (int64_t h = 0; h < p.n_heads; h++) {
      low[h] = below(from[h], low[h]) ? from[h] : low[h];
      high[h] = below(-from[h], -high[h]) ? from[h] : high[h];
    }
  }
}

// After table_task and spread: exponentials about the middle of each head's scores, which is in `extremes`.
template <class Real>
void exponential_task(void* context, int64_t range) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  for (int64_t i = range * kItemRange; i < least(p.n_items, (range + 1) * kItemRange); i++) {
    Real* row = p.table + i * p.stride;
    for (int64_t h = 0; h < p.stride; h += kWidth<double>) {
      double t[kWidth<double>];
      for (int j = 0; j < kWidth<double>; j++) t[j] = (double)row[h + j] - p.extremes[h + j];
      // In double, so that what the rounded difference of two scores loses is not lost twice.
      store(t, vexp(load(t)));
      for (int j = 0; j < kWidth<double>; j++) row[h + j] = (Real)t[j];
    }
  }
}

// The largest spread of a head's scores (NaN if any is); the heads' middles go to the front of `extremes`.
template <class Real>
double spread(const Pass<Real>& p) {
  double *low = p.extremes, *high = low + p.stride, widest = 0;
  for (int64_t r = 1; r < ceil_div(p.n_items, kItemRange); r++)
    for (int64_t h = 0; h < p.n_heads; h++) {
      const double l = p.extremes[r * 2 * p.stride + h], u = p.extremes[(r * 2 + 1) * p.stride + h];
      low[h] = below(l, low[h]) ? l : low[h];
      high[h] = below(-u, -high[h]) ? u : high[h];
    }
  for (int64_t h = 0; h < p.n_heads; h++) {
    const double width = high[h] - low[h];
    widest = below(-width, -widest) ? width : widest;
    low[h] = low[h] + 0.5 * width;
  }
  for (int64_t h = p.n_heads; h < p.stride; h++) low[h] = 0;
  return widest;
}

template <class Real>
void sum_task(void* context, int64_t range) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  Real* out = static_cast<Real*>(p.out.gradient) + p.first_head;
  for (int64_t i = range * kItemRange; i < least(p.n_items, (range + 1) * kItemRange); i++)
    for (int64_t h0 = 0; h0 < p.n_heads; h0 += kWidth<Real>) {
      double sum[kWidth<Real>] = {};
      for (int64_t t = 0; t < p.n_tasks; t++) {
        const Real* from = p.workspace(t).gradient + i * p.stride + h0;
        for (int j = 0; j < kWidth<Real>; j++) sum[j] += from[j];
      }
      for (int64_t j = 0; j < least(kWidth<Real>, p.n_heads - h0); j++)
        out[i * p.mixtures.n_heads + h0 + j] = (Real)sum[j];
    }
}

// ---- many items

// The weighted shares of one part of the wave.
template <class Real>
void wave_task(void* context, int64_t task) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t size = p.wave_end - p.wave_begin, wave_row = row_of<Real>(p.data, p.wave_begin);
  const int64_t end = p.wave_begin + size * (task + 1) / p.n_tasks;
  Workspace<Real> w = p.workspace(task);
  int64_t cut;
  for (int64_t c = p.wave_begin + size * task / p.n_tasks; c < end; c = cut) {
    cut = next_cut<Real>(p.data, c, end, p.capacity);
    const Choices<Real> part = choices_between<Real>(p.data, c, cut);
    forward(p, part, w);  // of no use here: its sums
    int64_t a = lower_bound(p.data.indptr, p.data.n_annotators, c + 1) - 1;
    for (int64_t from = c; from < cut; a++) {
      const int64_t to = least(cut, p.data.indptr[a + 1]);
      weigh(part, p.stride, p.gamma + a * p.stride, from - c, to - c, w.shares);
      from = to;
    }
    memcpy(p.wave + (part.first_row - wave_row) * p.stride, w.shares, part.n_rows * p.stride * sizeof(Real));
  }
}

// One range of items picks its rows out of the wave.
template <class Real>
void pick_task(void* context, int64_t task) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t low = p.n_items * task / kTasks, size = p.n_items * (task + 1) / kTasks - low;
  const int64_t begin = row_of<Real>(p.data, p.wave_begin), end = row_of<Real>(p.data, p.wave_end);
  Real* gradient = p.gradient + low * p.stride;
  for (int64_t i = begin; i < end; i++) {
    const Real* pull = p.wave + (i - begin) * p.stride;
    const uint64_t c = (uint64_t)(p.chosen[i] - low), r = (uint64_t)(p.rejected[i] - low);
    if (c < (uint64_t)size)
      for (int64_t h = 0; h < p.stride; h += kWidth<Real>)
        store(gradient + c * p.stride + h, load(gradient + c * p.stride + h) + load(pull + h));
    if (r < (uint64_t)size)
      for (int64_t h = 0; h < p.stride; h += kWidth<Real>)
        store(gradient + r * p.stride + h, load(gradient + r * p.stride + h) - load(pull + h));
  }
}

template <class Real>
void gather_waves(Pass<Real>& p) {
  const int64_t rows = most(p.capacity, kWaveBytes / (p.stride * (int64_t)sizeof(Real)));
  memset(p.gradient, 0, p.n_items * p.stride * sizeof(Real));
  for (int64_t c = 0; c < p.data.n_comparisons; c = p.wave_end) {
    p.wave_begin = c;
    p.wave_end = next_cut<Real>(p.data, c, p.data.n_comparisons, rows);
    run_tasks(p.parallel, p.n_tasks, wave_task<Real>, &p);
    run_tasks(p.parallel, kTasks, pick_task<Real>, &p);
  }
  Real* out = static_cast<Real*>(p.out.gradient) + p.first_head;
  for (int64_t i = 0; i < p.n_items; i++)
    memcpy(out + i * p.mixtures.n_heads, p.gradient + i * p.stride, p.n_heads * sizeof(Real));
}

// ---- the whole

template <class Real>
void run_block(Pass<Real>& p, int64_t first_mixture, int64_t n_mixtures) {
  const int64_t* ptr = p.mixtures.mixture_indptr + first_mixture;
  p.first_mixture = first_mixture;
  p.first_head = ptr[0];
  p.n_heads = ptr[n_mixtures] - ptr[0];
  p.stride = round_up(most(1, p.n_heads), kWidth<Real>);
  p.block = {n_mixtures, p.n_heads, ptr, p.mixtures.temperature, p.mixtures.hard != 0};
  const int64_t n_ranges = ceil_div(p.n_items, kItemRange);
  p.exponential = false;
  run_tasks(p.parallel, n_ranges, table_task<Real>, &p);
  if (!p.scattered && n_ranges > 0 && !p.data.choice_indptr && !p.data.comparison_weight && p.data.label_noise == 0) {
    const double widest = spread(p);
    p.exponential = widest <= Limits<Real>::range;
    p.batch = 4;
    while (p.batch < kFactors && 2 * p.batch * (widest + 0.7) < Limits<Real>::log_smallest) p.batch *= 2;
    if (p.exponential) run_tasks(p.parallel, n_ranges, exponential_task<Real>, &p);
  }
  run_tasks(p.parallel, p.n_tasks, annotators_task<Real>, &p);
  for (int64_t t = 0; t < p.n_tasks; t++) {
    const Workspace<Real> w = p.workspace(t);
    for (int64_t h = 0; h < p.n_heads; h++) p.out.mass[p.first_head + h] += w.mass[h];
    for (int64_t g = 0; g < n_mixtures; g++) p.out.log_likelihood[first_mixture + g] += w.log_likelihood[g];
  }
  if (p.scattered)
    gather_waves(p);
  else
    run_tasks(p.parallel, n_ranges, sum_task<Real>, &p);
}

// Mixtures first .. end fit one block: whole mixtures, at least one.
int64_t end_of_block(const maxmin_mixtures& mixtures, int64_t first, int64_t width) {
  const int64_t* ptr = mixtures.mixture_indptr;
  int64_t end = first + 1;
  while (end < mixtures.n_mixtures && ptr[end + 1] - ptr[first] <= width) end++;
  return end;
}

template <class Real>
int pass(const maxmin_comparisons& data, const maxmin_mixtures& mixtures, const Real* scores, int64_t n_items,
         const int64_t* chosen, const int64_t* rejected, const maxmin_em_outputs& out,
         const maxmin_parallel* parallel) {
  Pass<Real> p{data, mixtures, scores, n_items, chosen, rejected, out, parallel};
  constexpr int64_t kBlock = kLanes * kWidth<Real>;
  int64_t widest = kBlock, most_mixtures = 1;
  for (int64_t g = 0; g < mixtures.n_mixtures; g = end_of_block(mixtures, g, kBlock)) {
    const int64_t end = end_of_block(mixtures, g, kBlock);
    widest = most(widest, round_up(mixtures.mixture_indptr[end] - mixtures.mixture_indptr[g], kWidth<Real>));
    most_mixtures = most(most_mixtures, end - g);
  }
  memset(out.mass, 0, mixtures.n_heads * sizeof(double));
  memset(out.log_likelihood, 0, mixtures.n_mixtures * sizeof(double));

  const int64_t table = n_items * widest, affordable = kPartialBytes / (int64_t)(most(1, table) * sizeof(Real));
  p.n_tasks = clamp(data.n_rows / kTaskRows, 1, kTasks);
  // A task's gradient is worth its place when several rows fall on each item.
  const int64_t with_gradient = clamp(least(data.n_rows / most(1, 4 * n_items), affordable), 1, p.n_tasks);
  p.scattered = p.n_tasks > 1 && with_gradient == 1;
  if (!p.scattered) p.n_tasks = with_gradient;
  p.capacity = buffer_rows(data, kChunk);
  const int64_t shares = p.capacity * widest + kSlack;
  p.task_reals = round_up(2 * shares + widest + kSlack + (p.scattered ? 0 : table), kSlack);
  p.task_doubles = round_up(3 * widest + 3 * most_mixtures + 4 * kSlack, kSlack);
  const int64_t wave = most(p.capacity * widest, kWaveBytes / (int64_t)sizeof(Real));

  Scratch<Real> table_memory(table + kSlack), reals(p.n_tasks * p.task_reals);
  Scratch<double> doubles(p.n_tasks * p.task_doubles), extremes(ceil_div(n_items, kItemRange) * 2 * widest);
  Scratch<int64_t> cuts(p.n_tasks + 1);
  Scratch<Real> gamma(p.scattered ? data.n_annotators * widest : 0), gradient(p.scattered ? table : 0),
      wave_memory(p.scattered ? wave : 0);
  if (!table_memory.data || !reals.data || !doubles.data || !extremes.data || !cuts.data || !gamma.data ||
      !gradient.data || !wave_memory.data)
    return MAXMIN_OUT_OF_MEMORY;
  p.table = table_memory.data, p.reals = reals.data, p.doubles = doubles.data, p.extremes = extremes.data;
  p.cuts = cuts.data, p.gamma = gamma.data, p.gradient = gradient.data, p.wave = wave_memory.data;
  for (int64_t t = 0; t <= p.n_tasks; t++)
    p.cuts[t] = t == p.n_tasks ? data.n_annotators
                               : lower_bound(data.indptr, data.n_annotators, data.n_comparisons * t / p.n_tasks);
  bool bad[kTasks] = {};
  p.bad = bad;
  run_tasks(parallel, p.n_tasks, check_task<Real>, &p);
  for (bool task : bad)
    if (task) return MAXMIN_BAD_ARGUMENT;
  for (int64_t g = 0, end; g < mixtures.n_mixtures; g = end) {
    end = end_of_block(mixtures, g, kBlock);
    run_block(p, g, end - g);
  }
  return MAXMIN_OK;
}

}  // namespace

int em_pass_indexed(const maxmin_comparisons* data, const maxmin_mixtures* mixtures, const void* scores, int dtype,
                    int64_t n_items, const int64_t* chosen, const int64_t* rejected, const maxmin_em_outputs* out,
                    const maxmin_parallel* parallel) {
  if (!is_indptr(data->indptr, data->n_annotators, data->n_comparisons) ||
      !is_indptr(mixtures->mixture_indptr, mixtures->n_mixtures, mixtures->n_heads) ||
      !(data->choice_indptr ? is_indptr(data->choice_indptr, data->n_comparisons, data->n_rows)
                            : data->n_rows == data->n_comparisons))
    return MAXMIN_BAD_ARGUMENT;
  switch (dtype) {
    case MAXMIN_F64:
      return pass(*data, *mixtures, static_cast<const double*>(scores), n_items, chosen, rejected, *out, parallel);
    case MAXMIN_F32:
      return pass(*data, *mixtures, static_cast<const float*>(scores), n_items, chosen, rejected, *out, parallel);
  }
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
