// SPDX-License-Identifier: Apache-2.0
// factored_nmse on the device: one launch forward where a scene is one block, two where its rows
// are split; one launch backward while the gradient's matrix fits a block.
#pragma once

#include "factored_nmse_terms.cuh"

namespace riskernels::cuda {

struct NmseMemory {
  int area = 0;  // Complex<double>
  int sums = 0;  // double [kNmseTerms, kWarps]
  int64_t bytes;
  explicit NmseMemory(int64_t area_bytes, Carver carver = Carver()) {
    area = carver.take<char>(area_bytes);
    sums = carver.take<double>(kNmseTerms * kWarps);
    bytes = carver.used();
  }
};

RISKERNELS_DEVICE void guard_nmse_memory(int64_t area_bytes) {
#if !defined(__CUDACC__)
  NmseMemory(area_bytes, Carver(shared_bytes()));
#else
  (void)area_bytes;
#endif
}

// grid: scenes.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_nmse_kernel(const __grid_constant__ FactoredNmseProblem<T> p,
                         const __grid_constant__ GramPlan plan, NmseMemory memory,
                         T* nmse /* [B] */, double* sums /* [B, 4] */,
                         double* gram /* [B, c, c] */) {
  guard_nmse_memory(plan.area);
  const int64_t scene = blockIdx.x;
  const JointRows<T> rows(joint_problem(p), scene);
  const double rho = rho_of(p.rho, p.rho_stride, scene);
  const int of_x = rows.x.columns, c = plan.columns;
  const GramBlock block(plan, 0);
  auto* const area = shared_array<Complex<double>>(memory.area);
  double sum[kNmseTerms] = {};
  joint_gram(
      rows, int64_t{0}, p.elements, block, area,
      [&](int64_t first, int count) {
        for (int n = static_cast<int>(threadIdx.x); n < count; n += kThreads) {
          if (!rows.mask.keeps(first + n)) continue;
          const Complex<double>* const row = area + n * block.staged;
          double x = 0, y = 0;
          for (int k = 0; k < of_x; ++k) x += norm(row[k]);
          for (int k = of_x; k < c; ++k) y += norm(row[k]);
          add_row(sum, x, y, rho);
        }
      },
      [&](int i, int j, Complex<double> value) {
        add_entry(sum, i, j, of_x, value);
        write_gram(complex_at(gram, scene * c * c), c, i, j, value);
      });
  block_sums(sum, shared_array<double>(memory.sums));
  if (threadIdx.x == 0) write_factored_nmse(p, scene, sum, nmse, sums);
}

// grid: scenes x parts of the rows. Sums over the rows of a part.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_nmse_rows_kernel(const __grid_constant__ FactoredNmseProblem<T> p, NmseMemory memory,
                              int64_t area_bytes, int64_t part_rows,
                              double* partial /* [B, parts, kRowSums] */) {
  guard_nmse_memory(area_bytes);
  const int64_t scene = blockIdx.x, begin = blockIdx.y * part_rows;
  const JointRows<T> rows(joint_problem(p), scene);
  const double rho = rho_of(p.rho, p.rho_stride, scene);
  double sum[kNmseTerms] = {};
  row_powers(rows, begin, begin + part_rows < p.elements ? begin + part_rows : p.elements,
             shared_array<Complex<double>>(memory.area), area_bytes,
             [&](int64_t row, double of_x, double of_y) {
               if (rows.mask.keeps(row)) add_row(sum, of_x, of_y, rho);
             });
  double of_rows[kRowSums];
  RISKERNELS_UNROLL
  for (int k = 0; k < kRowSums; ++k) of_rows[k] = sum[k];
  block_sums(of_rows, shared_array<double>(memory.sums));
  if (threadIdx.x != 0) return;
  RISKERNELS_UNROLL
  for (int k = 0; k < kRowSums; ++k)
    partial[(scene * gridDim.y + blockIdx.y) * kRowSums + k] = of_rows[k];
}

// grid: scenes. Adds up the parts.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    factored_nmse_finish_kernel(const __grid_constant__ FactoredNmseProblem<T> p,
                                const __grid_constant__ GramPlan plan, const double* partial,
                                const double* of_rows, int64_t row_parts, T* nmse, double* sums,
                                double* gram) {
#if !defined(__CUDACC__)
  guard(shared_bytes() + kNmseTerms * kWarps * sizeof(double), kGuard);
#endif
  const int64_t scene = blockIdx.x;
  const int of_x = static_cast<int>(p.factor.columns), c = plan.columns;
  double sum[kNmseTerms] = {};
  for_block_items(row_parts, [&](int64_t part) {
    RISKERNELS_UNROLL
    for (int k = 0; k < kRowSums; ++k) sum[k] += of_rows[(scene * row_parts + part) * kRowSums + k];
  });
  sum_gram_parts(plan, partial, scene, [&](int i, int j, Complex<double> value) {
    add_entry(sum, i, j, of_x, value);
    write_gram(complex_at(gram, scene * c * c), c, i, j, value);
  });
  block_sums(sum, shared_array<double>(0));
  if (threadIdx.x == 0) write_factored_nmse(p, scene, sum, nmse, sums);
}

