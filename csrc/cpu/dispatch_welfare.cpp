// The C interface of welfare.h: the best instruction set that this processor has.
#include "isa.h"
#include "maxmin/welfare.h"

MAXMIN_DECLARE(int welfare_fwd(const maxmin_welfare* welfare, const maxmin_matrix* utilities, void* value,
                               void* weights, const maxmin_parallel* parallel))
MAXMIN_DECLARE(int reduce_fwd(const maxmin_welfare* welfare, const maxmin_matrix* rewards, const uint8_t* mask,
                              int64_t mask_stride_row, int64_t mask_stride_column, const void* running, void* value,
                              void* weights, void* utilities, const maxmin_parallel* parallel))
MAXMIN_DECLARE(int reduce_bwd(const maxmin_matrix* rewards, const uint8_t* mask, int64_t mask_stride_row,
                              int64_t mask_stride_column, const void* grad_value, const void* grad_utilities,
                              const void* weights, void* grad_rewards, const maxmin_parallel* parallel))

extern "C" int maxmin_welfare_fwd_cpu(const maxmin_welfare* welfare, const maxmin_matrix* utilities, void* value,
                                      void* weights, const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(welfare_fwd, welfare, utilities, value, weights, parallel);
}

extern "C" int maxmin_reduce_fwd_cpu(const maxmin_welfare* welfare, const maxmin_matrix* rewards, const uint8_t* mask,
                                     int64_t mask_stride_row, int64_t mask_stride_column, const void* running,
                                     void* value, void* weights, void* utilities, const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(reduce_fwd, welfare, rewards, mask, mask_stride_row, mask_stride_column, running, value,
                         weights, utilities, parallel);
}

extern "C" int maxmin_reduce_bwd_cpu(const maxmin_matrix* rewards, const uint8_t* mask, int64_t mask_stride_row,
                                     int64_t mask_stride_column, const void* grad_value, const void* grad_utilities,
                                     const void* weights, void* grad_rewards, const maxmin_parallel* parallel) {
  return MAXMIN_DISPATCH(reduce_bwd, rewards, mask, mask_stride_row, mask_stride_column, grad_value, grad_utilities,
                         weights, grad_rewards, parallel);
}
