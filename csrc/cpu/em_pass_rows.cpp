// One EM pass over rows of features, each read from memory once. MATH (2)-(6), (8).
//
// Rows go in tiles of whole annotators that fit a near cache. For each block of heads: margins, shares, the annotators'
// sums and responsibilities, then the gradient from the same rows, while memory already fetches the next tile. An
// annotator longer than a tile may be has its gradient summed with shares alone, and multiplied by its responsibilities
// once these are known. Tasks are runs of annotators with sums of their own, added in order at the end; an annotator
// that is cut by them leaves a part in each.
//
// Sums of the gradient run in the accumulation type over a few hundred rows and in float64 beyond.
#include "em_pass_rows_plan.h"
#include "em_pass_rows_products.h"
#include "maxmin/em_pass.h"
#include "pairs.h"
#include "storage.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kTasks = 64;          // at most
constexpr int64_t kTaskWork = 1 << 21;  // multiply-adds worth a task
constexpr int64_t kTaskRows = 512;      // worth sums of their own, if there are more tasks than
constexpr int64_t kFewTasks = 8;
constexpr int64_t kSumBytes = int64_t(1) << 28;  // of all tasks' sums
constexpr int64_t kNearBytes = 30 << 10;         // rows of a tile: the nearest cache
constexpr int64_t kMiddleBytes = 92 << 10;       // the second, where the products are long
constexpr int64_t kMarginBytes = 64 << 10;       // margins of a tile
constexpr int64_t kWholeBytes = 384 << 10;       // rows and margins of the longest annotator that stays whole
constexpr int64_t kMostRows = 256;
constexpr int64_t kShortRow = 128;
constexpr int64_t kFlushRows = 256;

// The part of an annotator that a task has, if a cut divides it.
struct Part {
  int64_t annotator;  // -1: none
  double* joint;      // (n_padded) sums (4), without log eta
  double* gradient;   // (n_sums) with shares in place of gamma s
  double* resp;       // (n_padded) gamma, known when all tasks are done
};
struct Task {
  Cut begin, end;
  double *gradient, *mass, *log_likelihood;  // (n_sums), (n_padded), (n_mixtures)
  Part first, last;                          // continues the task before; goes on in the next one
};

// Cuts one allocation into arrays. Without a base it only measures, so that the same lines do both.
struct Carver {
  char* base;
  int64_t used;
  template <class T>
  T* take(int64_t n) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up(n * (int64_t)sizeof(T), 64);
    return p;
  }
};

template <class T>
struct Pass {
  typedef typename Accumulate<T>::type Real;
  const maxmin_comparisons& data;
  const maxmin_mixtures& mixtures;
  const T* features;
  int64_t n_features, stride_row, stride_feature;
  const maxmin_em_outputs& out;

  const HeadBlock* blocks;
  int64_t n_blocks, most_padded, most_mixtures, n_padded, n_sums, n_weights;
  bool multiplied;         // logarithms: of products of an annotator's pairs
  bool direct;             // rows are read where they lie, else copied tile by tile
  int64_t width;           // features of a row as the products see it
  int64_t tile, capacity;  // rows: of several annotators; of one that stays whole, and of the buffers
  const Real* weights;
  Task* tasks;
  int64_t n_tasks;
  int failed;

  // Where the gradient of feature d by head h of a block stands among its sums.
  int64_t place(const HeadBlock& b, int64_t h, int64_t d) const {
    if (b.transposed) return b.sums + d * b.padded + h;
    return b.sums + h * width + (direct ? Rows<T>::lane(d) : d);
  }
};

// What a task works with. s first holds margins; c first log-probabilities.
template <class Real>
struct Buffers {
  Real *rows, *s, *c, *log_resp, *resp, *mixture_sums, *sums;
  double *joint, *pair_sums, *whole_joint, *whole_gradient;
  int64_t cleared;  // bytes that have to begin as zeros: the first arrays
  int64_t summed;   // rows in `sums` since they were last taken over

