// SPDX-License-Identifier: Apache-2.0
// Forward: a block of points at a time for as many scenes as share it and fit into the cache.
// Backward: the same products, weighted, times the steering vectors turned to have elements in the
// lanes.
#include "carver.hpp"
#include "kernels.hpp"
#include "scratch.hpp"
#include "steering_chunks.hpp"
#include "steering_gradient.hpp"
#include "steering_products.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

constexpr int64_t kDepth = 256;             // elements whose steering vectors are there at a time
constexpr int64_t kGroupBytes = 192 << 10;  // packed factors and projections of a group of scenes

template <typename T>
struct SteeringWork {
  T *table, *x, *c, *a;
  PointLanes<T>* points;

  // For `scenes` scenes at a time.
  SteeringWork(Carver& carver, const SteeringProblem<T>& p, int64_t scenes) {
    const int64_t k = p.factor.columns, depth = p.elements < kDepth ? p.elements : kDepth;
    table = carver.take<T>(4 * p.elements);
    x = carver.take<T>(scenes * 2 * p.elements * k);
    c = carver.take<T>(scenes * 2 * kPoints<T> * k);
    a = carver.take<T>(2 * kPoints<T> * round_up(depth, Simd<T>::W));
    points = carver.take<PointLanes<T>>(1);
  }
};

template <typename T>
void pack_scene(const SteeringProblem<T>& p, int64_t scene, T* x) {
  pack_columns(scene_rows(p.factor, scene), p.elements, x);
}

// c of every scene of a group at one block of points. Leaves in `a` the steering vectors of the
// last kDepth elements.
template <typename T>
void project_block(const SteeringProblem<T>& p, const SteeringWork<T>& work, int64_t scene,
                   int64_t scenes, int64_t block) {
  const int64_t k = p.factor.columns;
  work.points->load(p, scene, block * kPoints<T>);
  for (int64_t n = 0; n < p.elements; n += kDepth) {
    const int64_t count = n + kDepth < p.elements ? kDepth : p.elements - n;
    steering_block(p.taper, count, work.table + 4 * n, *work.points, work.a);
    for (int64_t s = 0; s < scenes; ++s)
      project(n, count, p.elements, k, work.a, work.x + s * 2 * p.elements * k,
              work.c + s * 2 * kPoints<T> * k);
  }
}

// sum_j |c_j|^2 / N
template <typename T>
void store_power(const SteeringProblem<T>& p, const T* c, int64_t count, T* out) {
  using S = Simd<T>;
  const auto scale = S::splat(T(1) / static_cast<T>(p.elements));
  alignas(RISKERNELS_VECTOR_BYTES) T power[kPoints<T>];
#pragma GCC unroll 4
  for (int v = 0; v < kPointVectors; ++v) {
    typename S::V sum{};
    const T* from = c + v * S::W;
    for (int64_t j = 0; j < p.factor.columns; ++j, from += 2 * kPoints<T>) {
      const auto re = S::load(from), im = S::load(from + kPoints<T>);
      sum += re * re;
      sum += im * im;
    }
    S::store(power + v * S::W, sum * scale);
  }
  for (int64_t i = 0; i < count; ++i) out[i] = power[i];
}

}  // namespace

template <typename T>
void steering_power_tasks(const SteeringProblem<T>& p, int64_t& group, int64_t& blocks) {
  const int64_t k = p.factor.columns;
  const int64_t bytes = 2 * k * (p.elements + kPoints<T>)*static_cast<int64_t>(sizeof(T));
  blocks = (p.points + kPoints<T> - 1) / kPoints<T>;
  group = 1;
  if (!p.shared) return;
  // What shares steering vectors has to stay in the second cache, block after block.
  while (group < p.scenes && (group + 1) * bytes <= kGroupBytes) ++group;
}

template <typename T>
void steering_power(const SteeringProblem<T>& p, T* power, int64_t begin, int64_t end) {
  int64_t group, blocks;
  steering_power_tasks(p, group, blocks);
  Carver counter(nullptr);
  const SteeringWork<T> size(counter, p, group);
  Carver carver(thread_scratch(counter.used()));
  const SteeringWork<T> work(carver, p, group);
  load_elements(p, work.table);
  int64_t packed = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t scene = task / blocks * group, block = task % blocks;
    const int64_t scenes = scene + group < p.scenes ? group : p.scenes - scene;
    if (packed != scene) {
      for (int64_t s = 0; s < scenes; ++s)
        pack_scene(p, scene + s, work.x + s * 2 * p.elements * p.factor.columns);
      packed = scene;
    }
    project_block(p, work, scene, scenes, block);
    const int64_t first = block * kPoints<T>;
    const int64_t count = first + kPoints<T> < p.points ? kPoints<T> : p.points - first;
    for (int64_t s = 0; s < scenes; ++s)
      store_power(p, work.c + s * 2 * kPoints<T> * p.factor.columns, count,
                  power + (scene + s) * p.points + first);
  }
}

namespace {

template <typename T>
struct GradientWork {
  using S = Simd<T>;
  int64_t pitch, turned_pitch;
  SteeringWork<T> forward;
  T *turned_re, *turned_im, *sum_re, *sum_im;

