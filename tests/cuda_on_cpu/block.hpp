// SPDX-License-Identifier: Apache-2.0
// One CUDA block: its threads, the order they run in, and where they meet.
#pragma once

#include <algorithm>
#include <bit>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "thread.hpp"

namespace cuda_on_cpu {

// SplitMix64.
class Random {
 public:
  using result_type = uint64_t;
  explicit Random(uint64_t seed) : state_(seed) {}
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~uint64_t{0}; }
  uint64_t operator()() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }

 private:
  uint64_t state_;
};

// How the next thread is picked between two barriers: any, the one released last (so that warps
// run far ahead of others), the one that has waited longest.
enum class Order { random, ahead, rounds };

// Counts what orders memory accesses. A number is never used twice, over all blocks and launches.
struct Clock {
  uint32_t launch = 0, block = 0;  // the interval in which each began
  uint32_t interval = 0;           // between two barriers of a block
  uint32_t syncwarps = 0;
  uint32_t warp[kMaxThreads / warpSize] = {};  // the latest __syncwarp of each
};

// The block that runs; there is one at a time.
class Block {
 public:
  void run(const std::function<void()>& body, int threads, Random& random) {
    body_ = &body;
    random_ = &random;
    error_.clear();
    clock_.block = ++clock_.interval;
    exited_ = at_barrier_ = 0;
    while (static_cast<int>(pool_.size()) < threads) pool_.push_back(std::make_unique<Thread>());
    threads_ = threads;
    first_ = last_ = 0;
    std::vector<int> all(threads);
    std::iota(all.begin(), all.end(), 0);
    for (Warp& warp : warps_) warp = {};
    for (const int i : all) {
      thread(i).fibre.reset(&Block::main);
      warps_[i / warpSize].lanes |= 1u << i % warpSize;
    }
    draw_order();
    release(all);
    while (exited_ < threads_) {
      if (first_ == last_)
        throw Error(message(at_barrier_ > 0 ? "barrier not reached by all threads"
                                            : "lanes of a mask do not all meet"));
      current_ = take();
      threadIdx = {static_cast<unsigned>(current_), 0, 0};
      thread(current_).fibre.enter();
      if (!error_.empty()) throw Error(error_);
    }
  }

  int barrier(Barrier kind, int predicate, const Where& where) {
    Thread& self = thread(current_);
    wait_as(State::at_barrier, where);
    self.barrier = kind;
    self.predicate = predicate;
    if (exited_ > 0) return stop("barrier not reached by all threads"), 0;
    if (at_barrier_ > 0 &&
        !(thread(waiting_).barrier == kind && same(thread(waiting_).where, where)))
      return stop("threads of a block meet at different barriers"), 0;
    waiting_ = current_;
    warps_[current_ / warpSize].elsewhere |= 1u << current_ % warpSize;
    if (++at_barrier_ == threads_) complete_barrier(kind);
    self.fibre.leave(false);
    return self.predicate;
  }

  uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int operand, int width,
                    const Where& where) {
    Thread& self = thread(current_);
    wait_as(State::at_exchange, where);
    self.exchange = kind;
    self.mask = mask;
    self.value = value;
    self.operand = operand;
    self.width = width;
    const int lane = current_ % warpSize, first = current_ - lane;
    if ((mask >> lane & 1) == 0) return stop("the calling lane is not in its own mask"), 0;
    if (width < 1 || width > warpSize || (width & (width - 1)) != 0)
      return stop("the width is not a power of two up to 32"), 0;
    Warp& warp = warps_[current_ / warpSize];
    if ((mask & ~warp.lanes) != 0) return stop("the mask names a lane that does not exist"), 0;
    if ((mask & warp.elsewhere) != 0) return stop("a lane of the mask is elsewhere"), 0;
    // Lanes may wait for this one while it meets others first, but not while it waits for them.
    const auto other = [&](const Thread& peer) {
      return !(peer.exchange == kind && peer.mask == mask && peer.width == width &&
               same(peer.where, where));
    };
    const auto at_odds = [&](const Thread& peer) {
      return other(peer) && (peer.mask >> lane & 1) != 0;
    };
    // At once where the first of those that wait says so, else when all of them wait.
    unsigned peers = mask & warp.waiting;
    if (peers != 0 && at_odds(thread(first + std::countr_zero(peers))))
      return stop("lanes of one mask meet in different exchanges"), 0;
    warp.waiting |= 1u << lane;
    bool complete = (mask & ~warp.waiting) == 0;
    for (; complete && peers != 0; peers &= peers - 1) {
      const Thread& peer = thread(first + std::countr_zero(peers));
      if (at_odds(peer)) return stop("lanes of one mask meet in different exchanges"), 0;
      complete = !other(peer);
    }
    const bool failed = complete && !complete_exchange(first, mask);
    self.fibre.leave(failed);
    return self.value;
  }

  // Prints which thread a sanitizer report is about.
  void describe() const {
    if (current_ < 0) return;
    std::fprintf(stderr, "cuda_on_cpu: in block (%u, %u, %u), thread %d\n", blockIdx.x, blockIdx.y,
                 blockIdx.z, current_);
  }
  void begin_launch() { clock_.launch = clock_.interval + 1; }
  const Clock& clock() const { return clock_; }
  int current() const { return current_; }  // -1 outside of kernels
  void done() { current_ = -1; }

 private:
  Thread& thread(int i) { return *pool_[static_cast<std::size_t>(i)]; }
  const Thread& thread(int i) const { return *pool_[static_cast<std::size_t>(i)]; }

  CUDA_ON_CPU_BARE static void main();

  void wait_as(State state, const Where& where) {
    thread(current_).state = state;
    thread(current_).where = where;
  }

  void draw_order() { order_ = static_cast<Order>((*random_)() % 3); }

  void release(std::span<int> threads) {
    std::shuffle(threads.begin(), threads.end(), *random_);
    for (const int i : threads) {
      thread(i).state = State::ready;
      slot(last_++) = i;
    }
  }

  int& slot(unsigned position) { return ready_[position % kMaxThreads]; }

  int take() {
    if (order_ == Order::ahead) return slot(--last_);
    if (order_ == Order::random)
      std::swap(slot(first_), slot(first_ + (*random_)() % (last_ - first_)));
    return slot(first_++);
  }

  void complete_barrier(Barrier kind) {
    int all = 1, any = 0;
    std::vector<int> threads(static_cast<std::size_t>(threads_));
    std::iota(threads.begin(), threads.end(), 0);
    for (const int i : threads) {
      all &= thread(i).predicate != 0;
      any |= thread(i).predicate != 0;
    }
    for (const int i : threads) thread(i).predicate = kind == Barrier::all ? all : any;
    for (Warp& warp : warps_) warp.elsewhere = 0;
    at_barrier_ = 0;
    ++clock_.interval;
    draw_order();
    release(threads);
  }

  // False with error_ set where a lane reads outside the mask.
  bool complete_exchange(int first, unsigned mask) {
    int threads[warpSize], count = 0;
    uint64_t taken[warpSize];
    for (int lane = 0; lane < warpSize; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      const Thread& self = thread(first + lane);
      const int group = lane & ~(self.width - 1), end = group + self.width;
      int source = lane;
      switch (self.exchange) {
        case Exchange::sync:
          break;
        case Exchange::index:
          source = group | (self.operand & (self.width - 1));
          break;
        case Exchange::exclusive_or:
          source = lane ^ self.operand;
          break;
        case Exchange::down:
          source = lane + self.operand;
          break;
        case Exchange::up:
          source = lane - self.operand;
          break;
      }
      // Beyond its group a lane reads itself, but xor may reach back into an earlier group.
      if (source < 0 || source >= end || (self.exchange == Exchange::up && source < group))
        source = lane;
      if ((mask >> source & 1) == 0) {
        current_ = first + lane;
        error_ = message(("reads lane " + std::to_string(source) + ", not in the mask").c_str());
        return false;
      }
      taken[lane] = thread(first + source).value;
      threads[count++] = first + lane;
    }
    for (int k = 0; k < count; ++k) thread(threads[k]).value = taken[threads[k] - first];
    warps_[first / warpSize].waiting &= ~mask;
    if (thread(threads[0]).exchange == Exchange::sync)
      clock_.warp[first / warpSize] = ++clock_.syncwarps;
    release({threads, static_cast<std::size_t>(count)});
    return true;
  }

  std::string message(const char* what) const {
    std::map<std::string, std::vector<int>> places;
    for (int i = 0; i < threads_; ++i) places[text(thread(i))].push_back(i);
    std::ostringstream out;
    out << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << "), thread "
        << current_ << ": " << what << ";";
    for (const auto& [place, who] : places) {
      out << " " << who.size() << (who.size() == 1 ? " thread " : " threads ") << place << " (";
      for (std::size_t k = 0; k < who.size() && k < 4; ++k) out << (k ? ", " : "") << who[k];
      out << (who.size() > 4 ? ", ...)" : ")");
    }
    return out.str();
  }

  // Ends the launch from within a thread, whose stack is abandoned.
  void stop(const char* what) {
    error_ = message(what);
    thread(current_).fibre.leave(true);
  }

  // Lanes, one bit each.
  struct Warp {
    unsigned lanes;      // that exist
    unsigned waiting;    // at an exchange
    unsigned elsewhere;  // at a barrier, or exited
  };

  std::vector<std::unique_ptr<Thread>> pool_;
  Warp warps_[kMaxThreads / warpSize];
  // Threads that can go on, a ring: every thread is in it at most once.
  int ready_[kMaxThreads];
  unsigned first_ = 0, last_ = 0;
  const std::function<void()>* body_ = nullptr;
  Random* random_ = nullptr;
  std::string error_;
  Order order_ = Order::random;
  Clock clock_;
  int threads_ = 0, exited_ = 0, at_barrier_ = 0, current_ = -1;
  int waiting_ = 0;  // a thread at the barrier, where there is one
};

// The block that runs, and its dynamic shared memory.
Block& block();
std::span<char> shared_memory();

}  // namespace cuda_on_cpu
