// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a thread, kept between calls so that no call allocates.
#pragma once

#include <cstddef>

namespace riskernels {

// At least `bytes` bytes aligned to 64, valid until this thread's next call; contents undefined.
void* thread_scratch(std::size_t bytes);

}  // namespace riskernels
