// The instruction set that all kernels use: the best that the processor has, or what a test asked for.
#pragma once

enum class Instructions { portable, avx2, avx512 };

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

inline Instructions best_instructions() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Instructions::portable;
  return __builtin_cpu_supports("avx512f") ? Instructions::avx512 : Instructions::avx2;
#else
  return Instructions::portable;
#endif
}

inline Instructions instructions = best_instructions();
