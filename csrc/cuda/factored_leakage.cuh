// SPDX-License-Identifier: Apache-2.0
// factored_leakage on the device: one launch forward where a scene is one block, two where its rows
// are split; one launch backward while the gradient's matrix fits a block. The value and the
// gradient's matrix come from the Gram matrix of [X, S] alone, see leakage_algebra.cuh and
// riskernels/reference/factored_leakage.py.
#pragma once

#include "leakage_algebra.cuh"
#include "row_products.cuh"

namespace riskernels::cuda {

// Where a block's arrays lie in shared memory. The small matrices and a copy of the Gram matrix
// do where they fit beside `least` bytes of what else the kernel needs; otherwise the first lie in
// a workspace, and the Gram matrix in the operator's output.
struct LeakageMemory {
  int sums = 0;              // double [kLeakageSums, kWarps]
  int small = 0, gram = 0;   // bytes; Complex<double> [c, c]
  int matrix = 0, area = 0;  // Complex<T> [c, r] of the gradient; staged rows
  int64_t small_bytes, gram_bytes, matrix_bytes, area_bytes;  // 0: not in shared memory
  int64_t bytes;

  static constexpr int kLeakageSums = 6;

  LeakageMemory(int64_t small_size, int64_t gram_size, int64_t matrix_size, int64_t area_size,
                Carver carver = Carver())
      : small_bytes(small_size),
        gram_bytes(gram_size),
        matrix_bytes(matrix_size),
        area_bytes(area_size) {
    sums = carver.take<double>(kLeakageSums * kWarps);
    small = carver.take<char>(small_size);
    gram = carver.take<char>(gram_size);
    matrix = carver.take<char>(matrix_size);
    area = carver.take<char>(area_size);
    bytes = carver.used();
  }

