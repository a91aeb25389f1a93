// SPDX-License-Identifier: Apache-2.0
// [X, Z] M for a matrix M [r + k, columns] of each scene: how the gradients to factors are formed,
// in the working precision. A thread sums tiles of 4 x 3 entries in registers.
//
// Where M and some rows of [X, Z] fit the shared memory of a block, the kernel that forms M goes on
// with the rows. Otherwise M goes to a workspace, and wide_products_kernel multiplies by pieces.
#pragma once

#include "joint_gram.cuh"

namespace riskernels::cuda {

constexpr int kProductRows = 4, kProductColumns = 3;
// Of a block of wide_products_kernel: its entries, and the columns of [X, Z] staged at once.
constexpr int kWideRows = 64, kWideColumns = 48, kWideInner = 16;
// Multiply-adds of a block, at least, where the rows of a scene are split.
constexpr int64_t kProductPart = int64_t{1} << 17;

// The columns first..first+columns-1 of gradients to [X, Z]: [B, N, r] and [B, N, k] contiguous.
template <typename T>
struct RowGradients {
  T* x;
  T* z;
  int of_x, of_z;  // r, k
  int first, columns;

  RISKERNELS_DEVICE void write(int64_t row /* of all scenes */, int column,
                               Complex<T> value) const {
    const int joint = first + column;
    if (joint < of_x)
      *complex_at(x, row * of_x + joint) = value;
    else
      *complex_at(z, row * of_z + joint - of_x) = value;
  }
};

template <typename T>
RowGradients<T> row_gradients(int64_t r, int64_t k, T* to_x, T* to_z) {
  const int of_x = static_cast<int>(r), of_z = static_cast<int>(k);
  return {to_x,
          to_z,
          of_x,
          of_z,
          to_x == nullptr ? of_x : 0,
          (to_x == nullptr ? 0 : of_x) + (to_z == nullptr ? 0 : of_z)};
}

// One thread's entries of a product: rows and columns of classes, as in joint_gram.
template <typename T>
class ProductTile {
 public:
  RISKERNELS_DEVICE ProductTile(int item, int rows, int columns)
      : row_step_((rows + kProductRows - 1) / kProductRows),
        column_step_((columns + kProductColumns - 1) / kProductColumns),
        row_(item / column_step_),
        column_(item % column_step_),
        rows_(rows),
        columns_(columns) {}

  static RISKERNELS_DEVICE int count(int rows, int columns) {
    return (rows + kProductRows - 1) / kProductRows *
           ((columns + kProductColumns - 1) / kProductColumns);
  }

  // Adds z [rows, inner] m [inner, columns].
  RISKERNELS_DEVICE void add(const Complex<T>* z, int z_stride, const Complex<T>* m, int m_stride,
                             int inner) {
    int at_z[kProductRows], at_m[kProductColumns];
    RISKERNELS_UNROLL
    for (int a = 0; a < kProductRows; ++a)
      at_z[a] = minimum(row_ + a * row_step_, rows_ - 1) * z_stride;
    RISKERNELS_UNROLL
    for (int b = 0; b < kProductColumns; ++b)
      at_m[b] = minimum(column_ + b * column_step_, columns_ - 1);
    for (int k = 0; k < inner; ++k) {
      Complex<T> left[kProductRows], right[kProductColumns];
      RISKERNELS_UNROLL
      for (int a = 0; a < kProductRows; ++a) left[a] = z[at_z[a] + k];
      RISKERNELS_UNROLL
      for (int b = 0; b < kProductColumns; ++b) right[b] = m[at_m[b]];
      m += m_stride;
      RISKERNELS_UNROLL
      for (int a = 0; a < kProductRows; ++a) {
        RISKERNELS_UNROLL
        for (int b = 0; b < kProductColumns; ++b) add_product(sum_[a][b], left[a], right[b]);
      }
    }
  }

  // f(row, column, value) for every entry.
  template <typename F>
  RISKERNELS_DEVICE void finish(const F& f) const {
    RISKERNELS_UNROLL
    for (int a = 0; a < kProductRows; ++a) {
      RISKERNELS_UNROLL
      for (int b = 0; b < kProductColumns; ++b) {
        const int row = row_ + a * row_step_, column = column_ + b * column_step_;
        if (row < rows_ && column < columns_) f(row, column, sum_[a][b]);
      }
    }
  }

