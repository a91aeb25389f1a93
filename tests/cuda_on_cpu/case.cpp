// SPDX-License-Identifier: Apache-2.0
// Usage: EXECUTABLE case output
#include "case.hpp"

#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "races.hpp"

namespace cuda_on_cpu {
namespace {

#if RISKERNELS_RACES
constexpr bool kRaces = true;
#else
constexpr bool kRaces = false;
#endif

}  // namespace

Case::Case(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot open ") + path);
  std::vector<Block*> order;
  for (std::string line; std::getline(file, line) && line != "data";) {
    std::istringstream words(line);
    std::string kind, name;
    words >> kind >> name;
    if (kind == "int") {
      for (int64_t value; words >> value;) integers_[name].push_back(value);
    } else if (kind == "real") {
      words >> reals_[name];
    } else if (kind == "array") {
      int64_t bytes = 0, lead = 0;
      words >> bytes >> lead;
      Block& block = inputs_[name];
      block.memory.reset(new char[static_cast<std::size_t>(lead + bytes)]);
      block.start = block.memory.get() + lead;
      block.bytes = bytes;
      __asan_poison_memory_region(block.memory.get(), static_cast<std::size_t>(lead));
      order.push_back(&block);
    } else {
      throw std::runtime_error("unknown line in the case: " + line);
    }
  }
  for (Block* block : order) file.read(block->start, block->bytes);
  if (!file) throw std::runtime_error(std::string(path) + " is shorter than it says");
}

const std::vector<int64_t>& Case::integers(const std::string& name) const {
  const auto found = integers_.find(name);
  if (found == integers_.end()) throw std::runtime_error("the case lacks the integer " + name);
  return found->second;
}

double Case::real(const std::string& name) const {
  const auto found = reals_.find(name);
  if (found == reals_.end()) throw std::runtime_error("the case lacks the number " + name);
  return found->second;
}

char* Case::poisoned(const std::string& name, int64_t bytes) {
  Block block{std::unique_ptr<char[]>(new char[static_cast<std::size_t>(bytes)]), nullptr, bytes};
  block.start = block.memory.get();
  std::memset(block.start, 0xff, static_cast<std::size_t>(bytes));
  if constexpr (kRaces) watch(block.start, bytes);
  outputs_.emplace_back(name, std::move(block));
  return outputs_.back().second.start;
}

riskernels::cuda::Target Case::target() {
  settings().seed = static_cast<uint64_t>(integer("seed"));
  settings().shared_limit = integer("shared_limit");
  return {static_cast<int>(integer("multiprocessors")), integer("shared_limit"), nullptr,
          [this](int64_t bytes) -> void* { return poisoned("workspace", bytes); }, 0};
}

void Case::write(const char* path) const {
  std::ofstream file(path, std::ios::binary);
  for (const auto& [name, block] : outputs_)
    if (name != "workspace") file << name << " " << block.bytes << "\n";
  file << "data\n";
  for (const auto& [name, block] : outputs_)
    if (name != "workspace") file.write(block.start, block.bytes);
  if (!file) throw std::runtime_error(std::string("cannot write ") + path);
}

}  // namespace cuda_on_cpu

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s case output\n", argv[0]);
    return 2;
  }
  try {
    cuda_on_cpu::Case c(argv[1]);
    const bool reverse = c.integer("backward") != 0;
    if (c.integer("double") == 0)
      reverse ? cuda_on_cpu::backward<float>(c) : cuda_on_cpu::forward<float>(c);
    else if constexpr (cuda_on_cpu::kRaces)
      throw std::runtime_error("the build that finds data races has complex64 alone");
    else
      reverse ? cuda_on_cpu::backward<double>(c) : cuda_on_cpu::forward<double>(c);
    c.write(argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
