// SPDX-License-Identifier: Apache-2.0
// Build facts for riskernels.info. Nothing here touches a tensor: operators live in the two
// libraries that torch loads.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_build, m) {
  m.doc() = "Facts about the build of the native libraries.";
  m.attr("compiler") = RISKERNELS_COMPILER;
  m.attr("flags") = RISKERNELS_FLAGS;
  m.attr("simd_levels") = RISKERNELS_SIMD_LEVELS;
  m.attr("torch_version") = RISKERNELS_TORCH_VERSION;
  m.attr("torch_abi") = RISKERNELS_TORCH_ABI;
  m.attr("cuda") = RISKERNELS_CUDA_FACTS;
  m.attr("cuda_architectures") = RISKERNELS_CUDA_ARCHITECTURES;
}