 private:
  const int row_step_, column_step_, row_, column_, rows_, columns_;
  Complex<T> sum_[kProductRows][kProductColumns] = {};
};

// All entries of z m by the threads of a block, both in shared memory.
template <typename T, typename F>
RISKERNELS_DEVICE void block_product(const Complex<T>* z, int z_stride, int rows,
                                     const Complex<T>* m, int columns, int inner, const F& f) {
  const Place at;
  const int items = ProductTile<T>::count(rows, columns);
  for (int item = at.thread; item < items; item += kThreads) {
    ProductTile<T> tile(item, rows, columns);
    tile.add(z, z_stride, m, columns, inner);
    tile.finish(f);
  }
}

// Blocks of a scene whose rows are multiplied by the kernel that formed M.
struct ProductPlan {
  bool fused;
  int64_t parts, part_rows;
  int chunk;  // rows staged at once
};

// `occupied`: bytes of shared memory beside the staged rows, M included.
template <typename T>
ProductPlan product_plan(const Target& target, int64_t scenes, int64_t elements, int64_t inner,
                         int64_t columns, int64_t occupied) {
  ProductPlan plan{};
  int64_t parts = 2 * target.multiprocessors / scenes;
  const int64_t work = 4 * elements * inner * columns;
  if (parts > work / kProductPart) parts = work / kProductPart;
  if (parts < 1) parts = 1;
  plan.part_rows = (elements + parts - 1) / parts;
  plan.parts = (elements + plan.part_rows - 1) / plan.part_rows;
  int64_t bytes = target.shared_limit - occupied - 2 * kGuard;
  if (bytes > kGramArea) bytes = kGramArea;
  // A row takes its entries and two coefficients.
  const int64_t row = staged_stride(static_cast<int>(inner)) * int64_t{2 * sizeof(T)} + 16;
  const int64_t most = bytes < row ? 0 : (bytes - 32) / row;
  plan.chunk = static_cast<int>(most < plan.part_rows ? most : plan.part_rows);
  // Fewer rows than a tile has would leave nearly all threads idle.
  plan.fused = most >= kProductRows || most >= elements;
  return plan;
}

// grid: scenes x blocks of rows x blocks of columns. Adds own[row] times the entry itself, where
// there are such coefficients [B, N, 2], for X and for Z; rows of masked elements become zero.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    wide_products_kernel(const __grid_constant__ JointProblem<T> p,
                         const T* matrices /* [B, c, columns] */, const double* own,
                         RowGradients<T> out) {
  static_assert(kWideRows / kProductRows * (kWideColumns / kProductColumns) == kThreads);
  constexpr int kStride = staged_stride(kWideInner);
  auto* const z = shared_array<Complex<T>>(0);
  const Place at;
  const int64_t scene = blockIdx.x;
  const JointRows<T> rows(p, scene);
  const int inner = rows.columns();
  const int column = static_cast<int>(blockIdx.z) * kWideColumns;
  const int columns = minimum(out.columns - column, kWideColumns);
  Complex<T>* const m = z + kWideRows * kStride;
#if !defined(__CUDACC__)
  guard(reinterpret_cast<char*>(m + kWideInner * kWideColumns), kGuard);
#endif
  const Complex<T>* const matrix = complex_at(matrices, scene * inner * out.columns);
  for (int64_t first = int64_t{blockIdx.y} * kWideRows; first < p.elements;
       first += int64_t{gridDim.y} * kWideRows) {
    const int count = piece(p.elements - first, kWideRows);
    const bool used = at.thread < ProductTile<T>::count(count, columns);
    ProductTile<T> tile(used ? at.thread : 0, count, columns);
    for (int k = 0; k < inner; k += kWideInner) {
      const int here = minimum(kWideInner, inner - k);
      rows.template stage<kStageBatchBeside>(k, here, first, count, z, kStride);
      for (int e = at.thread; e < here * columns; e += kThreads)
        m[e] = matrix[static_cast<int64_t>(k + e / columns) * out.columns + column + e % columns];
      __syncthreads();
      if (used) tile.add(z, kStride, m, columns, here);
      __syncthreads();
    }
    if (!used) continue;
    tile.finish([&](int row, int of, Complex<T> value) {
      const int64_t element = first + row;
      const int joint = out.first + column + of;
      const bool keep = rows.mask.keeps(element);
      if (own != nullptr && keep) {
        const bool of_x = joint < out.of_x;
        const auto scale = static_cast<T>(own[2 * (scene * p.elements + element) + (of_x ? 0 : 1)]);
        const Complex<T> entry =
            of_x ? rows.x.entry(element, joint) : rows.z.entry(element, joint - out.of_x);
        value = value + entry * scale;
      }
      out.write(scene * p.elements + element, column + of, keep ? value : Complex<T>{});
    });
  }
}

template <typename T>
void wide_products(const Target& target, const JointProblem<T>& p, const T* matrices,
                   const double* own, const RowGradients<T>& out) {
  const auto blocks = [](int64_t count, int size) {
    const int64_t most = 65535, needed = (count + size - 1) / size;
    return static_cast<unsigned>(needed < most ? needed : most);
  };
  const int64_t shared =
      (kWideRows * staged_stride(kWideInner) + kWideInner * kWideColumns) * int64_t{2 * sizeof(T)};
  launch(target, wide_products_kernel<T>,
         dim3(static_cast<unsigned>(p.scenes), blocks(p.elements, kWideRows),
              blocks(out.columns, kWideColumns)),
         kThreads, shared + kGuard, p, matrices, own, out);
}

}  // namespace riskernels::cuda
