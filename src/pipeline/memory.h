#pragma once

#include <cstddef>
#include <optional>

#include "base/figures.h"
#include "model/spec.h"
#include "plan/plan.h"
#include "run/context.h"

namespace lquant::pipeline {

struct MemoryUse {
  int batch_size, max_seq_length;
  bool grad_checkpoint, move_codes;
};

/// Bytes that a dwq run is expected to need at its peak, from shapes alone.
double expected_memory(const model::ModelSpec& spec, const plan::QuantPlan& plan, const MemoryUse& use);

/// The most memory that this process has held: on a CPU its peak resident set; on a GPU what MLX had in use at its peak or, if that is more, has in
/// use and cached now.
std::uint64_t peak_use();

/// Settles how MLX works on a GPU; nothing on a CPU. It caches no more freed memory than a sixteenth of all that there is (without a bound it keeps
/// what it has once had: 54 GB where 4 GB were in use), and on CUDA it compiles graphs without fusing them: each fused kernel would be a second of
/// the CUDA compiler's work when it is first met.
void prepare_device();

/// Lets MLX launch kernels one by one on CUDA, for methods whose sequences of kernels hardly repeat: it would make a graph of each of them and throw
/// most away, in GPTQ a sixth of the time. Without effect once the device has computed something.
void without_cuda_graphs();
/// While it lives, MLX caches no more than `bytes` of a GPU's freed memory.
class CacheBound {
 public:
  explicit CacheBound(double bytes);
  ~CacheBound();
  CacheBound(const CacheBound&) = delete;
  CacheBound& operator=(const CacheBound&) = delete;

 private:
  std::optional<std::size_t> before_;
};

/// Bytes that this device has (GPU: the device's; CPU: the machine's), 0 when unknown.
double available_memory();

/// Says what to do when the expected peak comes near what there is: distil from an 8-bit model, shorter sequences, a smaller batch,
/// --grad-checkpoint.
void advise_memory(const model::ModelSpec& spec, const plan::QuantPlan& plan, const MemoryUse& use, const run::Context& context);

/// Gives memory that is free back to the system, of models with routed experts. Between parts of a block's work, which have arrays of different
/// sizes: what one of them has freed in pieces would else stand beside what the next one takes. Other models take the same sizes again, and pages
/// anew cost them a tenth of the time.
void release_freed_memory(const model::ModelSpec& spec);

/// Tokens that are worked through at once: on a CPU, whose products are as fast with 1,024 rows as with more, 1,024; a GPU wants
/// more of them, as far as its memory goes.
int micro_tokens(const model::ModelSpec& spec);

}  // namespace lquant::pipeline
