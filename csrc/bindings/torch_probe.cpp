// maxmin_native::probe_*_cpu: what the processor can do at best on torch's threads, for the floors of benchmarks.
#include "maxmin/probe.h"
#include "torch_tensor.h"

namespace maxmin::binding {
namespace {

constexpr int64_t kTasks = 64;

struct Piece {
  const char* data;
  int64_t bytes;
  int64_t result[kTasks];
};

// Reads a contiguous tensor once. The result is good for nothing but to depend on every byte.
int64_t probe_read(const Tensor& data) {
  STD_TORCH_CHECK(data.is_contiguous(), "data: expected a contiguous tensor");
  Piece piece{
      static_cast<const char*>(data.const_data_ptr()), data.numel() * static_cast<int64_t>(data.element_size()), {}};
  parallel()->run(
      kTasks,
      [](void* context, int64_t t) {
        Piece& p = *static_cast<Piece*>(context);
        const int64_t begin = p.bytes * t / kTasks / 64 * 64, end = p.bytes * (t + 1) / kTasks / 64 * 64;
        p.result[t] = maxmin_probe_read(p.data + begin, end - begin);
      },
      &piece);
  int64_t sum = 0;
  for (int64_t r : piece.result) sum ^= r;
  return sum;
}

// `rounds` rounds of multiply-adds in each of kTasks tasks: the flops that were done. `like` chooses the device.
int64_t probe_fma(const Tensor& like, int64_t rounds) {
  Piece piece{nullptr, rounds, {}};
  parallel()->run(
      kTasks,
      [](void* context, int64_t t) {
        Piece& p = *static_cast<Piece*>(context);
        p.result[t] = maxmin_probe_fma(p.bytes);
      },
      &piece);
  int64_t sum = 0;
  for (int64_t r : piece.result) sum += r;
  return sum;
}

}  // namespace
}  // namespace maxmin::binding

STABLE_TORCH_LIBRARY_FRAGMENT(maxmin_native, m) {
  m.def("probe_read_cpu(Tensor data) -> int");
  m.def("probe_fma_cpu(Tensor like, int rounds) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(maxmin_native, CPU, m) {
  m.impl("probe_read_cpu", TORCH_BOX(&maxmin::binding::probe_read));
  m.impl("probe_fma_cpu", TORCH_BOX(&maxmin::binding::probe_fma));
}