  template <class T>
  Buffers(const Pass<T>& p, Carver& carver, bool long_annotators) : summed(0) {
    const int64_t margins = p.capacity * p.most_padded + kSlack, heads = p.tile * p.most_padded + kSlack;
    rows = carver.take<Real>(p.direct ? 0 : p.capacity * p.width + kSlack);
    sums = carver.take<Real>(p.n_sums);
    log_resp = carver.take<Real>(heads);
    cleared = carver.used;
    resp = carver.take<Real>(heads);
    s = carver.take<Real>(margins);
    c = carver.take<Real>(margins);
    mixture_sums = carver.take<Real>(p.tile * p.most_mixtures + kSlack);
    joint = carver.take<double>(heads);
    pair_sums = carver.take<double>(p.most_padded + kSlack);
    whole_joint = carver.take<double>(long_annotators ? p.n_padded : 0);
    whole_gradient = carver.take<double>(long_annotators ? p.n_sums : 0);
  }
  PosteriorScratch<Real> posterior() const { return {joint, log_resp, resp, mixture_sums}; }
};

template <class T>
int64_t buffer_bytes(const Pass<T>& p, bool long_annotators) {
  Carver measure{};
  Buffers<typename Pass<T>::Real>(p, measure, long_annotators);
  return measure.used;
}
template <class T>
Buffers<typename Pass<T>::Real> lay_buffers(const Pass<T>& p, char* memory, bool long_annotators) {
  Carver carver{memory, 0};
  Buffers<typename Pass<T>::Real> buffers(p, carver, long_annotators);
  memset(memory, 0, buffers.cleared);
  return buffers;
}

// The comparisons of a tile, and its rows as the products read them.
template <class X, class Real>
struct Tile {
  Choices<Real> choices;
  const X* x;
  int64_t stride;
  mutable Ahead ahead;
};

template <class T>
void take_over(const Pass<T>& p, Buffers<typename Pass<T>::Real>& buffers, double* __restrict__ into) {
  typename Pass<T>::Real* __restrict__ sums = buffers.sums;
  if (buffers.summed == 0) return;
  for (int64_t i = 0; i < p.n_sums; i++) {
    into[i] += (double)sums[i];
    sums[i] = 0;
  }
  buffers.summed = 0;
}

// (2), (3): margins, then shares and log-probabilities, times the comparisons' weights. The latter wait for add_up_tile
// if logarithms are of products.
template <class T, class X, class Real>
void shares(const Pass<T>& p, const HeadBlock& b, const Tile<X, Real>& tile, const Buffers<Real>& buffers) {
  const Choices<Real>& part = tile.choices;
  const Real* w = p.weights + b.weights;
  if (&b != p.blocks) tile.ahead.at = reinterpret_cast<const char*>(tile.x);  // the next tile has been asked for
  constexpr bool widened = sizeof(X) == sizeof(Real);
  if (b.margins == Margins::kDots)
    dot_margins<X>(tile.x, tile.stride, part.n_rows, w, p.width, b.padded, buffers.s, tile.ahead);
  if constexpr (widened)
    if (b.margins == Margins::kLanes)
      lane_margins(tile.x, tile.stride, part.n_rows, w, p.n_features, b.padded, buffers.s, tile.ahead);
  if constexpr (widened && sizeof(Real) == sizeof(float))
    if (b.margins == Margins::kPairs) pair_margins(tile.x, tile.stride, part.n_rows, w, p.width, buffers.s, tile.ahead);
  if (p.multiplied) return;
  choose(part, b.padded, buffers.s, buffers.c);
  if (!part.weight) return;
  for (int64_t c = 0; c < part.count; c++) {
    const Real v = part.weight[part.first + c];
    for (int64_t h = 0; h < b.padded; h++) buffers.c[c * b.padded + h] *= v;
    for (int64_t i = part.row(c) * b.padded; i < part.row(c + 1) * b.padded; i++) buffers.s[i] *= v;
  }
}

