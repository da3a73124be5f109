// One EM pass over comparisons of items that are shared: margins are differences of a table of scores (items, heads),
// and the gradient by that table is returned. MATH (2)-(6), (8).
//
// Heads go in blocks of whole mixtures, small enough that the block's part of the table, its gradient and an
// annotator's shares stay in the nearest caches. A mixture wider than that is a block of its own. Annotators are cut
// into parts; a task is one part and one block, with a gradient of its own, and these are added in order. Where the
// items are too many for that (`scattered`), the shares of one wave of rows after another are written down, and tasks
// that own a range of items each pick up theirs, in the order of the rows.
//
// Pairs whose scores are close enough take no exponential: with E = exp(score), s = E_r / (E_c + E_r), and the product
// of all an annotator's p = E_c / (E_c + E_r) takes one logarithm.
#include "choices.h"
#include "em_pass_indexed_rows.h"
#include "maxmin/em_pass.h"
#include "posterior.h"
#include "segments.h"

namespace maxmin {
namespace MAXMIN_ISA {
namespace {

constexpr int64_t kChunk = 1024;                     // rows of shares that are kept; a longer annotator is read twice
constexpr int64_t kPartRows = 8192;                  // worth a task
constexpr int64_t kTasks = 32;                       // wanted; parts are made until there are so many
constexpr int64_t kLeastParts = 4;                   // or so many, whatever the number of blocks
constexpr int64_t kItemRange = 256;                  // items of a task that goes over items
constexpr int64_t kSmallTable = 1 << 16;             // not worth a second thread
constexpr int64_t kPartialBytes = int64_t(1) << 27;  // of all tasks' gradients
constexpr int64_t kWaveBytes = int64_t(1) << 24;     // of the shares written down at once
constexpr int64_t kFactors = 32;                     // multiplied between two looks at the exponent, at most

// Heads of whole mixtures.
template <class Real>
struct Block {
  Mixtures mixtures;
  int64_t first_mixture, first_head;
  int64_t offset, stride;  // in lanes: of the blocks before, and the heads in whole vectors
  Real* table;             // (n_items, stride) scores, or exp(scores - middle)
  Real* gamma;             // (n_annotators, stride), if scattered
  bool exponential;
  int64_t batch;  // factors that stay normal numbers
};

// What a task needs beside the data.
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

  Block<Real>* blocks;
  int64_t n_blocks, lanes;  // lanes: of all blocks
  double* extremes;         // (item ranges, 2, lanes) least and largest scores
  int64_t n_parts;
  int64_t* cuts;  // (n_parts + 1) annotators
  bool* bad;      // (n_parts, n_blocks) item rows out of range

  Real* reals;  // workspaces of the tasks
  double* doubles;
  int64_t capacity, task_reals, task_doubles;  // capacity: rows of a task's buffers

  // many items: one wave's weighted shares, and one gradient
  bool scattered;
  const Block<Real>* block;  // whose wave it is
  Real *wave, *gradient;
  int64_t wave_begin, wave_end;  // comparisons

