// SPDX-License-Identifier: Apache-2.0
// Whether this process is a copy of one that had loaded the library.
#pragma once

namespace riskernels {

// A fork copies the calling thread alone. torch's pool still counts the threads that it had, and
// waits for them for ever; a forked process computes in the thread that calls. The results are the
// same.
bool in_forked_child();

}  // namespace riskernels