// (4) of the comparisons c0 ... c1 of a tile.
template <class T, class Real>
void add_up_tile(const Pass<T>& p, const HeadBlock& b, const Buffers<Real>& buffers, int64_t c0, int64_t c1,
                 double* joint) {
  const int64_t n = c1 - c0;
  if (p.multiplied)
    share_pairs(buffers.s + c0 * b.padded, n * b.padded, b.padded, period<Real>(b.padded), buffers.pair_sums, joint);
  else
    add_rows(buffers.c + c0 * b.padded, n, b.padded, joint);
}

// (8): sums += c^T x.
template <class T, class X, class Real>
void gradient(const Pass<T>& p, const HeadBlock& b, const Tile<X, Real>& tile, const Real* c, Real* all_sums) {
  Real* sums = all_sums + b.sums;
  const int64_t n_rows = tile.choices.n_rows;
  if constexpr (sizeof(X) == sizeof(Real))
    if (b.transposed) {
      outer<Real>(tile.x, tile.stride, p.n_features, c, b.padded, b.padded, n_rows, sums, b.padded, tile.ahead);
      return;
    }
  outer<X>(c, b.padded, b.n_heads, tile.x, tile.stride, p.width, n_rows, sums, p.width, tile.ahead);
}

template <class Real>
void set_log_weights(const maxmin_mixtures& mixtures, const HeadBlock& b, double* joint) {
  const Real* log_weights = static_cast<const Real*>(mixtures.log_weights) + b.head;
  for (int64_t h = 0; h < b.padded; h++) joint[h] = h < b.n_heads ? (double)log_weights[h] : 0;
}

// (5), (6) of n annotators from `a` on, whose sums are in the buffers.
template <class T, class Real>
void respond(const Pass<T>& p, const HeadBlock& b, int64_t a, int64_t n, const Buffers<Real>& buffers, double* mass,
             double* log_likelihood) {
  posteriors(b, n, buffers.posterior(), p.mixtures.hard != 0, p.mixtures.temperature, log_likelihood + b.mixture);
  Real* log_resp = static_cast<Real*>(p.out.log_resp) + a * p.mixtures.n_heads + b.head;
  for (int64_t i = 0; i < n; i++)
    for (int64_t h = 0; h < b.n_heads; h++) {
      log_resp[i * p.mixtures.n_heads + h] = buffers.log_resp[i * b.padded + h];
      mass[b.at + h] += (double)buffers.resp[i * b.padded + h];
    }
}

// f(tile) for the comparisons begin ... end.
template <class T, class Real, class F>
void with_tile(const Pass<T>& p, const Buffers<Real>& buffers, int64_t begin, int64_t end, F f) {
  const Choices<Real> choices = choices_between<Real>(p.data, begin, end);
  const T* x = p.features + choices.first_row * p.stride_row;
  const Ahead ahead{reinterpret_cast<const char*>(x + choices.n_rows * p.stride_row)};
  if (p.direct) {
    f(Tile<T, Real>{choices, x, p.stride_row, ahead});
    return;
  }
  for (int64_t i = 0; i < choices.n_rows; i++)  // what is behind a row's features stays 0
    widen_row(x + i * p.stride_row, p.stride_feature, p.n_features, buffers.rows + i * p.width);
  f(Tile<Real, Real>{choices, buffers.rows, p.width, ahead});
}

