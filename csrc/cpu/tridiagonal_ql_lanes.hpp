// SPDX-License-Identifier: Apache-2.0
// T = Z diag(lambda) Z^T of real tridiagonal matrices, one per vector lane, by the implicit QL
// iteration with Wilkinson's shift. Each lane takes the decisions of its own matrix (shifts,
// deflations, convergence); one that has nothing to do gets the identity, so its result does not
// depend on its neighbours.
#pragma once

#include "tridiagonal_lanes.hpp"

namespace riskernels::RISKERNELS_ISA {

// The iteration needs about two sweeps per eigenvalue; LAPACK too gives up at 30.
constexpr int64_t kSweepsPerEigenvalue = 30;

// The unreduced block [first, last] that each lane works on next; first = n - 1 where none is left.
struct QlBlocks {
  Words first, last;
  int64_t lowest, highest;  // over the lanes; lowest >= highest where no lane has a block
};

// Deflates and looks for blocks from row `from` on. An off-diagonal entry of eps |A| (matrices are
// scaled to |A| >= 1) moves no eigenvalue by more, and it may go whatever its neighbours: where the
// matrix has lost its rank, they too are rounding errors, and would only be turned into each other.
RISKERNELS_INLINE QlBlocks next_blocks(const EigenLanes& t, int64_t from) {
  const int64_t n = t.size, step = Double::W;
  const auto none = words(n - 1);
  QlBlocks found{none, none, n - 1, 0};
  Words open = Words{}, closed = Words{};
  for (int64_t i = from; i + 1 < n; ++i) {
    const auto entry = Double::load(t.beside + i * step);
    auto bound = magnitudes(Double::load(t.diagonal + i * step)) +
                 magnitudes(Double::load(t.diagonal + (i + 1) * step));
    bound = Double::kEpsilon * (bound > 1.0 ? bound : Double::splat(1.0));
    const auto small = magnitudes(entry) <= bound;
    Double::store(t.beside + i * step, small ? Doubles{} : entry);
    const auto begins = ~small & ~open, ends = small & open & ~closed;
    found.first = begins ? words(i) : found.first;
    found.last = ends ? words(i) : found.last;
    open |= begins;
    closed |= ends;
  }
  for (int w = 0; w < Double::W; ++w) {
    if (open[w] == 0) continue;
    found.lowest = found.first[w] < found.lowest ? found.first[w] : found.lowest;
    found.highest = found.last[w] > found.highest ? found.last[w] : found.highest;
  }
  return found;
}

// Wilkinson's shift of each lane's block: d_last - shift, where the sweep begins.
RISKERNELS_INLINE Doubles shifted_starts(const EigenLanes& t, const QlBlocks& blocks) {
  const int64_t step = Double::W;
  alignas(RISKERNELS_VECTOR_BYTES) double start[Double::W];
  for (int w = 0; w < Double::W; ++w) {
    const int64_t first = blocks.first[w], last = blocks.last[w];
    start[w] = 0.0;
    if (first >= last) continue;
    const auto at = [&](const double* p, int64_t i) { return p[i * step + w]; };
    const double beside = at(t.beside, first), d = at(t.diagonal, first);
    const double slope = (at(t.diagonal, first + 1) - d) / (2.0 * beside);
    const double root = __builtin_sqrt(slope * slope + 1.0);
    start[w] = at(t.diagonal, last) - d + beside / (slope + (slope < 0.0 ? -root : root));
  }
  return Double::load(start);
}

// Columns i and i + 1 of Z rotated.
RISKERNELS_INLINE void rotate_columns(const EigenLanes& t, int64_t i, Doubles cosine,
                                      Doubles sine) {
  double* here = t.vectors.at(0, i).re;
  for (int64_t k = 0; k < t.size; ++k, here += Double::W) {
    double* const next = here + t.vectors.column;
    const auto x = Double::load(here), y = Double::load(next);
    Double::store(next, sine * x + cosine * y);
    Double::store(here, cosine * x - sine * y);
  }
}

// One implicit QL sweep of every lane over its own block, of T and Z. The rotations of T are a
// chain of dependent roots and divisions, in whose shadow Z takes the rotation before.
RISKERNELS_INLINE void sweep_blocks(const EigenLanes& t, const QlBlocks& blocks) {
  const int64_t step = Double::W;
  const auto one = Double::splat(1.0), zero = Doubles{};
  auto g = shifted_starts(t, blocks), sine = one, cosine = one, pull = zero;
  auto column_cosine = one, column_sine = zero;
  for (int64_t i = blocks.highest - 1; i >= blocks.lowest; --i) {
    const auto active = (blocks.first <= words(i)) & (blocks.last > words(i));
    const auto starts = blocks.last == words(i + 1), ends = active & (blocks.first == words(i));
    double *const d = t.diagonal + i * step, *const e = t.beside + i * step;
    const auto beside = Double::load(e), after = Double::load(e + step);
    const auto d_here = Double::load(d), d_after = Double::load(d + step);
    const auto f = sine * beside, b = cosine * beside;
    const auto square = f * f + g * g;
    // Where nothing is left to rotate any rotation serves; the identity is exact.
    const auto rotates = square > kNegligibleSquare;
    const auto norm = square_roots(square), inverse = one / norm;
    const auto new_sine = rotates ? f * inverse : zero;
    const auto new_cosine = rotates ? g * inverse : one;
    const auto base = d_after - pull;
    const auto r = (d_here - base) * new_sine + 2.0 * new_cosine * b;
    const auto new_pull = new_sine * r;
    const auto new_g = new_cosine * r - b;
    Double::store(e + step, active ? (starts ? zero : norm) : after);
    Double::store(d + step, active ? base + new_pull : d_after);
    Double::store(e, ends ? new_g : beside);
    Double::store(d, ends ? d_here - new_pull : d_here);
    if (i + 1 < blocks.highest) rotate_columns(t, i + 1, column_cosine, column_sine);
    column_cosine = active ? new_cosine : one;
    column_sine = active ? new_sine : zero;
    g = active ? new_g : g;
    sine = active ? new_sine : sine;
    cosine = active ? new_cosine : cosine;
    pull = active ? new_pull : pull;
  }
  rotate_columns(t, blocks.lowest, column_cosine, column_sine);
}

// T -> its eigenvalues, and Z; returns all ones for the lanes that converged.
inline Words diagonalise_lanes(const EigenLanes& t) {
  const auto one = Double::splat(1.0);
  for (int64_t i = 0; i < t.size; ++i)
    for (int64_t j = 0; j < t.size; ++j)
      Double::store(t.vectors.at(i, j).re, i == j ? one : Doubles{});
  auto blocks = next_blocks(t, 0);
  for (int64_t sweep = 0; sweep < kSweepsPerEigenvalue * t.size; ++sweep) {
    if (blocks.lowest >= blocks.highest) break;
    sweep_blocks(t, blocks);
    blocks = next_blocks(t, blocks.lowest);
  }
  return blocks.first >= blocks.last;
}

}  // namespace riskernels::RISKERNELS_ISA
