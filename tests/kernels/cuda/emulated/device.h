// A device in software, for csrc/cuda: threads are fibers, asynchronous writes land in random order after any delay.
// Named and parameterised as csrc/cuda/sm90.cuh. Follows the PTX ISA, not csrc/cuda/em_pass_maps.h.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct int4 {
  int x, y, z, w;
};
inline float2 make_float2(float a, float b) { return {a, b}; }
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
inline int4 make_int4(int a, int b, int c, int d) { return {a, b, c, d}; }
inline uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline float bf16_value(uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// IEEE 754's binary16: 10 bits behind the point, exponents -14 to 15, below them steps of 2^-24.
inline uint16_t to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7fff;
  if (x == 0.f) return sign;
  const float size = std::fabs(x);
  const int exponent = size < 0x1p-14f ? -14 : std::min(std::ilogb(size), 16);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(double(size), 10 - exponent)));  // ties to even
  // A carry out of the mantissa counts the exponent up, to infinity at last.
  return sign | static_cast<uint16_t>(std::min(((exponent + 14) << 10) + steps, 0x7c00));
}
inline float half_value(uint32_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
  float x = std::ldexp(float(exponent ? 0x400 + mantissa : mantissa), (exponent ? exponent : 1) - 25);
  if (exponent == 31) x = mantissa ? NAN : INFINITY;
  return bits & 0x8000 ? -x : x;
}
inline int __float_as_int(float x) {
  int i;
  std::memcpy(&i, &x, 4);
  return i;
}
inline float __int_as_float(int i) {
  float x;
  std::memcpy(&x, &i, 4);
  return x;
}
inline float __expf(float x) { return expf(x); }
using std::isnan;
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __fdividef(float a, float b) { return a / b; }

// Features behind a "tensor map"; pitch in elements.
struct CUtensorMap {
  const uint16_t* x;
  int64_t n_rows, n_features, pitch;
};
struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx, blockDim;

#define MAXMIN_DEVICE inline

namespace device {

struct Barrier {  // an mbarrier: its transaction count may go below zero
  int count = 0, pending = 0;
  long bytes = 0;
  unsigned phase = 0;
  void turn() {
    if (!pending && !bytes) ++phase, pending = count;
  }
};
struct Warp {
  int arrived = 0;
  unsigned generation = 0;
  uint32_t in[32][12], out[32][4];
};
struct Meeting {  // bar.sync
  int arrived = 0;
  unsigned generation = 0;
};
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  std::function<bool()> waits_for;
  bool done = false;
  int cta, thread;
};

static std::vector<std::vector<uint8_t>> memory;  // shared memory of each CTA
static std::unordered_map<const void*, Barrier> barriers;
static std::vector<std::vector<Warp>> warps;
static std::vector<std::array<Meeting, 4>> named;
static Meeting cluster;
static std::vector<std::unique_ptr<Fiber>> fibers;
static Fiber* current;
static ucontext_t scheduler;
static std::vector<std::function<void()>> in_flight;
static std::mt19937 random_bits;
static int cluster_index, n_threads, n_ctas;
static std::function<void()> body;