  // Of the rest of a kernel that needs `least` bytes.
  static LeakageMemory beside(const Target& target, int64_t r, int64_t k, int64_t matrix_size,
                              int64_t least) {
    const int64_t small_size = LeakageMatrices::bytes(r, k), gram_size = (r + k) * (r + k) * 16;
    const auto fits = [&](const LeakageMemory& memory) {
      return memory.bytes + least <= target.shared_limit;
    };
    for (const int64_t g : {gram_size, int64_t{0}})
      for (const int64_t s : {small_size, int64_t{0}})
        if (const LeakageMemory memory(s, g, matrix_size, 0); fits(memory)) return memory;
    return {0, 0, matrix_size, 0};
  }
};

RISKERNELS_DEVICE void guard_leakage_memory(const LeakageMemory& memory) {
#if !defined(__CUDACC__)
  LeakageMemory(memory.small_bytes, memory.gram_bytes, memory.matrix_bytes, memory.area_bytes,
                Carver(shared_bytes()));
#else
  (void)memory;
#endif
}

RISKERNELS_DEVICE LeakageMatrices small_matrices(const LeakageMemory& memory, char* workspace,
                                                 int64_t size, int64_t scene, int r, int k) {
  return {memory.small_bytes > 0 ? shared_bytes() + memory.small : workspace + scene * size, r, k};
}

// The leakage of a scene whose Gram matrix is complete. Reached by all threads.
template <typename T>
RISKERNELS_DEVICE void write_leakage(const FactoredLeakageProblem<T>& p, int64_t scene,
                                     const Complex<double>* gram, int sources,
                                     const LeakageMatrices& small, double* shared, T* leakage) {
  const int r = static_cast<int>(p.factor.columns), k = static_cast<int>(p.steering.columns);
  const int c = r + k;
  const double rho = rho_of(p.rho, p.rho_stride, scene);
  leakage_matrices(gram, r, k, sources, rho, p.ridge, small);
  // |Gxx|^2, tr Gxx, tr(C Gxx C^H), |C|^2, tr D, |U|^2
  double sum[LeakageMemory::kLeakageSums] = {};
  for_block_items(r * r, [&](int item) {
    const int i = item / r, j = item % r;
    const Complex<double> entry = gram[i * c + j];
    sum[0] += norm(entry);
    if (i == j) sum[1] += entry.re;
  });
  for_block_items(k * r, [&](int item) {
    const Complex<double> product = coupled_gram(gram, r, c, small, item / r, item % r);
    const Complex<double> coupling = small.coupling[item];
    sum[2] += product.re * coupling.re + product.im * coupling.im;
    sum[3] += norm(coupling);
  });
  for_block_items(k * k, [&](int item) {
    if (item / k == item % k) sum[4] += small.basis[item].re;
    sum[5] += norm(small.inner[item]);
  });
  block_sums(sum, shared);
  if (threadIdx.x != 0) return;
  const double total = sum[0] + 2 * rho * sum[1] + rho * rho * static_cast<double>(p.elements);
  const double projected = sum[2] + 2 * rho * sum[3] + rho * rho * sum[4];
  const double outside = total - 2 * projected + sum[5];
  // Rounding may leave less than nothing; NaN stays.
  leakage[scene] = static_cast<T>(total == 0 ? 0.0 : (outside < 0 ? 0.0 : outside) / total);
}

// grid: scenes. Sums the Gram matrix of a scene, or adds up its parts, and finishes the scene.
template <typename T, bool Parts>
__global__ void __launch_bounds__(kThreads, 2)
    factored_leakage_kernel(const __grid_constant__ FactoredLeakageProblem<T> p,
                            const __grid_constant__ GramPlan plan,
                            const __grid_constant__ LeakageMemory memory, char* workspace,
                            int64_t workspace_size, const double* partial, T* leakage /* [B] */,
                            double* gram /* [B, c, c] */) {
  guard_leakage_memory(memory);
  const int64_t scene = blockIdx.x;
  const JointRows<T> rows(joint_problem(p), scene);
  const int c = plan.columns;
  Complex<double>* const out = complex_at(gram, scene * c * c);
  Complex<double>* const copy =
      memory.gram_bytes > 0 ? shared_array<Complex<double>>(memory.gram) : out;
  const auto emit = [&](int i, int j, Complex<double> value) {
    write_gram(out, c, i, j, value);
    if (memory.gram_bytes > 0) write_gram(copy, c, i, j, value);
  };
  if constexpr (Parts) {
    sum_gram_parts(plan, partial, scene, emit);
    __syncthreads();
  } else {
    joint_gram(
        rows, int64_t{0}, p.elements, GramBlock(plan, 0),
        shared_array<Complex<double>>(memory.area), [](int64_t, int) {}, emit);
  }
  write_leakage(
      p, scene, copy, rows.z.kept,
      small_matrices(memory, workspace, workspace_size, scene, rows.x.columns, rows.z.columns),
      shared_array<double>(memory.sums), leakage);
}

// The matrix [X, S] -> dL/dX [c, r], and dL/drho. Reached by all threads; the matrix is complete
// behind a barrier.
template <typename T>
RISKERNELS_DEVICE void leakage_gradient_matrix(const FactoredLeakageProblem<T>& p, int64_t scene,
                                               double grad, double leakage,
                                               const Complex<double>* gram, int sources,
                                               const LeakageMatrices& small, double* shared,
                                               Complex<T>* matrix, T* to_rho) {
  const int r = static_cast<int>(p.factor.columns), k = static_cast<int>(p.steering.columns);
  const int c = r + k;
  const double rho = rho_of(p.rho, p.rho_stride, scene), rest = 1 - leakage;
  leakage_matrices(gram, r, k, sources, rho, p.ridge, small);
  double sum[4] = {};  // |Gxx|^2, tr Gxx, tr U, Re tr(U D)
  for_block_items(r * r, [&](int item) {
    const int i = item / r, j = item % r;
    const Complex<double> entry = gram[i * c + j];
    sum[0] += norm(entry);
    if (i == j) sum[1] += entry.re;
  });
  for_block_items(k * k, [&](int item) {
    const Complex<double> u = small.inner[item], d = small.basis[item];
    if (item / k == item % k) sum[2] += u.re;
    sum[3] += u.re * d.re + u.im * d.im;
  });
  for_block_items(k * r, [&](int item) {
    const int s = item / r, j = item % r;
    Complex<double> value = small.coupling[item] * (-2 * rho);
    value = value - coupled_gram(gram, r, c, small, s, j);
    for (int u = 0; u < k; ++u)
      add_product(value, small.inner[s * k + u], small.coupling[u * r + j]);
    small.back[item] = value;
  });
  block_sums(sum, shared);  // its barrier completes `back` too
  const double elements = static_cast<double>(p.elements);
  const double total = sum[0] + 2 * rho * sum[1] + rho * rho * elements;
  const double scale = total == 0 ? 0.0 : grad / total;
  if (threadIdx.x == 0 && to_rho != nullptr)
    to_rho[scene] =
        static_cast<T>(scale * (2 * rest * (sum[1] + rho * elements) - 4 * sum[2] + 2 * sum[3]));
  if (matrix == nullptr) return;
  for_block_items(c * r, [&](int item) {
    const int a = item / r, j = item % r;
    Complex<double> value;
    if (a < r) {
      value = gram[a * c + j];
      if (a == j) value.re += rho;
      value = value * rest - inner_product(k, small.coupling + a, r, small.coupling + j, r);
    } else {
      value = {};
      for (int s = 0; s < k; ++s)
        add_product(value, small.transform[s * k + a - r], small.back[s * r + j]);
    }
    matrix[item] = narrowed<T>(value * (4 * scale));
  });
}

// grid: scenes x parts of the rows; scenes alone where the rows are multiplied by a kernel of their
// own, from `matrices`.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_leakage_gradient_kernel(const __grid_constant__ FactoredLeakageProblem<T> p,
                                     const __grid_constant__ ProductPlan plan,
                                     const __grid_constant__ LeakageMemory memory, char* workspace,
                                     int64_t workspace_size, const T* grad, int64_t grad_stride,
                                     const T* leakage, const double* gram, RowGradients<T> out,
                                     T* to_rho, T* matrices /* [B, c, r] */) {
  guard_leakage_memory(memory);
  const int64_t scene = blockIdx.x;
  const JointRows<T> rows(joint_problem(p), scene);
  const int c = rows.columns(), stride = staged_stride(c);
  const Complex<double>* saved = complex_at(gram, scene * c * c);
  if (memory.gram_bytes > 0) {
    auto* const copy = shared_array<Complex<double>>(memory.gram);
    for_block_items(c * c, [&](int item) { copy[item] = saved[item]; });
    saved = copy;
    __syncthreads();
  }
  Complex<T>* const matrix = out.columns == 0      ? nullptr
                             : matrices != nullptr ? complex_at(matrices, scene * c * out.columns)
                                                   : shared_array<Complex<T>>(memory.matrix);
  leakage_gradient_matrix(
      p, scene, grad[scene * grad_stride], leakage[scene], saved, rows.z.kept,
      small_matrices(memory, workspace, workspace_size, scene * gridDim.y + blockIdx.y,
                     rows.x.columns, rows.z.columns),
      shared_array<double>(memory.sums), matrix, blockIdx.y == 0 ? to_rho : nullptr);
  if (matrices != nullptr || out.columns == 0) return;
  auto* const area = shared_array<Complex<T>>(memory.area);
  const int64_t begin = blockIdx.y * plan.part_rows;
  const int64_t end = begin + plan.part_rows < p.elements ? begin + plan.part_rows : p.elements;
  for (int64_t first = begin; first < end; first += plan.chunk) {
    const int count = piece(end - first, plan.chunk);
    rows.template stage<kStageBatch<T>>(0, c, first, count, area, stride);
    __syncthreads();
    block_product(area, stride, count, matrix, out.columns, c,
                  [&](int row, int column, Complex<T> value) {
                    out.write(scene * p.elements + first + row, column, value);
                  });
    __syncthreads();
  }
}

