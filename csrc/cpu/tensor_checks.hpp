// SPDX-License-Identifier: Apache-2.0
// What the launchers ask of their tensors. Messages name the operator, what it got and what it
// expects, in the words of riskernels/ops/_checks.py.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace riskernels {

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

inline ScalarType real_of(ScalarType complex) {
  return complex == ScalarType::ComplexFloat ? ScalarType::Float : ScalarType::Double;
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor,
                        ScalarType expected) {
  if (tensor.scalar_type() != expected)
    fail(op, name, " has dtype ", dtype_text(tensor.scalar_type()), ", expected ",
         dtype_text(expected));
}

inline void check_cpu(const char* op, const char* name, const Tensor& tensor) {
  if (!tensor.is_cpu()) fail(op, name, " is on another device, expected cpu as the first argument");
}

inline void check_complex(const char* op, const char* name, const Tensor& tensor) {
  check_cpu(op, name, tensor);
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
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        std::initializer_list<int64_t> expected) {
  if (shape(tensor) != std::vector<int64_t>(expected))
    fail(op, name, " has shape ", shape_text(tensor), ", expected ",
         shape_text(std::vector<int64_t>(expected)));
}

template <typename T>
const T* real_pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}
template <typename T>
T* mutable_real_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Scenes on torch's own thread pool. A scene is a task: work inside one is never split, so the
// result does not depend on the number of threads. An exception cannot cross torch's C callback,
// so the first one is carried around it.
template <typename F>
void for_each_range(int64_t scenes, const F& f) {
  if (scenes == 0) return;
  std::exception_ptr error;
  std::mutex guard;
  torch::stable::parallel_for(0, scenes, 1, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace riskernels
