// The instruction set that all kernels use: the best that the processor has, or what a test asked for.
#pragma once

inline bool has_avx2() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

inline bool use_avx2 = has_avx2();