  GradientWork(Carver& carver, const SteeringProblem<T>& p)
      : pitch(round_up(p.elements, S::W)),
        turned_pitch(pitch < kDepth ? pitch : kDepth),
        forward(carver, p, 1) {
    turned_re = carver.take<T>(kPoints<T> * turned_pitch);
    turned_im = carver.take<T>(kPoints<T> * turned_pitch);
    sum_re = carver.take<T>(p.factor.columns * pitch);
    sum_im = carver.take<T>(p.factor.columns * pitch);
  }
};

// c *= 2 gbar / N; a point beyond the last has no weight.
template <typename T>
void weigh_projections(const SteeringProblem<T>& p, const T* grad, int64_t grad_stride,
                       int64_t first, T* c) {
  using S = Simd<T>;
  const T scale = T(2) / static_cast<T>(p.elements);
  alignas(RISKERNELS_VECTOR_BYTES) T weights[kPoints<T>];
  for (int64_t i = 0; i < kPoints<T>; ++i)
    weights[i] = first + i < p.points ? scale * grad[(first + i) * grad_stride] : T(0);
  for (int64_t j = 0; j < 2 * p.factor.columns; ++j, c += kPoints<T>)
#pragma GCC unroll 4
    for (int v = 0; v < kPointVectors; ++v)
      S::store(c + v * S::W, S::load(c + v * S::W) * S::load(weights + v * S::W));
}

template <typename T>
void add_gradient_block(const SteeringProblem<T>& p, const GradientWork<T>& work, int64_t scene,
                        const T* grad, int64_t grad_stride, int64_t block) {
  using S = Simd<T>;
  const auto& forward = work.forward;
  project_block(p, forward, scene, 1, block);
  weigh_projections(p, grad, grad_stride, block * kPoints<T>, forward.c);
  for (int64_t n = 0; n < p.elements; n += kDepth) {
    const int64_t count = n + kDepth < p.elements ? kDepth : p.elements - n;
    // Where there is but one stretch of elements, its steering vectors are still there.
    if (p.elements > kDepth)
      steering_block(p.taper, count, forward.table + 4 * n, *forward.points, forward.a);
    turn_steering(count, forward.a, work.turned_pitch, work.turned_re, work.turned_im);
    add_outer(p.factor.columns, (count + S::W - 1) / S::W, forward.c, work.turned_re,
              work.turned_im, work.turned_pitch, work.sum_re + n, work.sum_im + n, work.pitch);
  }
}

}  // namespace

// Task scene * parts + part: the sum over the chunks of one part of a scene's points, in the order
// of the chunks.
template <typename T>
void steering_power_backward(const SteeringProblem<T>& p, const T* grad, const int64_t* grad_stride,
                             int64_t parts, T* sums, int64_t begin, int64_t end) {
  const int64_t k = p.factor.columns, chunks = steering_chunks(p.points);
  const int64_t chunk_blocks = chunk_points(p.points) / kPoints<T>;
  const int64_t blocks = (p.points + kPoints<T> - 1) / kPoints<T>;
  Carver counter(nullptr);
  const GradientWork<T> size(counter, p);
  Carver carver(thread_scratch(counter.used()));
  const GradientWork<T> work(carver, p);
  load_elements(p, work.forward.table);
  int64_t packed = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t scene = task / parts, part = task % parts;
    if (packed != scene) pack_scene(p, scene, work.forward.x);
    packed = scene;
    T* const out = sums + 2 * task * p.elements * k;
    for (int64_t i = 0; i < 2 * p.elements * k; ++i) out[i] = T(0);
    const int64_t last = (part + 1) * chunks / parts;
    for (int64_t chunk = part * chunks / parts; chunk < last; ++chunk) {
      for (int64_t i = 0; i < k * work.pitch; ++i) work.sum_re[i] = work.sum_im[i] = T(0);
      const int64_t stop =
          (chunk + 1) * chunk_blocks < blocks ? (chunk + 1) * chunk_blocks : blocks;
      for (int64_t block = chunk * chunk_blocks; block < stop; ++block)
        add_gradient_block(p, work, scene, grad + scene * grad_stride[0], grad_stride[1], block);
      for (int64_t n = 0; n < p.elements; ++n)
        for (int64_t j = 0; j < k; ++j) {
          out[2 * (n * k + j)] += work.sum_re[j * work.pitch + n];
          out[2 * (n * k + j) + 1] += work.sum_im[j * work.pitch + n];
        }
    }
  }
}

// Adds the parts of each scene, in their order.
template <typename T>
void steering_power_finish(const SteeringProblem<T>& p, int64_t parts, const T* sums, T* gradient,
                           int64_t begin, int64_t end) {
  const int64_t size = 2 * p.elements * p.factor.columns;
  for (int64_t scene = begin; scene < end; ++scene) {
    T* const out = gradient + scene * size;
    const T* from = sums + scene * parts * size;
    for (int64_t i = 0; i < size; ++i) out[i] = from[i];
    for (int64_t part = 1; part < parts; ++part) {
      from += size;
      for (int64_t i = 0; i < size; ++i) out[i] += from[i];
    }
  }
}

#define RISKERNELS_INSTANTIATE(T)                                                               \
  template void steering_power_tasks<T>(const SteeringProblem<T>&, int64_t&, int64_t&);         \
  template void steering_power<T>(const SteeringProblem<T>&, T*, int64_t, int64_t);             \
  template void steering_power_backward<T>(const SteeringProblem<T>&, const T*, const int64_t*, \
                                           int64_t, T*, int64_t, int64_t);                      \
  template void steering_power_finish<T>(const SteeringProblem<T>&, int64_t, const T*, T*,      \
                                         int64_t, int64_t);
RISKERNELS_INSTANTIATE(float)
RISKERNELS_INSTANTIATE(double)
#undef RISKERNELS_INSTANTIATE

}  // namespace riskernels::RISKERNELS_ISA
