// SPDX-License-Identifier: Apache-2.0
// How the threads of hermitian_nmse walk over pairs of matrices.
//
// A matrix is walked as one row of vectors of 16 bytes: a thread takes every blockDim-th vector,
// kNmseBatch of them at a time, all their loads in flight together. Row, column and offset of the
// next vector follow from those of the last by addition, so no entry costs a division.
#pragma once

#include "../common/nmse_problem.hpp"
#include "complex.cuh"
#include "launch.cuh"

namespace riskernels::cuda {

constexpr int kNmseBatch = 4;

// How the vectors of a matrix are dealt to blocks and threads. Offsets count complex elements.
struct NmseWalk {
  int64_t vectors;              // of a matrix
  int64_t chunk;                // of them in one block
  int row_vectors;              // of one row
  int step_rows, step_vectors;  // from one vector of a thread to its next
  struct Offset {
    int64_t step;  // the same step in memory,
    int64_t wrap;  // and what it takes more where the next vector is one row further
  } estimate, target;
};

template <typename T, int Width>
struct alignas(Width * 2 * sizeof(T)) NmseVector {
  Complex<T> entry[Width];
};

template <typename T, int Width>
struct NmseBatch {
  NmseVector<T, Width> estimate[kNmseBatch], target[kNmseBatch];
  int row[kNmseBatch], column[kNmseBatch];  // of entry[0]; row -1 beyond the end
};

// One thread's way through its block's chunk.
template <typename T, int Width>
class NmseReader {
 public:
  RISKERNELS_DEVICE NmseReader(const NmseProblem<T>& p, const NmseWalk& walk)
      : p_(p), walk_(walk), next_(blockIdx.y * walk.chunk + threadIdx.x) {
    const int64_t end = (blockIdx.y + 1) * walk.chunk;
    end_ = end < walk.vectors ? end : walk.vectors;
    row_ = static_cast<int>(next_ / walk.row_vectors);
    vector_ = static_cast<int>(next_ - static_cast<int64_t>(row_) * walk.row_vectors);
    estimate_ = start(p.estimate_stride);
    target_ = start(p.target_stride);
  }

  RISKERNELS_DEVICE bool more() const { return next_ < end_; }

  RISKERNELS_DEVICE void read(NmseBatch<T, Width>& batch) {
    RISKERNELS_UNROLL
    for (int u = 0; u < kNmseBatch; ++u) {
      const bool inside = next_ < end_;
      batch.row[u] = inside ? row_ : -1;
      batch.column[u] = vector_ * Width;
      batch.estimate[u] = batch.target[u] = {};
      if (inside) {
        batch.estimate[u] = *reinterpret_cast<const Vector*>(elements(p_.estimate) + estimate_);
        batch.target[u] = *reinterpret_cast<const Vector*>(elements(p_.target) + target_);
      }
      next_ += blockDim.x;
      row_ += walk_.step_rows;
      vector_ += walk_.step_vectors;
      estimate_ += walk_.estimate.step;
      target_ += walk_.target.step;
      if (vector_ >= walk_.row_vectors) {
        vector_ -= walk_.row_vectors;
        ++row_;
        estimate_ += walk_.estimate.wrap;
        target_ += walk_.target.wrap;
      }
    }
  }

 private:
  using Vector = NmseVector<T, Width>;

  static RISKERNELS_DEVICE const Complex<T>* elements(const T* matrices) {
    return reinterpret_cast<const Complex<T>*>(matrices);
  }
  RISKERNELS_DEVICE int64_t start(const int64_t* stride) const {
    return blockIdx.x * stride[0] + row_ * stride[1] + vector_ * Width * stride[2];
  }

  const NmseProblem<T>& p_;
  const NmseWalk& walk_;
  int64_t estimate_, target_;  // offsets of the next vector
  int64_t next_, end_;
  int row_, vector_;
};

// The elements in use: one byte each in shared memory, all of them without a mask.
template <typename T, bool Masked>
class NmseMask {
 public:
  // Reached by all threads of the block.
  RISKERNELS_DEVICE NmseMask(const NmseProblem<T>& p, unsigned char* kept /* [N] */) {
    if constexpr (Masked) {
      for (int64_t n = threadIdx.x; n < p.elements; n += blockDim.x)
        kept[n] = p.mask[blockIdx.x * p.mask_stride[0] + n * p.mask_stride[1]];
      __syncthreads();
      kept_ = kept;
    }
  }
  RISKERNELS_DEVICE bool keeps(int row, int column) const {
    if constexpr (Masked)
      return row >= 0 && kept_[row] != 0 && kept_[column] != 0;
    else
      return row >= 0;
  }

 private:
  const unsigned char* kept_ = nullptr;
};

// Two entries per access need rows that are contiguous and start at 16 bytes. An entry of
// complex128 is an access of its own.
template <typename T>
bool nmse_takes_pairs(const NmseProblem<T>& p) {
  const auto fits = [&](const T* data, const int64_t* stride) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride[2] == 1 &&
           stride[1] % 2 == 0 && (stride[0] % 2 == 0 || p.scenes == 1);
  };
  return sizeof(T) == 4 && p.elements % 2 == 0 && fits(p.estimate, p.estimate_stride) &&
         fits(p.target, p.target_stride);
}

struct NmsePlan {
  NmseWalk walk;
  unsigned threads;
  int64_t parts;
};

// Chosen from the shape and the device alone. Many scenes: small blocks, several to a
// multiprocessor, so that one block's end overlaps with another's middle. Few scenes: blocks as
// large as they get, and several per scene if each still has `smallest_chunk` vectors.
template <typename T>
NmsePlan nmse_plan(const Target& target, const NmseProblem<T>& p, int width, int64_t smallest_chunk,
                   unsigned most_threads) {
  const int64_t vectors = p.elements * p.elements / width;
  int64_t parts = 2 * target.multiprocessors / p.scenes;
  if (parts > vectors / smallest_chunk) parts = vectors / smallest_chunk;
  if (parts < 1) parts = 1;
  const int64_t chunk = (vectors + parts - 1) / parts;
  parts = (vectors + chunk - 1) / chunk;
  const int64_t blocks = p.scenes * parts;
  unsigned threads = blocks >= 4 * target.multiprocessors ? 256
                     : blocks > target.multiprocessors    ? 512
                                                          : 1024;
  if (threads > most_threads) threads = most_threads;
  while (threads > kWarp && threads / 2 * kNmseBatch >= chunk) threads /= 2;
  const int row_vectors = static_cast<int>(p.elements / width), step = static_cast<int>(threads);
  const int rows = step / row_vectors, columns = step % row_vectors;
  const auto offset = [&](const int64_t* stride) {
    return NmseWalk::Offset{rows * stride[1] + columns * width * stride[2],
                            stride[1] - row_vectors * width * stride[2]};
  };
  return {{vectors, chunk, row_vectors, rows, columns, offset(p.estimate_stride),
           offset(p.target_stride)},
          threads,
          parts};
}

}  // namespace riskernels::cuda