  Workspace<Real> workspace(int64_t task, const Block<Real>& block) const {
    Workspace<Real> w;
    Real* r = reals + task * task_reals;
    w.shares = r, r += capacity * block.stride + kSlack;
    w.log_prob = r, r += capacity * block.stride + kSlack;
    w.gamma = r, r += block.stride + kSlack;
    w.gradient = r;
    double* d = doubles + task * task_doubles;
    w.joint = d, d += block.stride + kSlack;
    w.resp = d, d += block.stride + kSlack;
    w.evidence = d, d += block.mixtures.count + kSlack;
    w.total = d, d += block.mixtures.count + kSlack;
    w.mass = d, d += block.stride;
    w.log_likelihood = d;
    return w;
  }
};

// Rows become shares, and joint gets their log-probabilities.
template <class Real>
void forward(const Pass<Real>& p, const Block<Real>& b, const Choices<Real>& part, const Workspace<Real>& w) {
  const int64_t *chosen = p.chosen + part.first_row, *rejected = p.rejected + part.first_row;
  if (b.exponential) {
    MAXMIN_STRIPS(b.stride, (shares_of_exponentials<Real, V>(b.table + h, b.stride, chosen, rejected, part.n_rows,
                                                             b.batch, w.shares + h, w.joint + h)));
    return;
  }
  MAXMIN_STRIPS(b.stride, (differences<Real, V>(b.table + h, b.stride, chosen, rejected, part.n_rows, w.shares + h)));
  choose(part, b.stride, w.shares, w.log_prob);
  add_up(part, b.stride, w.log_prob, 0, part.count, w.joint);
}

template <class Real>
void backward(const Pass<Real>& p, const Block<Real>& b, const Choices<Real>& part, const Workspace<Real>& w) {
  const int64_t *chosen = p.chosen + part.first_row, *rejected = p.rejected + part.first_row;
  const Real* gamma = w.gamma;
  Real ones[kLanes * kWidth<Real>];
  if (part.weight) {  // then gamma v s in place, once
    weigh(part, b.stride, gamma, 0, part.count, w.shares);
    for (Real& one : ones) one = 1;
  }
  MAXMIN_STRIPS(b.stride, (scatter<Real, V>(w.shares + h, b.stride, chosen, rejected, part.n_rows,
                                            part.weight ? ones : gamma + h, w.gradient + h)));
}

// ---- tasks over annotators

template <class Real>
void annotators_task(void* context, int64_t task) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t part = task / p.n_blocks, n_all_heads = p.mixtures.n_heads;
  const Block<Real>& b = p.blocks[task % p.n_blocks];
  const int64_t n_heads = b.mixtures.n_heads, *indptr = p.data.indptr;
  const Choices<Real> rows = choices_between<Real>(p.data, indptr[p.cuts[part]], indptr[p.cuts[part + 1]]);
  // Cheap beside what follows them.
  p.bad[task] = !in_range(p.chosen + rows.first_row, rows.n_rows, p.n_items) ||
                !in_range(p.rejected + rows.first_row, rows.n_rows, p.n_items);
  if (p.bad[task]) return;
  const Real* log_weights = static_cast<const Real*>(p.mixtures.log_weights) + b.first_head;
  Real* log_resp = static_cast<Real*>(p.out.log_resp) + b.first_head;
  const Workspace<Real> w = p.workspace(task, b);
  if (!p.scattered) memset(w.gradient, 0, p.n_items * b.stride * sizeof(Real));
  memset(w.mass, 0, b.stride * sizeof(double));
  memset(w.log_likelihood, 0, b.mixtures.count * sizeof(double));
  for (int64_t a = p.cuts[part]; a < p.cuts[part + 1]; a++) {
    const int64_t begin = indptr[a], end = indptr[a + 1];
    for (int64_t h = 0; h < n_heads; h++) w.joint[h] = log_weights[h];
    for (int64_t h = n_heads; h < b.stride; h++) w.joint[h] = 0;
    int64_t c = begin, cut = begin;
    for (; c < end; c = cut) {
      cut = next_cut<Real>(p.data, c, end, p.capacity);
      forward(p, b, choices_between<Real>(p.data, c, cut), w);
      if (cut == end) break;
    }
    posterior(b.mixtures, w.joint, w.resp, w.evidence, w.total);
    for (int64_t g = 0; g < b.mixtures.count; g++) w.log_likelihood[g] += w.evidence[g];
    for (int64_t h = 0; h < n_heads; h++) {
      w.mass[h] += w.resp[h];
      w.gamma[h] = (Real)w.resp[h];
      log_resp[a * n_all_heads + h] = (Real)w.joint[h];
    }
    for (int64_t h = n_heads; h < b.stride; h++) w.gamma[h] = 0;
    if (p.scattered) {
      memcpy(b.gamma + a * b.stride, w.gamma, b.stride * sizeof(Real));
    } else if (c == begin) {  // its shares are all there
      if (begin < end) backward(p, b, choices_between<Real>(p.data, begin, end), w);
    } else {
      for (c = begin; c < end; c = cut) {
        cut = next_cut<Real>(p.data, c, end, p.capacity);
        const Choices<Real> piece = choices_between<Real>(p.data, c, cut);
        forward(p, b, piece, w);
        backward(p, b, piece, w);
      }
    }
  }
}

// ---- tasks over items: the tables, and sums of the gradients

// Is x the lesser? A NaN is less than all, so that it stays.
bool below(double x, double other) { return x < other || x != x; }

template <class Real>
void table_task(void* context, int64_t range) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t begin = range * kItemRange, end = least(p.n_items, begin + kItemRange);
  double *low = p.extremes + range * 2 * p.lanes, *high = low + p.lanes;
  for (int64_t h = 0; h < p.lanes; h++) low[h] = __builtin_inf(), high[h] = -__builtin_inf();
  for (const Block<Real>* b = p.blocks; b < p.blocks + p.n_blocks; b++, low += b[-1].stride, high += b[-1].stride)
    for (int64_t i = begin; i < end; i++) {
      const Real* from = p.scores + i * p.mixtures.n_heads + b->first_head;
      Real* to = b->table + i * b->stride;
      memcpy(to, from, b->mixtures.n_heads * sizeof(Real));
      for (int64_t h = b->mixtures.n_heads; h < b->stride; h++) to[h] = 0;
      for (int64_t h = 0; h < b->mixtures.n_heads; h++) {
        low[h] = below(from[h], low[h]) ? from[h] : low[h];
        high[h] = below(-from[h], -high[h]) ? from[h] : high[h];
      }
    }
}

