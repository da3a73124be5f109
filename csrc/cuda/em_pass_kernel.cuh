// One EM pass over rows, one read of the features: MATH (2)-(8) and the group masses. README.md draws the plan.
//
// A cluster of C CTAs owns whole tiles of 32 rows; CTA r the columns [64 WARPS r, 64 WARPS (r + 1)), a warp one box of
// 64 columns in both products. A warp waits for its own box only and, being its only reader, refills it itself.
//
//   margins(t)    em_pass_margins.cuh    X W; sums of the warps; pushed to every CTA of the cluster
//   posterior(t)  em_pass_posterior.cuh  in each CTA alike: log p, sum over the annotator, softmax over the mixture
//   gradient(t)   em_pass_gradient.cuh   += X^T c from the same bytes; then the warp's slots are loaded anew
//
// With B blocks of heads the clusters Bq to Bq + B - 1 do this over the same tiles, a block each.
//
// An annotator that ends in the tile gives c = gamma v s; the rows of one that goes on add to an unscaled second sum,
// which is scaled when he ends, or written out where his chunk ends.
//
// Two inboxes are the whole handshake. CTA j pushes t + 2 after got(t + 1), which needs peer p's push(t + 1), which p
// does after the barrier that follows all its reads of inbox(t) and its arming of got(t + 2).
#pragma once
#include "em_pass_gradient.cuh"
#include "em_pass_margins.cuh"
#include "em_pass_posterior.cuh"

namespace maxmin::em {

template <class F>
__global__ void __launch_bounds__(F::kThreads, 1)
    em_pass_kernel(const __grid_constant__ CUtensorMap features, const Arguments a) {
  const Cta<F> cta(a);
  cta.set_up();
  Ring<F> ring(cta, features);
  Gradient<F> gradient(cta);
  Margins<F> weights(cta);
  Posterior<F> posterior(cta);
  auto margins = [&](int i) {
    ring.wait(i);
    if constexpr (F::kSteps >= kMargins) weights.multiply(i);
    if constexpr (F::kSteps >= kExchange) weights.exchange(i);
  };

  if (cta.n > 0) margins(0);
#pragma unroll 1
  for (int i = 0; i < cta.n; ++i) {
    posterior(i);
    const bool more = i + 1 < cta.n;
    if constexpr (F::kOverlap) {
      // A warp whose next box has landed hides the exchange behind its gradient. No sum is shared: the bits are the
      // same.
      if (more && ring.has(i + 1)) {
        margins(i + 1);
        gradient(i, ring);
        continue;
      }
    }
    gradient(i, ring);
    if (more) margins(i + 1);
  }

  gradient.write();
  posterior.write();
  cluster_sync();  // nobody leaves while a push is under way to a peer, or a peer's to it
}

}  // namespace maxmin::em