// n annotators from `a` on, all in one tile.
template <class T, class Real>
void whole_annotators(const Pass<T>& p, Task& task, Buffers<Real>& buffers, int64_t a, int64_t n) {
  const int64_t* ptr = p.data.indptr + a;
  with_tile(p, buffers, ptr[0], ptr[n], [&](const auto& tile) {
    for (int64_t k = 0; k < p.n_blocks; k++) {
      const HeadBlock& b = p.blocks[k];
      shares(p, b, tile, buffers);
      for (int64_t i = 0; i < n; i++) {
        set_log_weights<Real>(p.mixtures, b, buffers.joint + i * b.padded);
        add_up_tile(p, b, buffers, ptr[i] - ptr[0], ptr[i + 1] - ptr[0], buffers.joint + i * b.padded);
      }
      respond(p, b, a, n, buffers, task.mass, task.log_likelihood);
      for (int64_t i = 0; i < n; i++) {
        const int64_t begin = tile.choices.row(ptr[i] - ptr[0]), end = tile.choices.row(ptr[i + 1] - ptr[0]);
        pull(buffers.s + begin * b.padded, end - begin, buffers.resp + i * b.padded, b.padded,
             buffers.c + begin * b.padded);
      }
      gradient(p, b, tile, buffers.c, buffers.sums);
    }
    buffers.summed += tile.choices.n_rows;
  });
  if (buffers.summed >= kFlushRows) take_over(p, buffers, task.gradient);
}

// The comparisons begin ... end of one annotator, tile by tile: joint, and sums of the gradient without
// responsibilities. They begin in the buffers, which must be empty, and go on from there to `sums` if they are many:
// true if so. What is in the buffers still has to be added.
template <class T, class Real>
bool sum_annotator(const Pass<T>& p, Buffers<Real>& buffers, int64_t begin, int64_t end, double* joint, double* sums) {
  bool flushed = false;
  memset(joint, 0, p.n_padded * sizeof(double));
  const int64_t n_rows = most(1, row_of<Real>(p.data, end) - row_of<Real>(p.data, begin));
  const int64_t tile = least(p.tile, round_up(ceil_div(n_rows, ceil_div(n_rows, p.tile)), 2));  // all alike
  for (int64_t c = begin, cut; c < end; c = cut) {
    cut = next_cut<Real>(p.data, c, end, most(1, tile));
    if (buffers.summed >= kFlushRows) {
      if (!flushed) memset(sums, 0, p.n_sums * sizeof(double));
      flushed = true;
      take_over(p, buffers, sums);
    }
    with_tile(p, buffers, c, cut, [&](const auto& tile) {
      for (int64_t k = 0; k < p.n_blocks; k++) {
        const HeadBlock& b = p.blocks[k];
        shares(p, b, tile, buffers);
        add_up_tile(p, b, buffers, 0, tile.choices.count, joint + b.at);
        gradient(p, b, tile, buffers.s, buffers.sums);
      }
      buffers.summed += tile.choices.n_rows;
    });
  }
  return flushed;
}

// The part of an annotator that belongs to a task.
template <class T, class Real>
void sum_part(const Pass<T>& p, const Task& task, Buffers<Real>& buffers, int64_t begin, int64_t end,
              const Part& part) {
  take_over(p, buffers, task.gradient);
  if (!sum_annotator(p, buffers, begin, end, part.joint, part.gradient))
    memset(part.gradient, 0, p.n_sums * sizeof(double));
  take_over(p, buffers, part.gradient);
}

// Responsibilities of an annotator from its joint without log eta; they take its place.
template <class T, class Real>
void respond_to_joint(const Pass<T>& p, int64_t a, double* joint, const Buffers<Real>& buffers, double* mass,
                      double* log_likelihood) {
  for (int64_t k = 0; k < p.n_blocks; k++) {
    const HeadBlock& b = p.blocks[k];
    set_log_weights<Real>(p.mixtures, b, buffers.joint);
    for (int64_t h = 0; h < b.n_heads; h++) buffers.joint[h] += joint[b.at + h];
    respond(p, b, a, 1, buffers, mass, log_likelihood);
    for (int64_t h = 0; h < b.n_heads; h++) joint[b.at + h] = (double)buffers.resp[h];
  }
}

// to[i] += factor (more[i] + from[i]), and from[i] = 0; more may be NULL.
template <class Real>
void take_scaled(double factor, const double* more, Real* __restrict__ from, int64_t n, double* __restrict__ to) {
  for (int64_t i = 0; i < n; i++) {
    to[i] += factor * ((more ? more[i] : 0) + (double)from[i]);
    from[i] = 0;
  }
}

