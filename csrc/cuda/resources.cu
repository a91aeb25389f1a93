// SPDX-License-Identifier: Apache-2.0
// Registers, shared memory, spills and occupancy of the kernels, as the driver states them.
#include <cxxabi.h>

#include <cstdlib>
#include <exception>
#include <sstream>
#include <string>

#include "resources.hpp"

namespace riskernels::cuda {
namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return result + '"';
}

std::string kernel_name(const void* kernel) {
  const char* mangled = nullptr;
  check(cudaFuncGetName(&mangled, kernel), "name of a kernel");
  int status = 0;
  char* const readable = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  const std::string name = status == 0 ? readable : mangled;
  std::free(readable);
  return name;
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device attribute");
  return value;
}

struct Stream {
  cudaStream_t handle = nullptr;
  Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "stream"); }
  ~Stream() { cudaStreamDestroy(handle); }
};

struct Graph {
  cudaGraph_t handle = nullptr;
  ~Graph() {
    if (handle != nullptr) cudaGraphDestroy(handle);
  }
};

void capture(const Example& example, const Stream& stream, int device, Graph& graph) {
  const Target target{attribute(cudaDevAttrMultiProcessorCount, device),
                      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device), stream.handle,
                      [](int64_t) -> void* { return example_pointer<char>(); }, device};
  check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeRelaxed), "begin of capture");
  std::exception_ptr error;
  try {
    example.start(target, example.shape);
  } catch (...) {
    error = std::current_exception();
  }
  const auto ended = cudaStreamEndCapture(stream.handle, &graph.handle);
  if (error) std::rethrow_exception(error);
  check(ended, "end of capture");
}

void describe_kernel(const cudaKernelNodeParams& node, int device, std::ostream& out) {
  cudaFuncAttributes facts{};
  check(cudaFuncGetAttributes(&facts, node.func), "attributes of a kernel");
  const int threads = static_cast<int>(node.blockDim.x * node.blockDim.y * node.blockDim.z);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, node.func, threads,
                                                      node.sharedMemBytes),
        "occupancy");
  const double most = attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device);
  out << "{\"kernel\": " << quoted(kernel_name(node.func)) << ", \"registers\": " << facts.numRegs
      << ", \"local_bytes\": " << facts.localSizeBytes
      << ", \"static_shared_bytes\": " << facts.sharedSizeBytes
      << ", \"dynamic_shared_bytes\": " << node.sharedMemBytes << ", \"threads\": " << threads
      << ", \"blocks\": " << static_cast<int64_t>(node.gridDim.x) * node.gridDim.y * node.gridDim.z
      << ", \"blocks_per_multiprocessor\": " << blocks
      << ", \"occupancy\": " << blocks * threads / most << '}';
}

void describe_example(const Example& example, const Stream& stream, int device, std::ostream& out) {
  Graph graph;
  capture(example, stream, device, graph);
  std::size_t count = 0;
  check(cudaGraphGetNodes(graph.handle, nullptr, &count), "nodes of the graph");
  std::vector<cudaGraphNode_t> nodes(count);
  check(cudaGraphGetNodes(graph.handle, nodes.data(), &count), "nodes of the graph");
  const auto& at = example.shape;
  out << "{\"operator\": " << quoted(example.op) << ", \"dtype\": " << quoted(example.dtype)
      << ", \"pass\": " << (at.backward ? "\"backward\"" : "\"forward\"")
      << ", \"B\": " << at.scenes << ", \"L\": " << at.snapshots << ", \"M\": " << at.antennas
      << ", \"N\": " << at.elements << ", \"columns\": " << at.columns
      << ", \"sources\": " << at.sources << ", \"points\": " << at.points
      << ", \"h_per_snapshot\": " << (at.h_per_snapshot ? "true" : "false") << ", \"kernels\": [";
  const char* separator = "";
  for (const auto node : nodes) {
    cudaGraphNodeType type{};
    check(cudaGraphNodeGetType(node, &type), "type of a node");
    if (type != cudaGraphNodeTypeKernel) continue;
    cudaKernelNodeParams parameters{};
    check(cudaGraphKernelNodeGetParams(node, &parameters), "parameters of a kernel");
    out << separator;
    describe_kernel(parameters, device, out);
    separator = ", ";
  }
  out << "]}";
}

std::string describe_all() {
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  std::ostringstream out;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "device properties");
  out << "{\"device\": " << quoted(properties.name) << ", \"compute_capability\": \""
      << properties.major << '.' << properties.minor << "\", \"calls\": [";
  const Stream stream;
  const char* separator = "";
  for (const auto& example : examples()) {
    out << separator;
    describe_example(example, stream, device, out);
    separator = ", ";
  }
  out << "]}";
  return out.str();
}

}  // namespace
}  // namespace riskernels::cuda

// Read through ctypes: a JSON object, {"error": ...} where the device does not answer. The text is
// valid until the thread's next call.
extern "C" __attribute__((visibility("default"))) const char* riskernels_cuda_resources() {
  thread_local std::string text;
  try {
    text = riskernels::cuda::describe_all();
  } catch (const std::exception& error) {
    text = "{\"error\": " + riskernels::cuda::quoted(error.what()) + "}";
  }
  return text.c_str();
}
