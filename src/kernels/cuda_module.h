#pragma once

#include <mlx/array.h>
#include <mlx/fast.h>

#include <string>
#include <vector>

// Kernels of this program's own CUDA text. MLX compiles such text too (mx::fast::cuda_kernel), but anew in every process and with all its headers
// before it: 1.7 seconds a kernel. Here the text alone goes to the same compiler, NVRTC, which MLX has brought along, in a tenth of the time.
namespace lquant::kernels {

namespace mx = mlx::core;

/// An array that a kernel takes or makes, under the name that its body uses. Inputs are made row-contiguous.
struct CudaInput {
  const char* name;
  mx::array array;
};
struct CudaOutput {
  const char* name;
  mx::Shape shape;
  mx::Dtype dtype;
};
struct CudaScalar {
  const char* name;
  mx::fast::ScalarArg value;
};

struct CudaCall {
  std::string name;  ///< of the kernel, different for each body
  const char* text;  ///< device functions, a .cu file of the room that calls; numbers.cu is put before it
  std::string body;  ///< of the kernel: calls a function of the text. Arrays are pointers to float, lquant::bf16, lquant::f16, unsigned int …
  std::vector<CudaInput> inputs;
  std::vector<CudaOutput> outputs;
  std::vector<CudaScalar> scalars;
  int blocks, threads;
  int shared_bytes = 0;  ///< of shared memory whose size the text leaves open
};

/// The outputs, lazy. Only where cuda_kernels(). Throws std::runtime_error with the compiler's words when the text is wrong or there is no compiler.
std::vector<mx::array> call(const CudaCall& call);

/// The name of a dtype in the device's text, such as "lquant::bf16".
std::string cuda_type(mx::Dtype dtype);

/// Of the default device, 90 for sm_90: what it can do (docs.nvidia.com/cuda, compute capabilities). Only where cuda_kernels().
int compute_capability();

/// Blocks of so many threads for `count` of them.
int blocks_for(std::size_t count, int threads);

}  // namespace lquant::kernels
