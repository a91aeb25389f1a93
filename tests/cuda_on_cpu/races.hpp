// SPDX-License-Identifier: Apache-2.0
// Finds data races, in a build of its own: kernels are compiled with -fsanitize=thread, whose
// callbacks are answered here in place of the ThreadSanitizer runtime.
//
// Two accesses to a byte, one of them a write, race unless both are of one thread, a barrier of the
// block lies between them, or (within a warp) a __syncwarp. Shuffles order no memory. Accesses of
// two blocks of one launch always race. Whether a race shows does not depend on the order in which
// threads happen to run.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

// Shared memory is always watched, global memory from here on.
void watch(const void* memory, int64_t bytes);

}  // namespace cuda_on_cpu
