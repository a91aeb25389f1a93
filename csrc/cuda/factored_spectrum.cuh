// SPDX-License-Identifier: Apache-2.0
// factored_spectrum on the device: one block for each scene decomposes its Gram matrix, in double.
// It sums that matrix itself where a scene is one block of the Gram plan; it keeps matrix and
// vectors on chip where they fit, in a workspace otherwise. Backward: one launch while
// 2 V diag(g) V^H and some rows of X fit a block.
#pragma once

#include "hermitian_jacobi.cuh"
#include "row_products.cuh"

namespace riskernels::cuda {

// Shared memory of the block of a scene. The eigenvectors take the place of the staged rows, which
// have served when they are set up.
struct SpectrumMemory {
  int rotations, order;  // JacobiRotation [(r + 1) / 2], int [r]
  int matrix = 0;        // Complex<double> [r, pitch], where it is on chip
  int area = 0;          // bytes; staged rows, then the eigenvectors [r, pitch]
  int64_t bytes;

  static int64_t matrix_bytes(int64_t r) {
    return r * staged_stride(static_cast<int>(r)) * int64_t{sizeof(Complex<double>)};
  }

  SpectrumMemory(int64_t r, int64_t area_bytes, bool on_chip, Carver carver = Carver()) {
    rotations = carver.take<JacobiRotation>((r + 1) / 2);
    order = carver.take<int>(r);
    if (on_chip) {
      matrix = carver.take<char>(matrix_bytes(r));
      area = carver.take<char>(area_bytes);
    }
    bytes = carver.used();
  }
};

// Exponent e of a power of two with 2^e <= x < 2^(e + 1), kept from where 2^-e is not normal.
RISKERNELS_DEVICE int scale_exponent(double x) {
  if (!(x > 0)) return 0;
  const int e = ilogb(x);
  return e < -1000 ? 0 : e > 1000 ? 1000 : e;
}

// From the complete Gram matrix to the outputs. Reached by all threads.
template <typename T>
RISKERNELS_DEVICE void decompose_scene(const FactoredSpectrumProblem<T>& p, int64_t scene,
                                       const JacobiMatrix& m, const SpectrumMemory& memory,
                                       T* values, T* vectors) {
  const int r = m.size;
  auto* const order = shared_array<int>(memory.order);
  double largest = 0, difference = 0;
  for (int i = 0; i < r; ++i) {
    const double own = m.at(i, i).re;
    largest = own > largest ? own : largest;
    difference += own - own;  // NaN where it is NaN or infinite, and so may be the other entries
  }
  bool valid = difference == 0;
  const int exponent = scale_exponent(valid ? largest : 1.0);
  const double scale = scalbn(1.0, -exponent);
  __syncthreads();
  for_block_items(r * r, [&](int64_t item) {
    const int i = static_cast<int>(item) / r, j = static_cast<int>(item) % r;
    m.at(i, j) = m.at(i, j) * scale;
    m.column(i, j) = {i == j ? 1.0 : 0.0, 0.0};
  });
  __syncthreads();
  // The same decision in all threads.
  if (valid) valid = jacobi(m, kJacobiNegligible, shared_array<JacobiRotation>(memory.rotations));
  for_block_items(r, [&](int64_t i) {
    const double own = m.at(i, i).re;
    int rank = 0;
    for (int j = 0; j < r; ++j) {
      const double other = m.at(j, j).re;
      rank += other > own || (other == own && j < i) ? 1 : 0;
    }
    order[valid ? rank : i] = static_cast<int>(i);
  });
  __syncthreads();
  const double blank = valid ? 0.0 : difference / difference;
  const double back = scalbn(1.0, exponent), rho = rho_of(p.rho, p.rho_stride, scene);
  for_block_items(r, [&](int64_t i) {
    const double own = m.at(order[i], order[i]).re;
    const double kept = i < p.elements && own > 0 ? own * back : 0.0;
    values[scene * r + i] = static_cast<T>(kept + rho + blank);
  });
  Complex<T>* const out = complex_at(vectors, scene * r * r);
  for_block_items(r * r, [&](int64_t item) {
    const int row = static_cast<int>(item) / r, i = static_cast<int>(item) % r;
    const Complex<double> value = m.column(order[i], row);
    out[item] = narrowed<T>({value.re + blank, value.im + blank});
  });
}

template <typename T>
RISKERNELS_DEVICE void guard_spectrum_memory(const FactoredSpectrumProblem<T>& p,
                                             int64_t area_bytes, bool on_chip) {
#if !defined(__CUDACC__)
  SpectrumMemory(p.factor.columns, area_bytes, on_chip, Carver(shared_bytes()));
#else
  (void)p, (void)area_bytes, (void)on_chip;
#endif
}

// Writes an entry of the Gram matrix and its mirror image.
struct GramIntoJacobi {
  const JacobiMatrix& m;
  RISKERNELS_DEVICE void operator()(int i, int j, Complex<double> value) const {
    m.at(i, j) = value;
    if (i != j) m.at(j, i) = conj(value);
  }
};

// grid: scenes. From X to the outputs.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_spectrum_kernel(const __grid_constant__ FactoredSpectrumProblem<T> p,
                             const __grid_constant__ GramPlan plan, SpectrumMemory memory,
                             int64_t area_bytes, T* values /* [B, r] */,
                             T* vectors /* [B, r, r] */) {
  guard_spectrum_memory(p, area_bytes, true);
  const int r = static_cast<int>(p.factor.columns);
  auto* const area = shared_array<Complex<double>>(memory.area);
  const JacobiMatrix m{shared_array<Complex<double>>(memory.matrix), area, r, staged_stride(r)};
  joint_gram(
      JointRows<T>(joint_problem(p), blockIdx.x), int64_t{0}, p.elements, GramBlock(plan, 0), area,
      [](int64_t, int) {}, GramIntoJacobi{m});
  decompose_scene(p, blockIdx.x, m, memory, values, vectors);
}

