// SPDX-License-Identifier: Apache-2.0
// What the launchers of every device ask of their tensors. Messages name the operator, what it got
// and what it expects, in the words and the order of riskernels/ops/_checks.py.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace riskernels {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "riskernels::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_text(const std::vector<int64_t>& sizes) {
  std::ostringstream text;
  text << '[';
  for (std::size_t i = 0; i < sizes.size(); ++i) text << (i > 0 ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

inline std::vector<int64_t> shape(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
  return sizes;
}

inline std::string shape_text(const Tensor& tensor) { return shape_text(shape(tensor)); }

inline const char* dtype_text(ScalarType type) {
  switch (type) {
    case ScalarType::ComplexHalf:
      return "torch.complex32";
    case ScalarType::ComplexFloat:
      return "torch.complex64";
    case ScalarType::ComplexDouble:
      return "torch.complex128";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Bool:
      return "torch.bool";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    default:
      return "another dtype";
  }
}

inline std::string device_text(const Tensor& tensor) {
  const auto device = tensor.device();
  switch (device.type()) {
    case DeviceType::CPU:
      return "cpu";
    case DeviceType::CUDA:
      return "cuda:" + std::to_string(device.index());
    case DeviceType::Meta:
      return "meta";
    default:
      return "another device";
  }
}

inline ScalarType real_of(ScalarType complex) {
  return complex == ScalarType::ComplexFloat ? ScalarType::Float : ScalarType::Double;
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor,
                        ScalarType expected) {
  if (tensor.scalar_type() != expected)
    fail(op, name, " has dtype ", dtype_text(tensor.scalar_type()), ", expected ",
         dtype_text(expected));
}

inline bool same_device(const Tensor& tensor, const Tensor& like) {
  return tensor.device() == like.device();
}

// The dispatcher sends a call here if any tensor is on the launcher's device. Only after all others
// were found to be where the first is does it say something that the first is there too.
inline void check_device(const char* op, const char* name, const Tensor& first,
                         DeviceType launcher) {
  if (first.device().type() != launcher)
    fail(op, name, " is on ", device_text(first), ", where this kernel does not run");
}

inline void check_complex(const char* op, const char* name, const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  if (type != ScalarType::ComplexFloat && type != ScalarType::ComplexDouble)
    fail(op, name, " has dtype ", dtype_text(type), ", expected complex64 or complex128");
}

inline void check_complex(const char* op, const char* name, const Tensor& tensor,
                          const Tensor& like) {
  check_complex(op, name, tensor);
  if (tensor.scalar_type() != like.scalar_type())
    fail(op, name, " has dtype ", dtype_text(tensor.scalar_type()), ", expected ",
         dtype_text(like.scalar_type()), " as the first argument");
  if (!same_device(tensor, like))
    fail(op, name, " is on ", device_text(tensor), ", expected ", device_text(like),
         " as the first argument");
}

// Without a copy of the sizes: it would take as long as a small scene.
inline bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> expected) {
  if (tensor.dim() != static_cast<int64_t>(expected.size())) return false;
  int64_t i = 0;
  for (const int64_t size : expected)
    if (tensor.size(i++) != size) return false;
  return true;
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        std::initializer_list<int64_t> expected) {
  if (!has_shape(tensor, expected))
    fail(op, name, " has shape ", shape_text(tensor), ", expected ",
         shape_text(std::vector<int64_t>(expected)));
}

// A tensor of the given dtype and shape on the device of `like`.
inline void check_companion(const char* op, const char* name, const Tensor& tensor,
                            ScalarType dtype, std::initializer_list<int64_t> expected,
                            const Tensor& like) {
  check_dtype(op, name, tensor, dtype);
  if (!same_device(tensor, like))
    fail(op, name, " is on ", device_text(tensor), ", expected ", device_text(like));
  check_shape(op, name, tensor, expected);
}

// The same, real in the precision of `like`.
inline void check_real_companion(const char* op, const char* name, const Tensor& tensor,
                                 std::initializer_list<int64_t> expected, const Tensor& like) {
  check_companion(op, name, tensor, real_of(like.scalar_type()), expected, like);
}

template <typename T>
const T* real_pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}
template <typename T>
T* mutable_real_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace riskernels