struct NmseGradientMemory {
  int sums = 0, matrix = 0, area = 0, own = 0;  // double, Complex<T>, Complex<T>, double [chunk, 2]
  int64_t bytes;
  NmseGradientMemory(int64_t matrix_bytes, int64_t row_bytes, int64_t chunk,
                     Carver carver = Carver()) {
    sums = carver.take<double>(kWarps);
    matrix = carver.take<char>(matrix_bytes);
    area = carver.take<char>(row_bytes * chunk);
    own = carver.take<double>(2 * chunk);
    bytes = carver.used();
  }
};

// grid: scenes x parts of the rows.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_nmse_gradient_kernel(const __grid_constant__ FactoredNmseProblem<T> p,
                                  const __grid_constant__ ProductPlan plan,
                                  NmseGradientMemory memory, const T* grad, int64_t grad_stride,
                                  const double* sums, const double* gram, RowGradients<T> out,
                                  T* to_rho) {
  const int64_t scene = blockIdx.x;
  const JointRows<T> rows(joint_problem(p), scene);
  const int c = rows.columns(), stride = staged_stride(c);
#if !defined(__CUDACC__)
  NmseGradientMemory(c * out.columns * sizeof(Complex<T>), stride * sizeof(Complex<T>), plan.chunk,
                     Carver(shared_bytes()));
#endif
  const double rho = rho_of(p.rho, p.rho_stride, scene);
  const NmseWeights weights(p, grad[scene * grad_stride], sums + 4 * scene);
  const Complex<double>* const saved = complex_at(gram, scene * c * c);
  auto* const matrix = shared_array<Complex<T>>(memory.matrix);
  auto* const area = shared_array<Complex<T>>(memory.area);
  auto* const own = shared_array<double>(memory.own);
  nmse_matrix(weights, saved, out, matrix);
  if (blockIdx.y == 0 && to_rho != nullptr)
    write_nmse_rho(p, scene, weights, saved, shared_array<double>(memory.sums), to_rho);
  const int64_t begin = blockIdx.y * plan.part_rows;
  const int64_t end = begin + plan.part_rows < p.elements ? begin + plan.part_rows : p.elements;
  for (int64_t first = begin; first < end; first += plan.chunk) {
    const int count = piece(end - first, plan.chunk);
    rows.template stage<kStageBatch<T>>(0, c, first, count, area, stride);
    __syncthreads();
    for (int n = static_cast<int>(threadIdx.x); n < count; n += kThreads) {
      const Complex<T>* const row = area + n * stride;
      double of_x = 0, of_y = 0;
      for (int k = 0; k < out.of_x; ++k) of_x += square_norm(row[k]);
      for (int k = out.of_x; k < c; ++k) of_y += square_norm(row[k]);
      own[2 * n] = weights.of_factor(of_x - of_y, rho);
      own[2 * n + 1] = weights.of_target(of_x - of_y, rho, of_y);
    }
    __syncthreads();
    block_product(area, stride, count, matrix, out.columns, c,
                  [&](int row, int column, Complex<T> value) {
                    const int joint = out.first + column;
                    const auto scale = static_cast<T>(own[2 * row + (joint < out.of_x ? 0 : 1)]);
                    value = value + area[row * stride + joint] * scale;
                    // Weights may be infinite, where eps = 0.
                    if (!rows.mask.keeps(first + row)) value = {};
                    out.write(scene * p.elements + first + row, column, value);
                  });
    __syncthreads();
  }
}

// grid: scenes x parts of the rows. The matrix, dL/drho and the coefficients of the rows, where
// they do not fit a block.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_nmse_prepare_kernel(const __grid_constant__ FactoredNmseProblem<T> p,
                                 NmseMemory memory, int64_t area_bytes, int64_t part_rows,
                                 const T* grad, int64_t grad_stride, const double* sums,
                                 const double* gram, RowGradients<T> out, T* to_rho,
                                 T* matrices /* [B, c, columns] */, double* own /* [B, N, 2] */) {
  guard_nmse_memory(area_bytes);
  const int64_t scene = blockIdx.x, begin = blockIdx.y * part_rows;
  const JointRows<T> rows(joint_problem(p), scene);
  const int64_t c = rows.columns();
  const double rho = rho_of(p.rho, p.rho_stride, scene);
  const NmseWeights weights(p, grad[scene * grad_stride], sums + 4 * scene);
  const Complex<double>* const saved = complex_at(gram, scene * c * c);
  if (blockIdx.y == 0) {
    if (out.columns > 0)
      nmse_matrix(weights, saved, out, complex_at(matrices, scene * c * out.columns));
    if (to_rho != nullptr)
      write_nmse_rho(p, scene, weights, saved, shared_array<double>(memory.sums), to_rho);
  }
  if (out.columns == 0) return;
  row_powers(rows, begin, begin + part_rows < p.elements ? begin + part_rows : p.elements,
             shared_array<Complex<double>>(memory.area), area_bytes,
             [&](int64_t row, double of_x, double of_y) {
               double* const to = own + 2 * (scene * p.elements + row);
               to[0] = weights.of_factor(of_x - of_y, rho);
               to[1] = weights.of_target(of_x - of_y, rho, of_y);
             });
}

