// The kernels of the file KERNELS, once for each instruction set of this build: namespaces `portable` and, on x86-64, `avx2`
// and `avx512`. KERNEL(f(arguments)) calls the one of the set in use, KERNEL_OF_WIDTH that of the best set up to it
// whose lanes divide the width, a multiple of 8, and KERNEL_OF_AVX2 never that of AVX-512.
#pragma once

#include "instructions.h"
#include "vector_portable.h"
#if defined(__x86_64__)
#include "vector_avx2.h"
#include "vector_avx512.h"

#define KERNEL(...)                                             \
  (instructions == Instructions::avx512 ? avx512::__VA_ARGS__   \
   : instructions == Instructions::avx2 ? avx2::__VA_ARGS__     \
                                        : portable::__VA_ARGS__)
#define KERNEL_OF_WIDTH(width, ...)                                                   \
  (instructions == Instructions::avx512 && (width) % 16 == 0 ? avx512::__VA_ARGS__    \
   : instructions == Instructions::portable                  ? portable::__VA_ARGS__  \
                                                             : avx2::__VA_ARGS__)
#define KERNEL_OF_AVX2(...) \
  (instructions == Instructions::portable ? portable::__VA_ARGS__ : avx2::__VA_ARGS__)
#else
#define KERNEL(...) portable::__VA_ARGS__
#define KERNEL_OF_AVX2(...) portable::__VA_ARGS__
#define KERNEL_OF_WIDTH(width, ...) portable::__VA_ARGS__
#endif
