// SPDX-License-Identifier: Apache-2.0
// One operator call on the block executor: inputs from a file, outputs to a file.
//
// The file is lines of text up to "data", then the bytes of its arrays in their order:
//   int NAME VALUE...          real NAME VALUE
//   array NAME BYTES LEAD      LEAD bytes in front of it keep its address modulo 16
// Every array is a heap block of its exact size.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda/launch.cuh"

namespace cuda_on_cpu {

class Case {
 public:
  explicit Case(const char* path);

  int64_t integer(const std::string& name) const { return integers(name).at(0); }
  const std::vector<int64_t>& integers(const std::string& name) const;
  double real(const std::string& name) const;

  // Null where the case has no such array.
  template <typename T>
  const T* input(const std::string& name) const {
    const auto found = inputs_.find(name);
    return found == inputs_.end() ? nullptr : reinterpret_cast<const T*>(found->second.start);
  }

  // Filled with NaN. Null where the case does not ask for it, by an integer of that name.
  template <typename T>
  T* output(const std::string& name) {
    const auto wanted = integers_.find(name);
    if (wanted == integers_.end()) return nullptr;
    return reinterpret_cast<T*>(poisoned(name, wanted->second.at(0) * int64_t{sizeof(T)}));
  }

  riskernels::cuda::Target target();
  void write(const char* path) const;

 private:
  struct Block {
    std::unique_ptr<char[]> memory;
    char* start;
    int64_t bytes;
  };
  char* poisoned(const std::string& name, int64_t bytes);

  std::map<std::string, std::vector<int64_t>> integers_;
  std::map<std::string, double> reals_;
  std::map<std::string, Block> inputs_;
  std::vector<std::pair<std::string, Block>> outputs_;
};

// Defined by the operator that an executable is linked with.
template <typename T>
void forward(Case& c);
template <typename T>
void backward(Case& c);

}  // namespace cuda_on_cpu