// grid: scenes. From the parts of the Gram matrices to the outputs; with matrix and vectors in
// `outside` [B, 2, r, pitch] where that is not null.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    spectrum_of_parts_kernel(const __grid_constant__ FactoredSpectrumProblem<T> p,
                             const __grid_constant__ GramPlan plan, SpectrumMemory memory,
                             const double* partial, Complex<double>* outside, T* values,
                             T* vectors) {
  const int r = static_cast<int>(p.factor.columns), pitch = staged_stride(r);
  const int64_t entries = static_cast<int64_t>(r) * pitch;
  guard_spectrum_memory(p, entries * sizeof(Complex<double>), outside == nullptr);
  Complex<double>* const first =
      outside == nullptr ? nullptr : outside + 2 * entries * static_cast<int64_t>(blockIdx.x);
  const JacobiMatrix m{
      first == nullptr ? shared_array<Complex<double>>(memory.matrix) : first,
      first == nullptr ? shared_array<Complex<double>>(memory.area) : first + entries, r, pitch};
  sum_gram_parts(plan, partial, blockIdx.x, GramIntoJacobi{m});
  __syncthreads();
  decompose_scene(p, blockIdx.x, m, memory, values, vectors);
}

// 2 V diag(g) V^H [r, r] of a scene, by the threads of a block; V and the products in double.
template <typename T>
RISKERNELS_DEVICE void spectrum_matrix(int r, const Complex<T>* vectors, const T* grad,
                                       int64_t grad_stride, Complex<T>* matrix) {
  for_block_items(static_cast<int64_t>(r) * r, [&](int64_t item) {
    const int64_t i = item / r, j = item % r;
    if (i > j) return;
    Complex<double> sum{};
    for (int k = 0; k < r; ++k) {
      const Complex<T> x = vectors[i * r + k], y = vectors[j * r + k];
      const double weight = 2 * static_cast<double>(grad[k * grad_stride]);
      add_product_conj(sum, Complex<double>{weight * x.re, weight * x.im},
                       Complex<double>{y.re, y.im});
    }
    if (i == j) sum.im = 0;
    matrix[item] = narrowed<T>(sum);
    if (i != j) matrix[j * r + i] = conj(narrowed<T>(sum));
  });
}

template <typename T>
RISKERNELS_DEVICE void write_spectrum_rho(int64_t scene, int r, const T* grad, int64_t grad_stride,
                                          T* to_rho) {
  if (to_rho == nullptr || threadIdx.x != 0) return;
  double sum = 0;
  for (int k = 0; k < r; ++k) sum += grad[k * grad_stride];
  to_rho[scene] = static_cast<T>(sum);
}

struct SpectrumGradientMemory {
  int matrix = 0, area = 0;  // Complex<T> [r, r], [chunk, r]
  int64_t bytes;
  SpectrumGradientMemory(int64_t matrix_bytes, int64_t row_bytes, int64_t chunk,
                         Carver carver = Carver()) {
    matrix = carver.take<char>(matrix_bytes);
    area = carver.take<char>(row_bytes * chunk);
    bytes = carver.used();
  }
};

// What arrives, and what the forward kept.
template <typename T>
struct SpectrumGradient {
  const T* grad;  // [B, r]
  int64_t stride[2];
  const T* vectors;  // [B, r, r]
  T* to_rho;         // [B] or null

  RISKERNELS_DEVICE const T* of(int64_t scene) const { return grad + scene * stride[0]; }
};