// After table_task and choose_form: exponentials about the middle of each head's scores, which is in `extremes`.
template <class Real>
void exponential_task(void* context, int64_t range) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t begin = range * kItemRange, end = least(p.n_items, begin + kItemRange);
  for (const Block<Real>* b = p.blocks; b < p.blocks + p.n_blocks; b++)
    for (int64_t i = begin; b->exponential && i < end; i++)
      for (int64_t h = 0; h < b->stride; h += kWidth<double>) {
        Real* row = b->table + i * b->stride + h;
        const double* middle = p.extremes + b->offset + h;
        double t[kWidth<double>];
        for (int j = 0; j < kWidth<double>; j++) t[j] = (double)row[j] - middle[j];
        // In double, so that what the rounded difference of two scores loses is not lost twice.
        store(t, vexp(load(t)));
        for (int j = 0; j < kWidth<double>; j++) row[j] = (Real)t[j];
      }
}

// Exponentials serve a block if no head's scores lie too far apart; the heads' middles go to the front of `extremes`.
template <class Real>
void choose_form(const Pass<Real>& p, Block<Real>& b) {
  double *low = p.extremes + b.offset, *high = low + p.lanes, widest = 0;
  for (int64_t r = 1; r < ceil_div(p.n_items, kItemRange); r++)
    for (int64_t h = 0; h < b.mixtures.n_heads; h++) {
      const double l = low[r * 2 * p.lanes + h], u = high[r * 2 * p.lanes + h];
      low[h] = below(l, low[h]) ? l : low[h];
      high[h] = below(-u, -high[h]) ? u : high[h];
    }
  for (int64_t h = 0; h < b.mixtures.n_heads; h++) {
    const double width = high[h] - low[h];
    widest = below(-width, -widest) ? width : widest;
    low[h] += 0.5 * width;
  }
  for (int64_t h = b.mixtures.n_heads; h < b.stride; h++) low[h] = 0;
  b.exponential = widest <= Limits<Real>::range;
  b.batch = 4;
  while (b.batch < kFactors && 2 * b.batch * (widest + 0.7) < Limits<Real>::log_smallest) b.batch *= 2;
}

template <class Real>
void sum_task(void* context, int64_t range) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t begin = range * kItemRange, end = least(p.n_items, begin + kItemRange);
  Real* out = static_cast<Real*>(p.out.gradient);
  for (int64_t k = 0; k < p.n_blocks; k++) {
    const Block<Real>& b = p.blocks[k];
    const Real* first = p.workspace(k, b).gradient;
    for (int64_t i = begin; i < end; i++)
      for (int64_t h = 0; h < b.mixtures.n_heads; h += kWidth<Real>) {
        double sum[kWidth<Real>] = {};
        for (int64_t part = 0; part < p.n_parts; part++)
          add_wide<Real>(sum, load(first + part * p.n_blocks * p.task_reals + i * b.stride + h), 1);
        for (int64_t j = 0; j < least(kWidth<Real>, b.mixtures.n_heads - h); j++)
          out[i * p.mixtures.n_heads + b.first_head + h + j] = (Real)sum[j];
      }
  }
}

// ---- many items

// The weighted shares of one part of the wave.
template <class Real>
void wave_task(void* context, int64_t part) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const Block<Real>& b = *p.block;
  const int64_t size = p.wave_end - p.wave_begin, wave_row = row_of<Real>(p.data, p.wave_begin);
  const int64_t end = p.wave_begin + size * (part + 1) / p.n_parts;
  const Workspace<Real> w = p.workspace(part, b);
  int64_t cut;
  for (int64_t c = p.wave_begin + size * part / p.n_parts; c < end; c = cut) {
    cut = next_cut<Real>(p.data, c, end, p.capacity);
    const Choices<Real> piece = choices_between<Real>(p.data, c, cut);
    forward(p, b, piece, w);  // its sums are of no use here
    int64_t a = lower_bound(p.data.indptr, p.data.n_annotators, c + 1) - 1;
    for (int64_t from = c; from < cut; a++) {
      const int64_t to = least(cut, p.data.indptr[a + 1]);
      weigh(piece, b.stride, b.gamma + a * b.stride, from - c, to - c, w.shares);
      from = to;
    }
    memcpy(p.wave + (piece.first_row - wave_row) * b.stride, w.shares, piece.n_rows * b.stride * sizeof(Real));
  }
}

