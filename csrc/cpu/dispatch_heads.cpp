// The C interface of heads.h: the best instruction set that this processor has.
#include "isa.h"
#include "maxmin/heads.h"

MAXMIN_DECLARE(int heads_fwd(const maxmin_rows* rows, const maxmin_heads* heads, void* out,
                             const maxmin_parallel* parallel))
MAXMIN_DECLARE(int heads_bwd(const maxmin_rows* rows, const maxmin_heads* heads, const void* grad, void* grad_features,
                             void* grad_rejected, void* grad_weight, void* grad_bias, const maxmin_parallel* parallel))

extern "C" int maxmin_heads_fwd_cpu(const maxmin_rows* rows, const maxmin_heads* heads, void* out,
                                    const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(heads_fwd, rows, heads, out, parallel);
}

extern "C" int maxmin_heads_bwd_cpu(const maxmin_rows* rows, const maxmin_heads* heads, const void* grad,
                                    void* grad_features, void* grad_rejected, void* grad_weight, void* grad_bias,
                                    const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(heads_bwd, rows, heads, grad, grad_features, grad_rejected, grad_weight, grad_bias, parallel);
}
