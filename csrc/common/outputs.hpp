// SPDX-License-Identifier: Apache-2.0
// Allocation of outputs.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensor_checks.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace riskernels {

// A contiguous uninitialised tensor on the device of `like`. Not by torch::stable::new_empty: from
// torch 2.10 on it looks the operator up by its name, which takes as long as a small scene. Large
// ones on the CPU ask for huge pages, as NumPy's do: where the memory is fresh from the kernel,
// faulting it in by 4 KiB pages costs more than the whole computation.
inline torch::stable::Tensor new_output(const torch::stable::Tensor& like,
                                        const std::vector<int64_t>& sizes,
                                        std::optional<torch::headeronly::ScalarType> dtype = {}) {
  int32_t type, layout, device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(like.get(), &layout));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  if (dtype.has_value())
    type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  AtenTensorHandle handle;
  // The reason goes to stderr; what torch's macro would throw names a line of this file alone.
  if (aoti_torch_aten_new_empty(like.get(), sizes.data(), static_cast<int64_t>(sizes.size()), &type,
                                &layout, &device_type, device_index, nullptr,
                                &handle) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("riskernels: an output of shape " + shape_text(sizes) +
                             " could not be allocated");
  torch::stable::Tensor tensor(handle);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096, kLarge = std::uintptr_t{1} << 22;
  const auto bytes = static_cast<std::uintptr_t>(tensor.numel()) * tensor.element_size();
  if (bytes >= kLarge && tensor.is_cpu()) {
    const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data_ptr());
    const auto first = (begin + kPage - 1) / kPage * kPage;
    const auto last = (begin + bytes) / kPage * kPage;
    // Advice: where the kernel does not take it, nothing is lost.
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

// The gradient to `input`; an empty tensor where it is not needed.
inline torch::stable::Tensor new_gradient(const torch::stable::Tensor& input, bool needed) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; needed && i < input.dim(); ++i) sizes.push_back(input.size(i));
  return new_output(input, needed ? sizes : std::vector<int64_t>{0});
}

}  // namespace riskernels