// One range of items picks its rows out of the wave.
template <class Real>
void pick_task(void* context, int64_t task) {
  const Pass<Real>& p = *static_cast<const Pass<Real>*>(context);
  const int64_t low = p.n_items * task / kTasks, size = p.n_items * (task + 1) / kTasks - low;
  const int64_t begin = row_of<Real>(p.data, p.wave_begin), end = row_of<Real>(p.data, p.wave_end);
  const int64_t stride = p.block->stride;
  Real* gradient = p.gradient + low * stride;
  for (int64_t i = begin; i < end; i++) {
    const Real* pull = p.wave + (i - begin) * stride;
    const uint64_t c = (uint64_t)(p.chosen[i] - low), r = (uint64_t)(p.rejected[i] - low);
    if (c < (uint64_t)size)
      for (int64_t h = 0; h < stride; h += kWidth<Real>)
        store(gradient + c * stride + h, load(gradient + c * stride + h) + load(pull + h));
    if (r < (uint64_t)size)
      for (int64_t h = 0; h < stride; h += kWidth<Real>)
        store(gradient + r * stride + h, load(gradient + r * stride + h) - load(pull + h));
  }
}

template <class Real>
void gather_waves(Pass<Real>& p, const Block<Real>& b) {
  const int64_t rows = most(p.capacity, kWaveBytes / (b.stride * (int64_t)sizeof(Real)));
  p.block = &b;
  memset(p.gradient, 0, p.n_items * b.stride * sizeof(Real));
  for (int64_t c = 0; c < p.data.n_comparisons; c = p.wave_end) {
    p.wave_begin = c;
    p.wave_end = next_cut<Real>(p.data, c, p.data.n_comparisons, rows);
    run_tasks(p.parallel, p.n_parts, wave_task<Real>, &p);
    run_tasks(p.parallel, kTasks, pick_task<Real>, &p);
  }
  Real* out = static_cast<Real*>(p.out.gradient) + b.first_head;
  for (int64_t i = 0; i < p.n_items; i++)
    memcpy(out + i * p.mixtures.n_heads, p.gradient + i * b.stride, b.mixtures.n_heads * sizeof(Real));
}

// ---- the whole

// Cuts the mixtures into blocks (NULL: only counts them).
template <class Real>
int64_t cut_mixtures(const maxmin_mixtures& mixtures, Block<Real>* blocks) {
  constexpr int64_t width = kLanes * kWidth<Real>;
  const int64_t* ptr = mixtures.mixture_indptr;
  int64_t n = 0, offset = 0;
  for (int64_t g = 0, end; g < mixtures.n_mixtures; g = end, n++) {
    end = g + 1;
    while (end < mixtures.n_mixtures && ptr[end + 1] - ptr[g] <= width) end++;
    if (!blocks) continue;
    const int64_t n_heads = ptr[end] - ptr[g], stride = round_up(most(1, n_heads), kWidth<Real>);
    blocks[n] = {{end - g, n_heads, ptr + g, mixtures.temperature, mixtures.hard != 0}, g, ptr[g], offset, stride};
    offset += stride;
  }
  return n;
}

template <class Real>
int run(Pass<Real>& p) {
  const int64_t n_ranges = ceil_div(p.n_items, kItemRange), n_tasks = p.n_parts * p.n_blocks;
  const maxmin_parallel* by_item = p.n_items * p.lanes > kSmallTable ? p.parallel : nullptr;
  run_tasks(by_item, n_ranges, table_task<Real>, &p);
  const bool plain = !p.data.choice_indptr && !p.data.comparison_weight && p.data.label_noise == 0;
  if (plain && !p.scattered && n_ranges > 0) {
    for (int64_t k = 0; k < p.n_blocks; k++) choose_form(p, p.blocks[k]);
    run_tasks(by_item, n_ranges, exponential_task<Real>, &p);
  }
  run_tasks(p.parallel, n_tasks, annotators_task<Real>, &p);
  for (int64_t task = 0; task < n_tasks; task++)
    if (p.bad[task]) return MAXMIN_BAD_ARGUMENT;
  memset(p.out.mass, 0, p.mixtures.n_heads * sizeof(double));
  memset(p.out.log_likelihood, 0, p.mixtures.n_mixtures * sizeof(double));
  for (int64_t task = 0; task < n_tasks; task++) {
    const Block<Real>& b = p.blocks[task % p.n_blocks];
    const Workspace<Real> w = p.workspace(task, b);
    for (int64_t h = 0; h < b.mixtures.n_heads; h++) p.out.mass[b.first_head + h] += w.mass[h];
    for (int64_t g = 0; g < b.mixtures.count; g++) p.out.log_likelihood[b.first_mixture + g] += w.log_likelihood[g];
  }
  if (!p.scattered) run_tasks(by_item, n_ranges, sum_task<Real>, &p);
  for (int64_t k = 0; k < p.n_blocks && p.scattered; k++) gather_waves(p, p.blocks[k]);
  return MAXMIN_OK;
}

