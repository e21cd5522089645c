#include "pipeline/memory.h"

#include <fmt/format.h>
#include <mlx/compile.h>
#include <mlx/mlx.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>

#include "kernels/primitive.h"
#include "pipeline/expert_rows.h"

namespace lquant::pipeline {
namespace mx = mlx::core;

namespace {

/// Values that one token leaves behind in one block for the backward pass: inputs and outputs of norms, products and the gate.
double kept_per_token(const model::BlockSpec& block) {
  double width = 0;
  for (const auto* linear : block.linears()) {
    using Stack = model::LinearSpec::Stack;
    // Heads have one side of their own each; the other is the latent, which the linear that makes it counts.
    if (linear->experts == 0)
      width += linear->in + linear->out;
    else if (!linear->routed())
      width += double(linear->experts) * (linear->stack == Stack::sliced ? linear->in : linear->out);
  }
  return width;
}

}  // namespace

int micro_tokens(const model::ModelSpec& spec) {
  if (kernels::cpu_kernels()) return 1024;
  double kept = 0;
  for (const auto& block : spec.blocks) kept += 2 * spec.passes * kept_per_token(block);
  // A quarter of the memory for activations leaves room for weights, gradients and the head's chunks.
  const double room = available_memory() / 4;
  // Products with 4,096 rows are as fast as with more.
  return std::clamp(static_cast<int>(room / std::max(1.0, kept)), 1024, 4096);
}

std::uint64_t peak_use() {
  if (mx::default_device() != mx::Device::gpu) return peak_memory();
  return std::max(mx::get_peak_memory(), mx::get_active_memory() + mx::get_cache_memory());
}

void prepare_device() {
  if (mx::default_device() != mx::Device::gpu) return;
  const auto share = static_cast<std::size_t>(available_memory() / 16);
  mx::set_cache_limit(std::max(share, std::size_t{1} << 30));
  if (kernels::cuda_kernels()) mx::set_compile_mode(mx::CompileMode::no_fuse);
}

void without_cuda_graphs() {
  if (kernels::cuda_kernels()) setenv("MLX_USE_CUDA_GRAPHS", "0", 0);
}

CacheBound::CacheBound(double bytes) {
  if (mx::default_device() == mx::Device::gpu) before_ = mx::set_cache_limit(static_cast<std::size_t>(bytes));
}

CacheBound::~CacheBound() {
  if (before_) mx::set_cache_limit(*before_);
}

void release_freed_memory(const model::ModelSpec& spec) {
  if (!has_routed_experts(spec)) return;
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

double available_memory() {
  const auto& info = mx::device_info();
  for (const char* key : {"memory_size", "total_memory"})
    if (const auto it = info.find(key); it != info.end())
      if (const auto* bytes = std::get_if<std::size_t>(&it->second); bytes && *bytes > 0) return static_cast<double>(*bytes);
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double expected_memory(const model::ModelSpec& spec, const plan::QuantPlan& plan, const MemoryUse& use) {
  double parameters = 0;
  for (const auto* linear : spec.linears()) parameters += static_cast<double>(linear->parameters());
  // Teacher and the student's dense weights, 2 bytes each; latents 2; the batch's gradient 4 when codes move; scales, biases and Adam.
  double bytes = parameters * (4 + (use.move_codes ? 6 : 0) + 8.0 * 4 / plan.base.group_size);
  const double batch = double(use.batch_size) * use.max_seq_length;
  const double tokens = std::max<double>(use.max_seq_length, std::min<double>(micro_tokens(spec), batch));
  for (const auto& block : spec.blocks) bytes += spec.passes * tokens * (use.grad_checkpoint ? 2.0 * spec.hidden : 2 * kept_per_token(block));
  return bytes + 2.0 * 128e6;  // the head's chunks
}

void advise_memory(const model::ModelSpec& spec, const plan::QuantPlan& plan, const MemoryUse& use, const run::Context& context) {
  const double need = expected_memory(spec, plan, use), have = available_memory();
  if (have <= 0 || need < 0.8 * have) return;
  context.warn(
      fmt::format("about {} of memory will be needed and there are {}. To need less: distil from an 8-bit model (--model), "
                  "shorten the sequences (--max-seq-length 512), use --batch-size 1, or add --grad-checkpoint.",
                  format_bytes(need), format_bytes(have)));
}

}  // namespace lquant::pipeline
