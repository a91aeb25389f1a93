// SPDX-License-Identifier: Apache-2.0
// Marks small functions that host launchers, CPU kernels and CUDA kernels share. They are always
// inlined: a CPU kernel is compiled once per instruction set, and a function that stayed a symbol
// would be linked from whichever set came first.
#pragma once

#if defined(__CUDACC__)
#define RISKERNELS_EVERYWHERE __host__ __device__ __forceinline__
#else
#define RISKERNELS_EVERYWHERE inline __attribute__((always_inline))
#endif