template <class Real>
int pass(const maxmin_comparisons& data, const maxmin_mixtures& mixtures, const Real* scores, int64_t n_items,
         const int64_t* chosen, const int64_t* rejected, const maxmin_em_outputs& out,
         const maxmin_parallel* parallel) {
  Pass<Real> p{data, mixtures, scores, n_items, chosen, rejected, out, parallel};
  p.n_blocks = cut_mixtures<Real>(mixtures, nullptr);
  Scratch<Block<Real>> blocks(p.n_blocks);
  if (!blocks.data) return MAXMIN_OUT_OF_MEMORY;
  p.blocks = blocks.data;
  cut_mixtures(mixtures, p.blocks);
  int64_t widest = 1, most_mixtures = 1;
  for (int64_t k = 0; k < p.n_blocks; k++) {
    p.lanes += p.blocks[k].stride;
    widest = most(widest, p.blocks[k].stride);
    most_mixtures = most(most_mixtures, p.blocks[k].mixtures.count);
  }

  // A part's gradients are worth their place where several of its rows fall on each item.
  const int64_t wanted = clamp(data.n_rows / kPartRows, 1, most(kLeastParts, kTasks / most(1, p.n_blocks)));
  const int64_t affordable = kPartialBytes / (most(1, n_items * widest * p.n_blocks) * (int64_t)sizeof(Real));
  const int64_t with_gradients = clamp(least(data.n_rows / most(1, 4 * n_items), affordable), 1, wanted);
  p.scattered = wanted > 1 && with_gradients == 1;
  p.n_parts = p.scattered ? wanted : with_gradients;
  const int64_t n_tasks = p.n_parts * p.n_blocks;
  p.capacity = buffer_rows(data, kChunk);
  p.task_reals =
      round_up(2 * (p.capacity * widest + kSlack) + widest + kSlack + (p.scattered ? 0 : n_items * widest), kSlack);
  p.task_doubles = round_up(3 * widest + 3 * most_mixtures + 4 * kSlack, kSlack);

  Scratch<Real> tables(n_items * p.lanes), reals(n_tasks * p.task_reals);
  Scratch<double> doubles(n_tasks * p.task_doubles), extremes(ceil_div(n_items, kItemRange) * 2 * p.lanes);
  Scratch<int64_t> cuts(p.n_parts + 1);
  Scratch<bool> bad(n_tasks);
  Scratch<Real> gammas(p.scattered ? data.n_annotators * p.lanes : 0), gradient(p.scattered ? n_items * widest : 0);
  Scratch<Real> wave(p.scattered ? most(p.capacity * widest, kWaveBytes / (int64_t)sizeof(Real)) : 0);
  if (!tables.data || !reals.data || !doubles.data || !extremes.data || !cuts.data || !bad.data || !gammas.data ||
      !gradient.data || !wave.data)
    return MAXMIN_OUT_OF_MEMORY;
  p.reals = reals.data, p.doubles = doubles.data, p.extremes = extremes.data, p.cuts = cuts.data, p.bad = bad.data;
  p.gradient = gradient.data, p.wave = wave.data;
  for (int64_t k = 0; k < p.n_blocks; k++) {
    p.blocks[k].table = tables.data + n_items * p.blocks[k].offset;
    p.blocks[k].gamma = p.scattered ? gammas.data + data.n_annotators * p.blocks[k].offset : nullptr;
  }
  for (int64_t part = 0; part < p.n_parts; part++)
    p.cuts[part] = lower_bound(data.indptr, data.n_annotators, data.n_comparisons * part / p.n_parts);
  p.cuts[p.n_parts] = data.n_annotators;
  return run(p);
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