template <typename T>
void factored_leakage_forward(const Target& target, const FactoredLeakageProblem<T>& p, T* leakage,
                              double* gram) {
  if (p.scenes == 0) return;
  const int64_t r = p.factor.columns, k = p.steering.columns;
  // The least that a block sums in is one tile of each thread of a small Gram matrix.
  const auto resident = [&](int64_t least) {
    return LeakageMemory::beside(target, r, k, 0, least);
  };
  LeakageMemory memory = resident(kGramArea);
  if (memory.small_bytes == 0 || memory.gram_bytes == 0) memory = resident(kGramArea / 4);
  const GramPlan plan = gram_plan(target, p.scenes, p.elements, r + k, memory.bytes);
  const dim3 scenes(static_cast<unsigned>(p.scenes));
  const double* partial = nullptr;
  auto kernel = factored_leakage_kernel<T, false>;
  if (!plan.one_block()) {
    partial = gram_parts(target, joint_problem(p), plan);
    memory = resident(0);
    kernel = factored_leakage_kernel<T, true>;
  }
  const int64_t area = plan.one_block() ? plan.area : 0, size = LeakageMatrices::bytes(r, k);
  memory = {memory.small_bytes, memory.gram_bytes, 0, area};
  char* workspace = nullptr;
  if (memory.small_bytes == 0) workspace = static_cast<char*>(target.workspace(p.scenes * size));
  launch(target, kernel, scenes, kThreads, memory.bytes, p, plan, memory, workspace, size, partial,
         leakage, gram);
}

