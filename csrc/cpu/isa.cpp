// Which instruction set the kernels use: the best that the processor has, or a lower one on demand.
#include "isa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace maxmin {
namespace {

Isa best_of_processor() {
#ifdef MAXMIN_X86
  __builtin_cpu_init();
  // F16C is not asked for by name (older compilers do not know it): every processor with AVX2 and FMA has it.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kBaseline;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return wide ? Isa::kAvx512 : Isa::kAvx2;
#else
  return Isa::kBaseline;
#endif
}

Isa choose() {
  const Isa best = best_of_processor();
  const char* wanted = getenv("MAXMIN_CPU_ISA");
  if (!wanted || !*wanted) return best;
  const Isa sets[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};
  for (Isa set : sets)
    if (!strcmp(wanted, isa_name(set))) return set < best ? set : best;
  fprintf(stderr, "maxmin_kernels: MAXMIN_CPU_ISA: expected baseline, avx2 or avx512, got %s; using %s\n", wanted,
          isa_name(best));
  return best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace maxmin
