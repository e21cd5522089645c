#pragma once

#include <mlx/array.h>
#include <mlx/device.h>

#include <functional>
#include <string>
#include <vector>

namespace lquant::kernels {

namespace mx = mlx::core;

/// True when the CPU kernels of this folder serve the default device; false on a GPU, where they are not built, or with
/// LQUANT_KERNELS=mlx in the environment (read once; another value throws UsageError), which makes a CPU compute what a GPU without
/// kernels of ours would. Every op asks this and runs on MLX's own ops otherwise.
bool cpu_kernels();

/// True when MLX can compile and run CUDA kernels for the default device, and LQUANT_KERNELS does not say mlx.
bool cuda_kernels();

/// Evaluates the arrays. On a GPU that is only begun, so that what comes next is made ready while it computes, unless they are large: memory that a
/// queued operation lets go of is free only when it is done. Whoever needs a number waits for it.
void settle(std::vector<mx::array> arrays);

/// While one lives, cpu_kernels() and cuda_kernels() are false on this thread: the way to run what a GPU without kernels of ours would run.
class MlxOpsOnly {
 public:
  MlxOpsOnly();
  ~MlxOpsOnly();
  MlxOpsOnly(const MlxOpsOnly&) = delete;
  MlxOpsOnly& operator=(const MlxOpsOnly&) = delete;
};

/// Computes one op on the CPU. Inputs are evaluated and row-contiguous; outputs are allocated and row-contiguous.
/// Runs on the thread that called eval; may use all cores through parallel_for and oneDNN. What it throws reaches the
/// caller of eval, and the arrays of that graph can be evaluated again.
using Compute = std::function<void(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs)>;

/// Gradients of the op for the inputs named by argnums, in that order. `outputs` are the forward results, so what the
/// backward pass needs (say, a row's log-sum-exp) is made an extra output. A cotangent of an output that nobody used
/// arrives as zeros.
using Vjp = std::function<std::vector<mx::array>(const std::vector<mx::array>& inputs, const std::vector<mx::array>& cotangents,
                                                 const std::vector<int>& argnums, const std::vector<mx::array>& outputs)>;

struct Output {
  mx::Shape shape;
  mx::Dtype dtype;
};

/// A lazy MLX op evaluated on the CPU by `compute`, differentiable when `vjp` is given (else asking throws).
/// Throws std::invalid_argument when no CPU kernels are built in.
std::vector<mx::array> make_op(const char* name, const std::vector<mx::array>& inputs, const std::vector<Output>& outputs, Compute compute,
                               Vjp vjp = nullptr);

}  // namespace lquant::kernels
