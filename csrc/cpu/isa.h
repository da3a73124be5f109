// Run-time choice of instruction set. Every kernel file in this folder is compiled once per set into namespace
// maxmin::MAXMIN_ISA; the extern "C" entry points (dispatch.cpp) call the best one that the processor has.
#pragma once

namespace maxmin {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best set that both the binary and this processor have; MAXMIN_CPU_ISA=baseline|avx2|avx512 lowers it.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace maxmin

// MAXMIN_DISPATCH(f, args...) calls f of the chosen namespace. MAXMIN_X86 is defined where the extra sets are built.
#ifdef MAXMIN_X86
#define MAXMIN_DISPATCH(function, ...)                                                 \
  (::maxmin::isa() == ::maxmin::Isa::kAvx512 ? ::maxmin::avx512::function(__VA_ARGS__) \
   : ::maxmin::isa() == ::maxmin::Isa::kAvx2 ? ::maxmin::avx2::function(__VA_ARGS__)   \
                                             : ::maxmin::baseline::function(__VA_ARGS__))
#define MAXMIN_DECLARE(...) \
  namespace maxmin {        \
  namespace avx512 {        \
  __VA_ARGS__;              \
  }                         \
  namespace avx2 {          \
  __VA_ARGS__;              \
  }                         \
  namespace baseline {      \
  __VA_ARGS__;              \
  }                         \
  }
#else
#define MAXMIN_DISPATCH(function, ...) (::maxmin::baseline::function(__VA_ARGS__))
#define MAXMIN_DECLARE(...) \
  namespace maxmin {        \
  namespace baseline {      \
  __VA_ARGS__;              \
  }                         \
  }
#endif