// Sums of an annotator go to the gradient, times its responsibilities: `more`, if any, and those in the buffers.
template <class T, class Real>
void add_scaled(const Pass<T>& p, const double* resp, const double* more, Buffers<Real>& buffers, double* gradient) {
  auto take = [&](double factor, int64_t at, int64_t n) {
    if (more)
      take_scaled(factor, more + at, buffers.sums + at, n, gradient + at);
    else
      take_scaled(factor, nullptr, buffers.sums + at, n, gradient + at);
  };
  for (int64_t k = 0; k < p.n_blocks; k++) {
    const HeadBlock& b = p.blocks[k];
    const int64_t n_features = b.transposed ? p.n_features : 1, n = b.transposed ? 1 : p.width;
    for (int64_t d = 0; d < n_features; d++)
      for (int64_t h = 0; h < b.n_heads; h++) take(resp[b.at + h], b.sums + d * b.padded + h * n, n);
  }
  buffers.summed = 0;
}

// Annotators that share a tile with `a`, before `end`: 0 if it is too long itself.
template <class T>
int64_t fitting(const Pass<T>& p, int64_t a, int64_t end) {
  const int64_t begin = p.data.indptr[a], row = row_of_annotator(p.data, a);
  auto fits = [&](int64_t e, int64_t rows) {
    return p.data.indptr[e] - begin <= rows && row_of_annotator(p.data, e) - row <= rows;
  };
  if (!fits(a + 1, p.capacity)) return 0;
  int64_t e = a + 1;
  while (e < end && e - a < p.tile && fits(e + 1, p.tile)) e++;
  return e - a;
}

