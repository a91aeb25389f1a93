// SPDX-License-Identifier: Apache-2.0
#include "fork.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace riskernels {
namespace {

bool forked = false;

#if defined(__unix__) || defined(__APPLE__)
// When the library is loaded; the handler runs in the child before fork returns there.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

bool in_forked_child() { return forked; }

}  // namespace riskernels