// grid: scenes x parts of the rows.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_spectrum_gradient_kernel(const __grid_constant__ FactoredSpectrumProblem<T> p,
                                      const __grid_constant__ ProductPlan plan,
                                      SpectrumGradientMemory memory, SpectrumGradient<T> incoming,
                                      RowGradients<T> out) {
  const int64_t scene = blockIdx.x;
  const FactorRows<T> rows(p.factor, scene);
  const int r = out.of_x, stride = staged_stride(r);
#if !defined(__CUDACC__)
  SpectrumGradientMemory(r * r * sizeof(Complex<T>), stride * sizeof(Complex<T>), plan.chunk,
                         Carver(shared_bytes()));
#endif
  auto* const matrix = shared_array<Complex<T>>(memory.matrix);
  auto* const area = shared_array<Complex<T>>(memory.area);
  spectrum_matrix(r, complex_at(incoming.vectors, scene * r * r), incoming.of(scene),
                  incoming.stride[1], matrix);
  if (blockIdx.y == 0)
    write_spectrum_rho(scene, r, incoming.of(scene), incoming.stride[1], incoming.to_rho);
  const int64_t begin = blockIdx.y * plan.part_rows;
  const int64_t end = begin + plan.part_rows < p.elements ? begin + plan.part_rows : p.elements;
  for (int64_t first = begin; first < end; first += plan.chunk) {
    const int count = minimum(plan.chunk, static_cast<int>(end - first));
    stage_rows<kStageBatch<T>>(rows, RowMask{}, first, count, area, stride);
    __syncthreads();
    block_product(area, stride, count, matrix, r, r, [&](int row, int column, Complex<T> value) {
      out.write(scene * p.elements + first + row, column, value);
    });
    __syncthreads();
  }
}

// grid: scenes. The matrices [B, r, r] where they do not fit a block, and dL/drho.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    factored_spectrum_prepare_kernel(int r, SpectrumGradient<T> incoming, T* matrices) {
  const int64_t scene = blockIdx.x, entries = static_cast<int64_t>(r) * r;
  if (matrices != nullptr)
    spectrum_matrix(r, complex_at(incoming.vectors, scene * entries), incoming.of(scene),
                    incoming.stride[1], complex_at(matrices, scene * entries));
  write_spectrum_rho(scene, r, incoming.of(scene), incoming.stride[1], incoming.to_rho);
}

template <typename T>
void factored_spectrum_forward(const Target& target, const FactoredSpectrumProblem<T>& p, T* values,
                               T* vectors) {
  if (p.scenes == 0) return;
  const int64_t r = p.factor.columns, matrix = SpectrumMemory::matrix_bytes(r);
  const dim3 grid(static_cast<unsigned>(p.scenes));
  const GramPlan plan =
      gram_plan(target, p.scenes, p.elements, r, SpectrumMemory(r, 0, true).bytes);
  const int64_t area = plan.area > matrix ? plan.area : matrix;
  const SpectrumMemory fused(r, area, true);
  if (plan.one_block() && fused.bytes <= target.shared_limit) {
    launch(target, factored_spectrum_kernel<T>, grid, kThreads, fused.bytes, p, plan, fused, area,
           values, vectors);
    return;
  }
  const double* const partial = gram_parts(target, joint_problem(p), plan);
  SpectrumMemory memory(r, matrix, true);
  Complex<double>* outside = nullptr;
  if (memory.bytes > target.shared_limit) {
    memory = SpectrumMemory(r, 0, false);
    outside = static_cast<Complex<double>*>(target.workspace(2 * p.scenes * matrix));
  }
  launch(target, spectrum_of_parts_kernel<T>, grid, kThreads, memory.bytes, p, plan, memory,
         partial, outside, values, vectors);
}

// Null where a gradient is not needed.
template <typename T>
void factored_spectrum_backward(const Target& target, const FactoredSpectrumProblem<T>& p,
                                const T* grad, const int64_t* grad_stride, const T* vectors,
                                T* to_factor, T* to_rho) {
  if (p.scenes == 0 || (to_factor == nullptr && to_rho == nullptr)) return;
  const int64_t r = p.factor.columns, entry = 2 * sizeof(T), matrix = r * r * entry;
  const unsigned scenes = static_cast<unsigned>(p.scenes);
  const SpectrumGradient<T> incoming{grad, {grad_stride[0], grad_stride[1]}, vectors, to_rho};
  const RowGradients<T> out = row_gradients<T>(r, 0, to_factor, nullptr);
  if (to_factor != nullptr) {
    const ProductPlan plan = product_plan<T>(target, p.scenes, p.elements, r, r,
                                             SpectrumGradientMemory(matrix, 0, 0).bytes);
    if (plan.fused) {
      const SpectrumGradientMemory memory(matrix, staged_stride(static_cast<int>(r)) * entry,
                                          plan.chunk);
      launch(target, factored_spectrum_gradient_kernel<T>,
             dim3(scenes, static_cast<unsigned>(plan.parts)), kThreads, memory.bytes, p, plan,
             memory, incoming, out);
      return;
    }
  }
  T* const matrices =
      to_factor == nullptr ? nullptr : static_cast<T*>(target.workspace(p.scenes * matrix));
  launch(target, factored_spectrum_prepare_kernel<T>, dim3(scenes), kThreads, 0,
         static_cast<int>(r), incoming, matrices);
  if (to_factor != nullptr)
    wide_products(target, joint_problem(p), static_cast<const T*>(matrices),
                  static_cast<const double*>(nullptr), out);
}

}  // namespace riskernels::cuda
