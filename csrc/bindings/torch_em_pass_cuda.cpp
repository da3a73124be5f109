// maxmin_native::em_pass_cuda and what it is planned with. Empty in a build without CUDA.
#ifdef MAXMIN_WITH_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstring>
#include <tuple>

#include "em_pass_tiles.h"
#include "maxmin/em_pass_cuda.h"
#include "torch_tensor.h"

// Only a torch with CUDA has it: weak, so that the same binary loads into one without, where it is null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace maxmin::binding {
namespace {

void* current_stream(const Tensor& like) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "em_pass: this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  return stream;
}

void check_cuda(int error, const Tensor& features, int64_t n_heads) {
  STD_TORCH_CHECK(error == 0, "em_pass: the CUDA kernel failed with ", maxmin_cuda_error_name(error), " (", error,
                  ") on features of ", features.size(0), " x ", features.size(1), " and ", n_heads, " heads");
}

template <class T>
Tensor on_host(const Tensor& like, ScalarType dtype, const T* values, size_t n) {
  Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(n)}, dtype);
  if (n) std::memcpy(out.mutable_data_ptr(), values, n * sizeof(T));
  return out;
}

// sizes: (A) int64 on the CPU, rows of each annotator, none 0.
bool wants_carry(const Tensor& sizes) {
  return em::TileCutter::wants_carry(sizes.const_data_ptr<int64_t>(), sizes.size(0));
}

// lengths: rows of each comparison, none 0, without a value every row is one.
// -> tiles (256 bytes each, flat), tile_begin (n_clusters + 1), split_begin, split_annotator; on the CPU.
std::tuple<Tensor, Tensor, Tensor, Tensor> tiles(const Tensor& sizes, const MaybeTensor& lengths, bool carry,
                                                 int64_t n_clusters, int64_t chunk_rows) {
  check_dim(sizes, 1, "sizes");
  STD_TORCH_CHECK(n_clusters > 0 && chunk_rows > 0, "em_pass: expected clusters and rows of a chunk, got ", n_clusters,
                  " and ", chunk_rows);
  const int64_t* length = lengths ? lengths->const_data_ptr<int64_t>() : nullptr;
  const em::Tiles cut =
      em::TileCutter(sizes.const_data_ptr<int64_t>(), sizes.size(0), length, carry, chunk_rows).cut(n_clusters);
  return {on_host(sizes, ScalarType::Byte, reinterpret_cast<const uint8_t*>(cut.tiles.data()),
                  cut.tiles.size() * sizeof(em::Tile)),
          on_host(sizes, ScalarType::Int, cut.begin.data(), cut.begin.size()),
          on_host(sizes, ScalarType::Int, cut.split_begin.data(), cut.split_begin.size()),
          on_host(sizes, ScalarType::Long, cut.split_annotator.data(), cut.split_annotator.size())};
}

