// What the kernel asks of the device, an instruction a function (PTX ISA 8.0, sm_90a).
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace maxmin::em {

#define MAXMIN_DEVICE __device__ __forceinline__

MAXMIN_DEVICE uint8_t* dynamic_shared() {
  extern __shared__ uint8_t raw[];
  return raw;
}
MAXMIN_DEVICE uint32_t shared_addr(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- clusters
MAXMIN_DEVICE uint32_t cluster_rank() {
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
MAXMIN_DEVICE uint32_t cluster_id() {
  uint32_t r;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(r));
  return r;
}
MAXMIN_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same shared address in another CTA of the cluster.
MAXMIN_DEVICE uint32_t peer_addr(uint32_t addr, uint32_t cta) {
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(addr), "r"(cta));
  return r;
}
template <int kId, int kThreads>
MAXMIN_DEVICE void named_barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

// ---- mbarriers
MAXMIN_DEVICE void mbar_init(uint64_t* bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_addr(bar)), "r"(count) : "memory");
}
MAXMIN_DEVICE void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
MAXMIN_DEVICE void mbar_expect(uint64_t* bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_addr(bar)), "r"(bytes) : "memory");
}
MAXMIN_DEVICE bool mbar_test(uint64_t* bar, int parity) {
  uint32_t ok;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(ok)
               : "r"(shared_addr(bar)), "r"(parity)
               : "memory");
  return ok;
}
// kCluster: what peers wrote before they arrived is seen.
template <bool kCluster>
MAXMIN_DEVICE bool mbar_try(uint64_t* bar, int parity) {
  uint32_t ok;
  if constexpr (kCluster) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ok)
        : "r"(shared_addr(bar)), "r"(parity)
        : "memory");
  } else {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(ok)
                 : "r"(shared_addr(bar)), "r"(parity)
                 : "memory");
  }
  return ok;
}
// Names of the barriers. With MAXMIN_DEBUG a wait ends after a while and says which one it was.
enum BarrierName : int { kFull, kDescribed, kGot };
template <int kName, bool kCluster = false>
MAXMIN_DEVICE void mbar_wait(uint64_t* bar, int parity) {
#ifdef MAXMIN_DEBUG
  for (int n = 0; !mbar_try<kCluster>(bar, parity); ++n) {
    if (n > 1 << 20) {
      printf("em_pass: stuck at barrier %d (%u), parity %d, block %d, thread %d\n", kName, shared_addr(bar), parity,
             static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x));
      __trap();
    }
  }
#else
  while (!mbar_try<kCluster>(bar, parity)) {
  }
#endif
}

// ---- asynchronous copies, counted by an mbarrier
MAXMIN_DEVICE uint64_t read_once_policy() {
  uint64_t p;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
  return p;
}
// Of what another cluster reads at about the same time: it stays in the L2 cache as anything else does.
MAXMIN_DEVICE uint64_t read_again_policy() {
  uint64_t p;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
  return p;
}
MAXMIN_DEVICE void copy_box(uint32_t dst, const CUtensorMap* map, int column, int row, uint64_t* bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2,%3}], [%4], %5;" ::"r"(dst),
      "l"(map), "r"(column), "r"(row), "r"(shared_addr(bar)), "l"(policy)
      : "memory");
}
MAXMIN_DEVICE void copy_bytes(uint32_t dst, const void* src, int bytes, uint64_t* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
               "l"(src), "r"(bytes), "r"(shared_addr(bar))
               : "memory");
}
// dst and bar of the same CTA, maybe a peer.
MAXMIN_DEVICE void push(uint32_t dst, uint32_t bar, float4 v) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(dst),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(bar)
      : "memory");
}

// ---- products
MAXMIN_DEVICE void load_matrices(uint32_t (&r)[4], uint32_t addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}
MAXMIN_DEVICE void load_matrices_transposed(uint32_t (&r)[4], uint32_t addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}
// kHalf: of float16, else of bfloat16, here and below.
template <bool kHalf>
MAXMIN_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kHalf) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// ---- numbers in parts
template <bool kHalf>
MAXMIN_DEVICE uint16_t rounded(float x) {
  if constexpr (kHalf) {
    return __half_as_ushort(__float2half_rn(x));
  } else {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  }
}
template <bool kHalf>
MAXMIN_DEVICE uint32_t packed(float low, float high) {
  return rounded<kHalf>(low) | uint32_t(rounded<kHalf>(high)) << 16;
}
// What rounding leaves of x, exactly.
template <bool kHalf>
MAXMIN_DEVICE float rest(float x) {
  if constexpr (kHalf) {
    return __fsub_rn(x, __half2float(__float2half_rn(x)));
  } else {
    return __fsub_rn(x, __bfloat162float(__float2bfloat16_rn(x)));
  }
}
// a + b = sum + error, exactly.
MAXMIN_DEVICE void two_sum(float a, float b, float& sum, float& error) {
  sum = __fadd_rn(a, b);
  const float t = __fsub_rn(sum, a);
  error = __fadd_rn(__fsub_rn(a, __fsub_rn(sum, t)), __fsub_rn(b, t));
}

}  // namespace maxmin::em