template <class T>
void run_task(void* context, int64_t index) {
  Pass<T>& p = *static_cast<Pass<T>*>(context);
  typedef typename Pass<T>::Real Real;
  Task& task = p.tasks[index];
  bool long_annotators = false;
  for (int64_t a = task.begin.annotator; a < task.end.annotator && !long_annotators; a++)
    long_annotators = fitting(p, a, a + 1) == 0;
  Scratch<char> memory(buffer_bytes(p, long_annotators));
  if (!memory.data) {
    __atomic_store_n(&p.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  Buffers<Real> buffers = lay_buffers(p, memory.data, long_annotators);

  int64_t a = task.begin.annotator;
  if (task.first.annotator >= 0) {
    const bool ends = task.end.annotator > a;
    sum_part(p, task, buffers, task.begin.comparison, ends ? p.data.indptr[a + 1] : task.end.comparison, task.first);
    if (!ends) return;
    a++;
  }
  while (a < task.end.annotator) {
    const int64_t n = fitting(p, a, task.end.annotator);
    if (n > 0) {
      whole_annotators(p, task, buffers, a, n);
      a += n;
      continue;
    }
    take_over(p, buffers, task.gradient);
    const bool flushed =
        sum_annotator(p, buffers, p.data.indptr[a], p.data.indptr[a + 1], buffers.whole_joint, buffers.whole_gradient);
    respond_to_joint(p, a, buffers.whole_joint, buffers, task.mass, task.log_likelihood);
    add_scaled(p, buffers.whole_joint, flushed ? buffers.whole_gradient : nullptr, buffers, task.gradient);
    a++;
  }
  take_over(p, buffers, task.gradient);
  if (task.last.annotator >= 0) sum_part(p, task, buffers, p.data.indptr[a], task.end.comparison, task.last);
}

// Responsibilities of the annotators that tasks have in parts.
template <class T>
int join_parts(Pass<T>& p) {
  typedef typename Pass<T>::Real Real;
  Scratch<char> memory(buffer_bytes(p, true));
  if (!memory.data) return MAXMIN_OUT_OF_MEMORY;
  Buffers<Real> buffers = lay_buffers(p, memory.data, true);
  for (int64_t t = 0; t < p.n_tasks; t++) {
    Task& task = p.tasks[t];
    const int64_t a = task.last.annotator;
    if (a < 0) continue;
    double* joint = task.last.resp;
    memcpy(joint, task.last.joint, p.n_padded * sizeof(double));
    int64_t end = t + 1;
    for (; end < p.n_tasks && p.tasks[end].first.annotator == a; end++)
      for (int64_t h = 0; h < p.n_padded; h++) joint[h] += p.tasks[end].first.joint[h];
    respond_to_joint(p, a, joint, buffers, task.mass, task.log_likelihood);
    for (int64_t u = t + 1; u < end; u++) memcpy(p.tasks[u].first.resp, joint, p.n_padded * sizeof(double));
  }
  return MAXMIN_OK;
}

// One head's gradient and mass: the tasks' sums, always in the same order. They come together in the first task's.
template <class T>
void sum_head(void* context, int64_t head) {
  const Pass<T>& p = *static_cast<const Pass<T>*>(context);
  typedef typename Pass<T>::Real Real;
  const HeadBlock* b = p.blocks;
  while (head >= b->head + b->n_heads) b++;
  const int64_t h = head - b->head;
  const int64_t begin = b->sums + (b->transposed ? h : h * p.width), step = b->transposed ? b->padded : 1;
  const int64_t end = begin + step * (b->transposed ? p.n_features : p.width);
  double* __restrict__ sums = p.tasks[0].gradient;
  for (int64_t t = 0; t < p.n_tasks; t++) {
    const Task& task = p.tasks[t];
    if (t > 0)
      for (int64_t at = begin; at < end; at += step) sums[at] += task.gradient[at];
    for (const Part* part : {&task.first, &task.last}) {
      if (part->annotator < 0) continue;
      const double resp = part->resp[b->at + h];
      for (int64_t at = begin; at < end; at += step) sums[at] += resp * part->gradient[at];
    }
  }
  Real* out = static_cast<Real*>(p.out.gradient) + head * p.n_features;
  for (int64_t d = 0; d < p.n_features; d++) out[d] = (Real)sums[p.place(*b, h, d)];
  double mass = 0;
  for (int64_t t = 0; t < p.n_tasks; t++) mass += p.tasks[t].mass[b->at + h];
  p.out.mass[head] = mass;
}

// ---- setting up

template <class T>
void pack_weights(const Pass<T>& p, const void* weight, typename Pass<T>::Real* packed) {
  typedef typename Pass<T>::Real Real;
  for (int64_t k = 0; k < p.n_blocks; k++) {
    const HeadBlock& b = p.blocks[k];
    const Real* from = static_cast<const Real*>(weight) + b.head * p.n_features;
    Real* to = packed + b.weights;
    if (b.margins == Margins::kLanes) {
      pack_lanes(from, b.n_heads, p.n_features, to);
      continue;
    }
    for (int64_t h = 0; h < b.n_heads; h++)
      for (int64_t d = 0; d < p.n_features; d++) {
        const int64_t at = b.margins == Margins::kPairs ? (d / 2 * b.padded + h) * 2 + d % 2
                                                        : h * p.width + (p.direct ? Rows<T>::lane(d) : d);
        to[at] = from[h * p.n_features + d];
      }
  }
}

// Layout of everything that depends on the sizes alone.
template <class T>
void lay_out(Pass<T>& p, HeadBlock* blocks) {
  typedef typename Pass<T>::Real Real;
  constexpr int64_t W = kWidth<Real>;
  p.blocks = blocks;
  p.n_blocks = cut_heads<Real>(p.mixtures, p.n_features, blocks);
  int64_t least_padded = W;
  bool pairs = false, scalars = true, narrow = p.n_blocks == 1;  // how rows are read: only feature by feature; never so
  for (int64_t k = 0; k < p.n_blocks; k++) {
    least_padded = least(least_padded, blocks[k].padded);
    scalars &= blocks[k].transposed;
    narrow &= blocks[k].margins == Margins::kDots;
    pairs |= 2 * blocks[k].padded == W;
  }
  // A product of fewer than two factors gains nothing over the logarithm of each.
  p.multiplied = are_plain_pairs(p.data) && p.data.n_rows >= 2 * ceil_div(W, least_padded) * p.data.n_annotators;
  const bool whole_groups = p.n_features % Rows<T>::kFeatures == 0;
  // Sums over lanes take longer than a copy where rows are short and heads not so few.
  narrow &= !pairs || p.n_features > kShortRow;
  p.direct = p.stride_feature == 1 && (sizeof(T) == sizeof(Real) ? whole_groups || scalars : whole_groups && narrow);
  p.width = scalars ? p.n_features : round_up(p.n_features, W);
  p.most_padded = p.most_mixtures = 1;
  p.n_padded = p.n_sums = p.n_weights = 0;
  for (int64_t k = 0; k < p.n_blocks; k++) {
    HeadBlock& b = blocks[k];
    p.most_padded = most(p.most_padded, b.padded);
    p.most_mixtures = most(p.most_mixtures, b.n_mixtures);
    p.n_padded = b.at + round_up(b.padded, kSlack);
    if (b.margins == Margins::kDots && sizeof(Real) == sizeof(float) && 2 * b.padded == W &&
        (sizeof(T) == sizeof(Real) || !p.direct))
      b.margins = Margins::kPairs;
    b.weights = p.n_weights;
    b.sums = p.n_sums;
    p.n_weights += round_up(b.padded * p.width, kSlack);
    p.n_sums += round_up(b.padded * p.width, kSlack);
  }
  const int64_t row_bytes = most(1, p.width) * (p.direct ? sizeof(T) : sizeof(Real));
  const int64_t margin_bytes = p.most_padded * sizeof(Real);
  const int64_t near = p.n_padded <= kSlack && p.most_padded <= 4 ? kNearBytes : kMiddleBytes;
  p.tile = clamp(least(near / row_bytes, kMarginBytes / margin_bytes), 16, kMostRows);
  p.capacity = clamp(kWholeBytes / (row_bytes + margin_bytes), p.tile, kMostRows);
  p.capacity = buffer_rows(p.data, p.capacity);
  p.tile = least(p.tile, most(1, p.capacity));
}

template <class T>
int run_pass(Pass<T>& p, const void* weight, HeadBlock* blocks, const maxmin_parallel* parallel) {
  typedef typename Pass<T>::Real Real;
  lay_out(p, blocks);
  const maxmin_comparisons& data = p.data;
  const int64_t size = data.n_rows + data.n_annotators, sum_bytes = (p.n_sums + 1) * (int64_t)sizeof(double);
  const int64_t work = data.n_rows * (p.n_features + 16) * (p.mixtures.n_heads + 1);
  p.n_tasks = clamp(work / kTaskWork, 1, kTasks);
  p.n_tasks = least(p.n_tasks, most(kFewTasks, data.n_rows / kTaskRows));
  p.n_tasks = least(p.n_tasks, most(2, kSumBytes / sum_bytes));
  Scratch<Task> tasks(p.n_tasks);
  Scratch<Real> weights(p.n_weights + kSlack);
  if (!tasks.data || !weights.data) return MAXMIN_OUT_OF_MEMORY;
  memset(weights.data, 0, (p.n_weights + kSlack) * sizeof(Real));
  pack_weights(p, weight, weights.data);
  p.weights = weights.data;
  p.tasks = tasks.data;

  auto lay_sums = [&](Carver& carver) {
    auto part = [&](int64_t annotator) {
      if (annotator < 0) return Part{-1, nullptr, nullptr, nullptr};
      return Part{annotator, carver.take<double>(p.n_padded), carver.take<double>(p.n_sums),
                  carver.take<double>(p.n_padded)};
    };
    auto inside = [&](const Cut& cut) {
      return cut.annotator < data.n_annotators && cut.comparison > data.indptr[cut.annotator] ? cut.annotator : -1;
    };
    Cut begin{0, 0};
    bool cuts = false;
    for (int64_t t = 0; t < p.n_tasks; t++) {
      const Cut end = t + 1 < p.n_tasks ? cut_at(data, (int64_t)((__int128)size * (t + 1) / p.n_tasks), p.capacity)
                                        : Cut{data.n_annotators, data.n_comparisons};
      Task& task = p.tasks[t];
      task.begin = begin;
      task.end = end;
      task.gradient = carver.take<double>(p.n_sums);
      task.mass = carver.take<double>(p.n_padded);
      task.log_likelihood = carver.take<double>(p.mixtures.n_mixtures);
      task.first = part(inside(begin));
      task.last = part(end.annotator > begin.annotator || task.first.annotator < 0 ? inside(end) : -1);
      cuts |= task.last.annotator >= 0;
      begin = end;
    }
    return cuts;
  };
  Carver measure{};
  lay_sums(measure);
  Scratch<char> memory(measure.used);
  if (!memory.data) return MAXMIN_OUT_OF_MEMORY;
  memset(memory.data, 0, measure.used);
  Carver carver{memory.data, 0};
  const bool cuts = lay_sums(carver);

  run_tasks(parallel, p.n_tasks, run_task<T>, &p);
  if (p.failed) return MAXMIN_OUT_OF_MEMORY;
  if (cuts && join_parts(p) != MAXMIN_OK) return MAXMIN_OUT_OF_MEMORY;
  run_tasks(parallel, p.mixtures.n_heads, sum_head<T>, &p);
  for (int64_t g = 0; g < p.mixtures.n_mixtures; g++) {
    p.out.log_likelihood[g] = 0;
    for (int64_t t = 0; t < p.n_tasks; t++) p.out.log_likelihood[g] += p.tasks[t].log_likelihood[g];
  }
  return MAXMIN_OK;
}

template <class T>
int pass(const maxmin_comparisons& data, const maxmin_mixtures& mixtures, const void* features, int64_t n_features,
         int64_t stride_row, int64_t stride_feature, const void* weight, const maxmin_em_outputs& out,
         const maxmin_parallel* parallel) {
  Scratch<HeadBlock> blocks(mixtures.n_mixtures);
  if (!blocks.data) return MAXMIN_OUT_OF_MEMORY;
  Pass<T> p{data, mixtures, static_cast<const T*>(features), n_features, stride_row, stride_feature, out};
  return run_pass(p, weight, blocks.data, parallel);
}

}  // namespace

int em_pass_rows(const maxmin_comparisons* comparisons, const maxmin_mixtures* mixtures, const void* features,
                 int dtype, int64_t n_features, int64_t stride_row, int64_t stride_feature, const void* weight,
                 const maxmin_em_outputs* out, const maxmin_parallel* parallel) {
  if (!is_indptr(comparisons->indptr, comparisons->n_annotators, comparisons->n_comparisons) ||
      (comparisons->choice_indptr &&
       !is_indptr(comparisons->choice_indptr, comparisons->n_comparisons, comparisons->n_rows)) ||
      !is_indptr(mixtures->mixture_indptr, mixtures->n_mixtures, mixtures->n_heads))
    return MAXMIN_BAD_ARGUMENT;
#define MAXMIN_PASS(T) \
  pass<T>(*comparisons, *mixtures, features, n_features, stride_row, stride_feature, weight, *out, parallel)
  switch (dtype) {
    case MAXMIN_F64: return MAXMIN_PASS(double);
    case MAXMIN_F32: return MAXMIN_PASS(float);
    case MAXMIN_BF16: return MAXMIN_PASS(bf16);
    case MAXMIN_F16: return MAXMIN_PASS(f16);
  }
#undef MAXMIN_PASS
  return MAXMIN_BAD_ARGUMENT;
}

}  // namespace MAXMIN_ISA
}  // namespace maxmin
