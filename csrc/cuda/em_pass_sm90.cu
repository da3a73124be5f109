// Launches of the EM pass that reads the features once. COMPILED AND EMULATED, NEVER YET RUN ON A DEVICE: opt-in.
#include "maxmin/em_pass_cuda.h"
#include "sm90.cuh"
// After sm90.cuh, whose instructions it uses.
#include "em_pass_join.cuh"
#include "em_pass_kernel.cuh"
#include "em_pass_variants.h"

namespace maxmin::em {
namespace {

// The driver's cuTensorMapEncodeTiled, found at run time: the library must load where there is no driver.
cudaError_t tensor_map_encoder(decltype(&cuTensorMapEncodeTiled)* encode) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
  if (error != cudaSuccess) return error;
  if (status != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  *encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  return cudaSuccess;
}

// Boxes of 16 rows and 64 columns; what lies outside is read as zeros.
cudaError_t describe_features(const void* features, int64_t n_rows, int64_t n_features, int64_t stride_row, bool half,
                              CUtensorMap* map) {
  decltype(&cuTensorMapEncodeTiled) encode = nullptr;
  if (const cudaError_t error = tensor_map_encoder(&encode)) return error;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(n_features), static_cast<cuuint64_t>(n_rows)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(stride_row) * 2};
  const cuuint32_t box[2] = {64, 16}, step[2] = {1, 1};
  const CUresult result =
      encode(map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
             const_cast<void*>(features), sizes, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A launch of F, whose attribute must outlive the configuration.
template <class F>
struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster{};

  explicit Launch(unsigned n_clusters, cudaStream_t stream = nullptr) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(F::C), 1, 1};
    config.gridDim = n_clusters * F::C;
    config.blockDim = F::kThreads;
    config.dynamicSmemBytes = F::kBytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  static cudaError_t allow_shared_memory() {
    return cudaFuncSetAttribute(em_pass_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, F::kBytes);
  }
};

constexpr int kJoinThreads = 256;
unsigned blocks(int64_t n) { return static_cast<unsigned>((n + kJoinThreads - 1) / kJoinThreads); }

}  // namespace
}  // namespace maxmin::em

using namespace maxmin::em;

extern "C" int maxmin_em_pass_cuda_clusters(int64_t n_heads, int64_t n_features, int half, int carry, int* n_clusters) {
  const Wanted wanted{heads_of_block(n_heads, n_features), n_features, half != 0, carry != 0};
  return visit_variant(wanted, cudaErrorInvalidValue, [&](auto variant) -> int {
    using F = decltype(variant);
    if (const cudaError_t error = Launch<F>::allow_shared_memory()) return error;
    const Launch<F> one(1);
    const cudaError_t error = cudaOccupancyMaxActiveClusters(n_clusters, em_pass_kernel<F>, &one.config);
    *n_clusters = shares_of(*n_clusters, head_blocks(n_heads, n_features));
    return error;
  });
}

extern "C" int maxmin_em_pass_cuda(const maxmin_em_cuda_plan* plan, const maxmin_em_cuda_heads* heads,
                                   const maxmin_em_cuda_objective* objective, const void* features, int64_t n_rows,
                                   int64_t stride_row, const maxmin_em_cuda_outputs* out,
                                   const maxmin_em_cuda_scratch* scratch, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const Arguments a =
      arguments_of(*plan, *heads, head_blocks(heads->n_heads, heads->n_features), *objective, *out, *scratch);
  CUtensorMap map;
  const Wanted wanted{heads_of_block(heads->n_heads, heads->n_features), heads->n_features, heads->half != 0,
                      plan->carry != 0, plan->steps};
  if (const cudaError_t error = describe_features(features, n_rows, heads->n_features, stride_row, wanted.half, &map)) {
    return error;
  }
  const int error = visit_variant(wanted, cudaErrorInvalidValue, [&](auto variant) -> int {
    using F = decltype(variant);
    if (const cudaError_t e = Launch<F>::allow_shared_memory()) return e;
    const Launch<F> launch(static_cast<unsigned>(plan->n_clusters * a.head_blocks), stream);
    return cudaLaunchKernelEx(&launch.config, em_pass_kernel<F>, map, a);
  });
  if (error != cudaSuccess) return error;
  const Split split{plan->n_split, plan->split_begin, plan->split_annotator, scratch->split_resp,
                    scratch->split_evidence};
  const int H = static_cast<int>(heads->n_heads);
  if (plan->n_split > 0) {
    split_posterior_kernel<<<blocks(plan->n_split * H), kJoinThreads, 0, stream>>>(a, split, H);
    if (const cudaError_t e = cudaGetLastError()) return e;
  }
  join_kernel<<<blocks(H * heads->n_features), kJoinThreads, 0, stream>>>(a, split, H, plan->n_clusters, out->evidence,
                                                                          out->mass, out->gradient);
  return cudaGetLastError();
}

extern "C" const char* maxmin_cuda_error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
