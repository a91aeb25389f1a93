// SPDX-License-Identifier: Apache-2.0
// One CUDA thread as the executor sees it, and how reports name it.
#pragma once

#include <cstring>
#include <sstream>
#include <string>

#include "cuda_on_cpu.hpp"
#include "fibre.hpp"

namespace cuda_on_cpu {

constexpr int kMaxThreads = 1024;

enum class State { ready, at_barrier, at_exchange, exited };

struct Thread {
  Fibre fibre;
  State state;
  // What it waits for.
  Where where;
  Barrier barrier;
  int predicate;
  Exchange exchange;
  unsigned mask;
  int operand, width;
  uint64_t value;  // brought to the exchange, then what it takes away
};

inline const char* name(Barrier kind) {
  switch (kind) {
    case Barrier::plain:
      return "__syncthreads";
    case Barrier::all:
      return "__syncthreads_and";
    case Barrier::any:
      return "__syncthreads_or";
  }
  return "";
}

inline const char* name(Exchange kind) {
  switch (kind) {
    case Exchange::sync:
      return "__syncwarp";
    case Exchange::index:
      return "__shfl_sync";
    case Exchange::exclusive_or:
      return "__shfl_xor_sync";
    case Exchange::down:
      return "__shfl_down_sync";
    case Exchange::up:
      return "__shfl_up_sync";
  }
  return "";
}

inline bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

inline std::string text(const Where& where) {
  const std::string path = where.file_name();
  return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

inline std::string text(const Thread& t) {
  std::ostringstream out;
  switch (t.state) {
    case State::ready:
      return "running";
    case State::exited:
      return "exited";
    case State::at_barrier:
      out << "at " << name(t.barrier);
      break;
    case State::at_exchange:
      out << "at " << name(t.exchange) << "(mask 0x" << std::hex << t.mask << std::dec;
      if (t.width != warpSize) out << ", width " << t.width;
      out << ")";
      break;
  }
  out << " " << text(t.where);
  return out.str();
}

}  // namespace cuda_on_cpu