int64_t clusters(const Tensor& features, int64_t n_heads, bool carry) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  int n_clusters = 0;
  const bool half = features.scalar_type() == ScalarType::Half;
  check_cuda(maxmin_em_pass_cuda_clusters(n_heads, features.size(1), half, carry, &n_clusters), features, n_heads);
  return n_clusters;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> em_pass(const Tensor& features, const Tensor& tiles,
                                                   const Tensor& tile_begin, bool carry, const Tensor& split_begin,
                                                   const Tensor& split_annotator, int64_t n_annotators,
                                                   const Tensor& weight, const Tensor& log_weights,
                                                   const Tensor& mixture_begin, const Tensor& mixture_end,
                                                   const MaybeTensor& scales, bool sets, double label_noise, bool hard,
                                                   double temperature, int64_t n_chunks, int64_t steps) {
  check_dim(features, 2, "features");
  check_dim(weight, 2, "weight");
  check_size(weight, 1, features.size(1), "weight");
  const int64_t H = weight.size(0), D = weight.size(1);
  check_size(log_weights, 0, H, "log_weights");
  check_size(mixture_begin, 0, H, "mixture_begin");
  check_size(mixture_end, 0, H, "mixture_end");
  const bool half = features.scalar_type() == ScalarType::Half;
  STD_TORCH_CHECK((half || features.scalar_type() == ScalarType::BFloat16) && features.stride(1) == 1,
                  "features: expected rows of bfloat16 or float16 without gaps");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && weight.is_contiguous() &&
                      log_weights.scalar_type() == ScalarType::Float && log_weights.is_contiguous(),
                  "weight, log_weights: expected contiguous float32");
  STD_TORCH_CHECK(half == scales.has_value(), "scales: expected with float16 features and with no others");
  const float* scale = nullptr;
  if (scales) {
    check_size(*scales, 0, H + 1, "scales");
    STD_TORCH_CHECK(scales->scalar_type() == ScalarType::Float && scales->is_contiguous(),
                    "scales: expected contiguous float32");
    scale = scales->const_data_ptr<float>();
  }
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const int64_t Q = tile_begin.size(0) - 1, S = split_annotator.size(0);
  const auto empty = [&](std::initializer_list<int64_t> sizes, ScalarType dtype) {
    return torch::stable::new_empty(features, sizes, dtype);
  };
  Tensor log_resp = empty({n_annotators, H}, ScalarType::Float), gradient = empty({H, D}, ScalarType::Float);
  Tensor evidence = empty({H}, ScalarType::Double), mass = empty({H}, ScalarType::Double);
  Tensor parts = empty({Q, H, D}, ScalarType::Float), chunk_gradients = empty({n_chunks, H, D}, ScalarType::Float);
  Tensor chunk_sums = empty({n_chunks, H, 2}, ScalarType::Float), sums = empty({2, Q + S, H}, ScalarType::Double);
  double* first = sums.mutable_data_ptr<double>();
  const maxmin_em_cuda_plan plan{tiles.const_data_ptr(),
                                 tile_begin.const_data_ptr<int32_t>(),
                                 Q,
                                 carry,
                                 static_cast<int>(steps),
                                 n_chunks,
                                 S,
                                 split_begin.const_data_ptr<int32_t>(),
                                 split_annotator.const_data_ptr<int64_t>()};
  const maxmin_em_cuda_heads heads{H,
                                   D,
                                   weight.const_data_ptr<float>(),
                                   log_weights.const_data_ptr<float>(),
                                   mixture_begin.const_data_ptr<int32_t>(),
                                   mixture_end.const_data_ptr<int32_t>(),
                                   half,
                                   scale,
                                   scale ? scale + H : nullptr};
  const maxmin_em_cuda_objective objective{sets, hard, label_noise, temperature};
  const maxmin_em_cuda_outputs out{log_resp.mutable_data_ptr<float>(), evidence.mutable_data_ptr<double>(),
                                   mass.mutable_data_ptr<double>(), gradient.mutable_data_ptr<float>()};
  const maxmin_em_cuda_scratch scratch{first,
                                       first + Q * H,
                                       parts.mutable_data_ptr<float>(),
                                       chunk_sums.mutable_data_ptr<float>(),
                                       chunk_gradients.mutable_data_ptr<float>(),
                                       first + 2 * Q * H,
                                       first + (2 * Q + S) * H};
  check_cuda(maxmin_em_pass_cuda(&plan, &heads, &objective, features.const_data_ptr(), features.size(0),
                                 features.stride(0), &out, &scratch, current_stream(features)),
             features, H);
  return {log_resp, evidence, mass, gradient};
}

}  // namespace
}  // namespace maxmin::binding

STABLE_TORCH_LIBRARY_FRAGMENT(maxmin_native, m) {
  m.def("em_pass_wants_carry(Tensor sizes) -> bool");
  m.def(
      "em_pass_tiles(Tensor sizes, Tensor? lengths, bool carry, int n_clusters, int chunk_rows) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("em_pass_clusters(Tensor features, int n_heads, bool carry) -> int");
  m.def(
      "em_pass_cuda(Tensor features, Tensor tiles, Tensor tile_begin, bool carry, Tensor split_begin, "
      "Tensor split_annotator, int n_annotators, Tensor weight, Tensor log_weights, Tensor mixture_begin, "
      "Tensor mixture_end, Tensor? scales, bool sets, float label_noise, bool hard, float temperature, int n_chunks, "
      "int steps=5) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CPU, m) {
  m.impl("em_pass_wants_carry", TORCH_BOX(&maxmin::binding::wants_carry));
  m.impl("em_pass_tiles", TORCH_BOX(&maxmin::binding::tiles));
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CUDA, m) {
  m.impl("em_pass_clusters", TORCH_BOX(&maxmin::binding::clusters));
  m.impl("em_pass_cuda", TORCH_BOX(&maxmin::binding::em_pass));
}
#endif
