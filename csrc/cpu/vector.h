// The kernels of the file KERNELS, once for each instruction set of this build: namespaces `portable` and, on x86-64, `avx2`.
#pragma once

#include "vector_portable.h"
#if defined(__x86_64__)
#include "vector_avx2.h"
#endif