inline uint8_t* shared(int cta) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory[cta].data()) + 1023) & ~uintptr_t(1023));
}
// An address carries the CTA it was mapped to, plus one, in its top byte.
inline uint8_t* at(uint32_t a) { return shared(a >> 24 ? int(a >> 24) - 1 : current->cta) + (a & 0xffffff); }
inline void wait_for(std::function<bool()> condition) {
  if (condition()) return;
  current->waits_for = std::move(condition);
  swapcontext(&current->context, &scheduler);
}
inline void meet(Meeting& m, int n) {
  const unsigned g = m.generation;
  if (++m.arrived == n) {
    m.arrived = 0, ++m.generation;
  } else {
    wait_for([&m, g] { return m.generation != g; });
  }
}
// A warp-wide instruction, done by the last lane that arrives.
template <class F>
const uint32_t* together(const uint32_t* in, int n, F instruction) {
  Warp& w = warps[current->cta][current->thread / 32];
  const int lane = current->thread % 32;
  std::memcpy(w.in[lane], in, 4 * n);
  const unsigned g = w.generation;
  if (++w.arrived == 32) {
    w.arrived = 0;
    instruction(w);
    ++w.generation;
  } else {
    wait_for([&w, g] { return w.generation != g; });
  }
  return w.out[lane];
}
inline void start() {
  body();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

// Runs one cluster; null, or what went wrong. The seed decides the interleaving.
inline const char* run(int ctas, int threads, int bytes, int index, unsigned seed, std::function<void()> kernel) {
  n_ctas = ctas, n_threads = threads, cluster_index = index, body = std::move(kernel);
  random_bits.seed(seed);
  barriers.clear(), in_flight.clear(), fibers.clear(), cluster = {};
  memory.assign(ctas, std::vector<uint8_t>(bytes + 2048, 0xff));
  warps.assign(ctas, std::vector<Warp>(threads / 32));
  named.assign(ctas, {});
  for (int c = 0; c < ctas; ++c) {
    for (int t = 0; t < threads; ++t) {
      auto f = std::make_unique<Fiber>();
      f->cta = c, f->thread = t;
      f->stack.resize(98304);
      getcontext(&f->context);
      f->context.uc_stack.ss_sp = f->stack.data(), f->context.uc_stack.ss_size = f->stack.size();
      f->context.uc_link = nullptr;
      makecontext(&f->context, start, 0);
      fibers.push_back(std::move(f));
    }
  }
  // Some warps are far slower than others.
  const int n_warps = ctas * threads / 32;
  std::vector<double> speed(n_warps);
  for (double& s : speed) s = std::pow(random_bits() / 4294967296., 3) + .02;
  std::discrete_distribution<int> pick(speed.begin(), speed.end());
  const unsigned eager = 1 + random_bits() % 40;
  size_t left = fibers.size();
  for (int idle = 0; left;) {
    if (!in_flight.empty() && (idle > 50 || random_bits() % 40 < eager)) {
      const size_t i = random_bits() % in_flight.size();
      auto write = std::move(in_flight[i]);
      in_flight[i] = std::move(in_flight.back());
      in_flight.pop_back();
      write();
      idle = 0;
      continue;
    }
    const int w = idle > 50 ? (idle - 51) % n_warps : pick(random_bits);
    bool moved = false;
    for (int l = 0; l < 32; ++l) {
      Fiber* f = fibers[w * 32 + l].get();
      if (f->done || (f->waits_for && !f->waits_for())) continue;
      f->waits_for = nullptr, current = f, threadIdx.x = f->thread, moved = true;
      swapcontext(&scheduler, &f->context);
      if (f->done) --left;
    }
    idle = moved ? 0 : idle + 1;
    if (idle > 51 + n_warps && in_flight.empty()) return "deadlock";
  }
  return in_flight.empty() ? nullptr : "writes in flight at exit";
}

}  // namespace device

