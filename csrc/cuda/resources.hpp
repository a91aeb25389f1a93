// SPDX-License-Identifier: Apache-2.0
// Example calls of the operators, from which riskernels.info reports what their kernels take.
//
// An example runs the operator's own plan on a capturing stream: nothing is executed, no memory is
// touched, and the captured graph holds exactly the kernels of such a call, their grids and their
// shared memory. So there is no second list of kernels that could say something else.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "../common/factored_problem.hpp"
#include "../common/tikhonov_problem.hpp"
#include "launch.cuh"

namespace riskernels::cuda {

struct ExampleShape {
  int64_t scenes, snapshots, antennas, elements;  // B, L, M, N
  bool h_per_snapshot;
  bool backward;
  int64_t columns = 0;  // of a factor
  int64_t sources = 0;  // columns of the target's factor, or of the steering vectors
  int64_t points = 0;   // of a spectrum, [G] for all scenes
};

constexpr std::initializer_list<ExampleShape> kTikhonovShapes = {
    {64, 16, 16, 144, false, false}, {64, 16, 16, 144, false, true},
    {64, 16, 16, 144, true, false},  {64, 16, 16, 144, true, true},
    {64, 16, 64, 144, false, false}, {64, 16, 64, 144, false, true},
};
constexpr std::initializer_list<ExampleShape> kNmseShapes = {
    {64, 0, 0, 144, false, false},
    {64, 0, 0, 144, false, true},
};
constexpr std::initializer_list<ExampleShape> kBlendShapes = kNmseShapes;
// The last are split into strips of columns.
constexpr std::initializer_list<ExampleShape> kLeakageShapes = {
    {64, 0, 0, 144, false, false, 0, 5},
    {64, 0, 0, 144, false, true, 0, 5},
    {4, 0, 0, 1024, false, false, 0, 5},
    {4, 0, 0, 1024, false, true, 0, 5},
};
// A scene to a block, and few scenes of many elements.
constexpr std::initializer_list<ExampleShape> kFactoredBlendShapes = {
    {64, 16, 0, 144, false, false, 5},
    {64, 16, 0, 144, false, true, 5},
};
constexpr std::initializer_list<ExampleShape> kFactoredShapes = {
    {64, 0, 0, 144, false, false, 21, 5},
    {64, 0, 0, 144, false, true, 21, 5},
    {4, 0, 0, 4096, false, false, 26, 5},
    {4, 0, 0, 4096, false, true, 26, 5},
};
// The last of more columns than a block decomposes on chip.
constexpr std::initializer_list<ExampleShape> kSpectrumShapes = {
    {64, 0, 0, 144, false, false, 21}, {64, 0, 0, 144, false, true, 21},
    {4, 0, 0, 4096, false, false, 26}, {4, 0, 0, 4096, false, true, 26},
    {4, 0, 0, 144, false, false, 128}, {4, 0, 0, 144, false, true, 128},
};

// Many scenes to a tile, a scene to several tiles, and few points.
constexpr std::initializer_list<ExampleShape> kSteeringShapes = {
    {64, 0, 0, 144, false, false, 5, 0, 16384},  {64, 0, 0, 144, false, true, 5, 0, 16384},
    {4, 0, 0, 1024, false, false, 144, 0, 4096}, {4, 0, 0, 1024, false, true, 144, 0, 4096},
    {64, 0, 0, 144, false, false, 21, 0, 8},     {64, 0, 0, 144, false, true, 21, 0, 8},
};

struct Example {
  const char* op;
  const char* dtype;
  ExampleShape shape;
  void (*start)(const Target&, const ExampleShape&);
};

// Every example of the library.
inline std::vector<Example>& examples() {
  static std::vector<Example> all;
  return all;
}

struct AddExamples {
  using Start = void (*)(const Target&, const ExampleShape&);
  AddExamples(const char* op, Start in_single, Start in_double,
              std::initializer_list<ExampleShape> shapes) {
    for (const auto& shape : shapes) {
      examples().push_back({op, "complex64", shape, in_single});
      examples().push_back({op, "complex128", shape, in_double});
    }
  }
};

// Not null, aligned as torch aligns, and never dereferenced.
template <typename T>
T* example_pointer() {
  return reinterpret_cast<T*>(std::uintptr_t{1} << 20);
}

// [B, N, columns], contiguous.
template <typename T>
Factor<T> example_factor(int64_t elements, int64_t columns) {
  return {example_pointer<T>(), {elements * columns, columns, 1}, columns};
}

template <typename T>
TikhonovProblem<T> example_problem(const ExampleShape& shape) {
  const int64_t l = shape.snapshots, m = shape.antennas, n = shape.elements;
  const int64_t channels = shape.h_per_snapshot ? l : 1;
  TikhonovProblem<T> p{};
  p.scenes = shape.scenes;
  p.snapshots = l;
  p.antennas = m;
  p.elements = n;
  p.y = p.h = p.codes = example_pointer<T>();
  const int64_t y[] = {l * m, m, 1}, codes[] = {l * n, n, 1};
  const int64_t h[] = {channels * m * n, shape.h_per_snapshot ? m * n : 0, n, 1};
  for (int i = 0; i < 3; ++i) {
    p.y_stride[i] = y[i];
    p.codes_stride[i] = codes[i];
  }
  for (int i = 0; i < 4; ++i) p.h_stride[i] = h[i];
  p.h_per_snapshot = shape.h_per_snapshot;
  p.alpha = 1e-3;
  return p;
}

template <typename T>
TikhonovGradients<T> example_gradients() {
  return {example_pointer<T>(), example_pointer<T>(), example_pointer<T>()};
}

}  // namespace riskernels::cuda
