// One EM pass over rows of features, each read from memory once. MATH (2)-(6), (8).
//
// Rows go in tiles of whole annotators that fit a near cache. For each block of heads: margins, shares, the annotators'
// sums and responsibilities, then the gradient from the same rows, while memory already fetches the next tile. An
// annotator longer than a tile may be has its gradient summed with shares alone, and multiplied by its responsibilities
// once these are known. Tasks are runs of annotators with sums of their own, added in order at the end; an annotator
// that is cut by them leaves a part in each.
//
// Sums of the gradient run in the accumulation type over a few hundred rows and in float64 beyond.
#include "em_pass_rows_tile.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kTasks = 64;          // at most
constexpr int64_t kTaskWork = 1 << 21;  // multiply-adds worth a task
constexpr int64_t kTaskRows = 2048;     // worth sums of their own, where tasks are more than
constexpr int64_t kFewTasks = 16;
constexpr int64_t kSumBytes = int64_t(1) << 28;  // of all tasks' sums
constexpr int64_t kFlushRows = 256;

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