namespace maxmin::em {

inline uint8_t* dynamic_shared() { return device::shared(device::current->cta); }
inline uint32_t shared_addr(const void* p) { return uint32_t(static_cast<const uint8_t*>(p) - dynamic_shared()); }
inline uint32_t peer_addr(uint32_t a, uint32_t cta) { return a | (cta + 1) << 24; }
inline uint32_t cluster_rank() { return device::current->cta; }
inline uint32_t cluster_id() { return device::cluster_index; }
inline void cluster_sync() { device::meet(device::cluster, device::n_ctas * device::n_threads); }
template <int kId, int kThreads>
void named_barrier() {
  device::meet(device::named[device::current->cta][kId], kThreads);
}

inline void mbar_init(uint64_t* b, int n) {
  auto& x = device::barriers[b];
  x = {};
  x.count = x.pending = n;
}
inline void mbar_init_fence() {}
inline void mbar_expect(uint64_t* b, int bytes) {
  auto& x = device::barriers.at(b);
  x.bytes += bytes, --x.pending;
  x.turn();
}
inline bool mbar_test(uint64_t* b, int parity) { return (device::barriers.at(b).phase & 1) != unsigned(parity); }
enum BarrierName : int { kFull, kDescribed, kGot };
template <int kName, bool kCluster = false>
void mbar_wait(uint64_t* b, int parity) {
  auto* x = &device::barriers.at(b);
  device::wait_for([x, parity] { return (x->phase & 1) != unsigned(parity); });
}
inline void landed(const void* b, int bytes) {
  auto& x = device::barriers.at(b);
  x.bytes -= bytes;
  x.turn();
}

inline uint64_t read_once_policy() { return 0; }
inline uint64_t read_again_policy() { return 1; }
// Bits 4-6 of the linear address are xored with bits 7-9; what lies outside the features is zero.
inline void copy_box(uint32_t dst, const CUtensorMap* m, int column, int row, uint64_t* bar, uint64_t) {
  uint8_t* d = device::at(dst);
  device::in_flight.push_back([=] {
    for (int r = 0; r < 16; ++r) {
      for (int c = 0; c < 64; ++c) {
        const bool inside = row + r < m->n_rows && column + c < m->n_features;
        const uint16_t v = inside ? m->x[(row + r) * m->pitch + column + c] : 0;
        const int a = r * 128 + c * 2;
        std::memcpy(d + (a ^ (((a >> 7) & 7) << 4)), &v, 2);
      }
    }
    landed(bar, 2048);
  });
}
inline void copy_bytes(uint32_t dst, const void* src, int bytes, uint64_t* bar) {
  uint8_t* d = device::at(dst);
  device::in_flight.push_back([=] {
    std::memcpy(d, src, bytes);
    landed(bar, bytes);
  });
}
inline void push(uint32_t dst, uint32_t bar, float4 v) {
  uint8_t *d = device::at(dst), *b = device::at(bar);
  device::in_flight.push_back([=] {
    std::memcpy(d, &v, 16);
    landed(b, 16);
  });
}

// Lanes 8i..8i+7 name the rows of matrix i, which lands in register i.
inline void load_any(uint32_t (&r)[4], uint32_t addr, bool transposed) {
  const uint8_t* base = dynamic_shared();
  const uint32_t* out = device::together(&addr, 1, [=](device::Warp& w) {
    for (int i = 0; i < 4; ++i) {
      for (int l = 0; l < 32; ++l) {
        uint16_t e[2];
        for (int t = 0; t < 2; ++t) {
          const int row = transposed ? (l % 4) * 2 + t : l / 4, col = transposed ? l / 4 : (l % 4) * 2 + t;
          std::memcpy(&e[t], base + w.in[8 * i + row][0] + 2 * col, 2);
        }
        w.out[l][i] = e[0] | uint32_t(e[1]) << 16;
      }
    }
  });
  std::memcpy(r, out, 16);
}
inline void load_matrices(uint32_t (&r)[4], uint32_t addr) { load_any(r, addr, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t addr) { load_any(r, addr, true); }
template <bool kHalf>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  uint32_t in[10] = {a[0], a[1], a[2], a[3], b0, b1};
  std::memcpy(in + 6, d, 16);
  const uint32_t* out = device::together(in, 10, [](device::Warp& w) {
    float A[16][16], B[16][8];
    auto half = [&](int l, int reg, int i) {
      const uint32_t bits = (w.in[l][reg] >> (16 * (i & 1))) & 0xffff;
      return kHalf ? half_value(bits) : bf16_value(bits);
    };
    for (int l = 0; l < 32; ++l) {
      const int g = l / 4, t = (l % 4) * 2;
      for (int i = 0; i < 8; ++i) A[(i / 2) % 2 ? g + 8 : g][t + (i & 1) + (i < 4 ? 0 : 8)] = half(l, i / 2, i);
      for (int i = 0; i < 4; ++i) B[t + (i & 1) + (i < 2 ? 0 : 8)][g] = half(l, 4 + i / 2, i);
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        float s;
        std::memcpy(&s, &w.in[l][6 + i], 4);
        for (int k = 0; k < 16; ++k) s += A[l / 4 + (i < 2 ? 0 : 8)][k] * B[k][(l % 4) * 2 + (i & 1)];
        std::memcpy(&w.out[l][i], &s, 4);
      }
    }
  });
  std::memcpy(d, out, 16);
}

template <bool kHalf>
uint16_t rounded(float x) {
  return kHalf ? to_half(x) : to_bf16(x);
}
template <bool kHalf>
uint32_t packed(float low, float high) {
  return rounded<kHalf>(low) | uint32_t(rounded<kHalf>(high)) << 16;
}
template <bool kHalf>
float rest(float x) {
  return x - (kHalf ? half_value(to_half(x)) : bf16_value(to_bf16(x)));
}
inline void two_sum(float a, float b, float& sum, float& error) {
  const volatile float s = a + b, t = s - a, u = s - t;
  sum = s, error = (a - u) + (b - t);
}

}  // namespace maxmin::em

template <class T>
T shuffled(T v, int source) {
  uint32_t in[2] = {};
  std::memcpy(in, &v, sizeof(T));
  device::together(in, 2, [](device::Warp&) {});
  T r;
  std::memcpy(&r, device::warps[device::current->cta][device::current->thread / 32].in[source], sizeof(T));
  device::together(in, 0, [](device::Warp&) {});  // everybody has read
  return r;
}
template <class T>
T __shfl_up_sync(unsigned, T v, int o) {
  const int lane = device::current->thread % 32;
  return shuffled(v, lane - o < 0 ? lane : lane - o);
}
template <class T>
T __shfl_sync(unsigned, T v, int s) {
  return shuffled(v, s & 31);
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int o) {
  const int lane = device::current->thread % 32;
  return shuffled(v, lane ^ o);
}
inline bool __all_sync(unsigned, bool p) {
  const uint32_t in = p;
  return device::together(&in, 1, [](device::Warp& w) {
    uint32_t all = 1;
    for (int l = 0; l < 32; ++l) all &= w.in[l][0];
    for (int l = 0; l < 32; ++l) w.out[l][0] = all;
  })[0];
}
inline void __syncwarp() {
  const uint32_t nothing = 0;
  device::together(&nothing, 0, [](device::Warp&) {});
}