// Rows of a block that only sums over them: as many as threads, and more where a grid has no more
// blocks.
inline int64_t power_rows(int64_t elements) {
  const int64_t fewest = (elements + 65534) / 65535;
  return fewest > kThreads ? fewest : kThreads;
}

inline int64_t power_area(const Target& target) {
  const int64_t left = target.shared_limit - NmseMemory(0).bytes;
  return left < kGramArea ? left / 16 * 16 : kGramArea;
}

template <typename T>
void factored_nmse_forward(const Target& target, const FactoredNmseProblem<T>& p, T* nmse,
                           double* sums, double* gram) {
  if (p.scenes == 0) return;
  const GramPlan plan = gram_plan(target, p.scenes, p.elements, p.factor.columns + p.target.columns,
                                  NmseMemory(0).bytes);
  const dim3 scenes(static_cast<unsigned>(p.scenes));
  if (plan.one_block()) {
    const NmseMemory memory(plan.area);
    launch(target, factored_nmse_kernel<T>, scenes, kThreads, memory.bytes, p, plan, memory, nmse,
           sums, gram);
    return;
  }
  const double* const partial = gram_parts(target, joint_problem(p), plan);
  const int64_t part_rows = power_rows(p.elements), area = power_area(target);
  const int64_t parts = (p.elements + part_rows - 1) / part_rows;
  auto* const of_rows =
      static_cast<double*>(target.workspace(p.scenes * parts * kRowSums * int64_t{sizeof(double)}));
  const NmseMemory memory(area);
  launch(target, factored_nmse_rows_kernel<T>, dim3(scenes.x, static_cast<unsigned>(parts)),
         kThreads, memory.bytes, p, memory, area, part_rows, of_rows);
  const double* const row_sums = of_rows;
  launch(target, factored_nmse_finish_kernel<T>, scenes, kThreads,
         kNmseTerms * kWarps * int64_t{sizeof(double)} + kGuard, p, plan, partial, row_sums, parts,
         nmse, sums, gram);
}

// Null where a gradient is not needed.
template <typename T>
void factored_nmse_backward(const Target& target, const FactoredNmseProblem<T>& p, const T* grad,
                            int64_t grad_stride, const double* sums, const double* gram,
                            T* to_factor, T* to_rho, T* to_target) {
  const int64_t r = p.factor.columns, k = p.target.columns, c = r + k;
  const RowGradients<T> out = row_gradients(r, k, to_factor, to_target);
  if (p.scenes == 0 || (out.columns == 0 && to_rho == nullptr)) return;
  const unsigned scenes = static_cast<unsigned>(p.scenes);
  const int64_t entry = 2 * sizeof(T), matrix = c * out.columns * entry;
  const int64_t row = staged_stride(static_cast<int>(c)) * entry;
  const ProductPlan plan = product_plan<T>(target, p.scenes, p.elements, c, out.columns,
                                           NmseGradientMemory(matrix, 0, 0).bytes);
  if (plan.fused && out.columns > 0) {
    const NmseGradientMemory memory(matrix, row, plan.chunk);
    launch(target, factored_nmse_gradient_kernel<T>,
           dim3(scenes, static_cast<unsigned>(plan.parts)), kThreads, memory.bytes, p, plan, memory,
           grad, grad_stride, sums, gram, out, to_rho);
    return;
  }
  const int64_t part_rows = power_rows(p.elements);
  const int64_t parts = out.columns == 0 ? 1 : (p.elements + part_rows - 1) / part_rows;
  const int64_t area = out.columns == 0 ? 0 : power_area(target);
  T* matrices = nullptr;
  double* own = nullptr;
  if (out.columns > 0) {
    matrices = static_cast<T*>(target.workspace(p.scenes * matrix));
    own =
        static_cast<double*>(target.workspace(2 * p.scenes * p.elements * int64_t{sizeof(double)}));
  }
  const NmseMemory memory(area);
  launch(target, factored_nmse_prepare_kernel<T>, dim3(scenes, static_cast<unsigned>(parts)),
         kThreads, memory.bytes, p, memory, area, part_rows, grad, grad_stride, sums, gram, out,
         to_rho, matrices, own);
  if (out.columns > 0)
    wide_products(target, joint_problem(p), static_cast<const T*>(matrices),
                  static_cast<const double*>(own), out);
}

}  // namespace riskernels::cuda