// Null where a gradient is not needed.
template <typename T>
void factored_leakage_backward(const Target& target, const FactoredLeakageProblem<T>& p,
                               const T* grad, int64_t grad_stride, const T* leakage,
                               const double* gram, T* to_factor, T* to_rho) {
  const int64_t r = p.factor.columns, k = p.steering.columns, c = r + k;
  RowGradients<T> out = row_gradients(r, k, to_factor, static_cast<T*>(nullptr));
  if (to_factor == nullptr) out.first = out.columns = 0;
  if (p.scenes == 0 || (to_factor == nullptr && to_rho == nullptr)) return;
  const int64_t entry = 2 * sizeof(T), row = staged_stride(static_cast<int>(c)) * entry;
  const int64_t size = LeakageMatrices::bytes(r, k);
  // Some rows of X and S beside M and the small matrices; without room for that, M and the small
  // matrices alone, and a workspace for what does not fit.
  LeakageMemory memory = LeakageMemory::beside(target, r, k, c * out.columns * entry, 32 * row);
  ProductPlan plan = product_plan<T>(target, p.scenes, p.elements, c, out.columns, memory.bytes);
  plan.fused = plan.fused && out.columns > 0 && memory.small_bytes > 0;
  T* matrices = nullptr;
  char* workspace = nullptr;
  if (plan.fused) {
    memory = {memory.small_bytes, memory.gram_bytes, memory.matrix_bytes, row * plan.chunk};
  } else {
    memory = LeakageMemory::beside(target, r, k, 0, 0);
    plan.parts = 1;
    if (out.columns > 0)
      matrices = static_cast<T*>(target.workspace(p.scenes * c * out.columns * entry));
    if (memory.small_bytes == 0) workspace = static_cast<char*>(target.workspace(p.scenes * size));
  }
  launch(target, factored_leakage_gradient_kernel<T>,
         dim3(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts)), kThreads,
         memory.bytes, p, plan, memory, workspace, size, grad, grad_stride, leakage, gram, out,
         to_rho, matrices);
  if (matrices != nullptr)
    wide_products(target, joint_problem(p), static_cast<const T*>(matrices),
                  static_cast<const double*>(nullptr), out);
}

}  // namespace riskernels::cuda
