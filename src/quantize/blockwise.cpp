// The loop of dwq on one block: dense weights once a step, gradients of the parts of a batch reduced at once to scales, biases and latents. What
// differs is the loss, by the block's outputs alone, for which no other block is needed.
#include "quantize/blockwise.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "kernels/cholesky.h"
#include "kernels/head_loss.h"
#include "kernels/linear.h"
#include "kernels/primitive.h"
#include "kernels/scaled_vjp.h"
#include "quantize/schedule.h"

namespace lquant::quantize {
namespace {

// One batch in sixteen judges and teaches nothing.
constexpr std::size_t kHeldOut = 16;
// What of the identity is added to F, whose mean diagonal is 1: directions that its few thousand tokens have not seen count for something.
constexpr float kDamping = 0.1f;

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }

/// f32 [B, T]: 1 where a token counts.
mx::array counting(const BlockRows& rows) {
  if (!rows.segments) return mx::ones({rows.inputs.shape(0), rows.inputs.shape(1)}, mx::float32);
  return f32(mx::greater_equal(*rows.segments, mx::array(0)));
}

BlockRows slice(const BlockRows& rows, int begin, int end) {
  const auto cut = [&](const mx::array& x) {
    auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
    start[0] = begin, stop[0] = end;
    return mx::slice(x, start, stop);
  };
  return {cut(rows.inputs), cut(rows.targets), rows.segments ? std::optional(cut(*rows.segments)) : std::nullopt, rows.pass};
}

/// The rows in parts of `size` or fewer.
std::vector<BlockRows> parts_of(const BlockRows& rows, int size) {
  std::vector<BlockRows> parts;
  const int all = rows.inputs.shape(0);
  for (int begin = 0; begin < all; begin += size) parts.push_back(slice(rows, begin, std::min(all, begin + size)));
  return parts;
}

/// Those of the block's linears that are packed.
model::Formats packed_formats(const model::ModelSpec& spec, int block, const model::Tensors& packed, const model::Formats& formats) {
  model::Formats own;
  for (const auto* linear : spec.blocks[block].linears())
    if (const auto it = formats.find(linear->path); it != formats.end() && packed.contains(linear->path + ".scales")) own.insert(*it);
  return own;
}

mx::array loss_of(const model::ModelSpec& spec, int block, const Student& student, const std::vector<mx::array>& weights, const BlockRows& rows,
                  const OutputLoss& loss) {
  model::Context context;
  context.segments = rows.segments;
  return loss(model::block(spec, {block, rows.pass}, student.with(weights), student.fixed_formats(), rows.inputs, context), rows);
}

/// Rᵀ f32 [H, H] with R Rᵀ = the matrix by which errors are weighed; nullopt when it cannot be had.
std::optional<mx::array> factor_of(const mx::array& fisher) {
  const int width = fisher.shape(0);
  auto mean = mx::mean(mx::diagonal(fisher));
  if (!(mean.item<float>() > 0) || !mx::all(mx::isfinite(fisher)).item<bool>()) return std::nullopt;
  const auto root = kernels::upper_factor(mx::add(mx::divide(fisher, mean), mx::multiply(mx::eye(width), mx::array(kDamping))));
  if (!root) return std::nullopt;
  auto factor = mx::contiguous(mx::transpose(*root));
  factor.eval();
  return factor;
}

/// The run of one block.
class BlockTrainer {
 public:
  BlockTrainer(const model::ModelSpec& spec, int block, Student& student, const std::vector<BlockRows>& rows, const OutputLoss& loss,
               const BlockwiseOptions& options)
      : spec_(spec), block_(block), student_(student), loss_(loss), options_(options) {
    int all = 0;
    for (const auto& batch : rows) all += batch.inputs.shape(0);
    std::vector<BlockRows> parts;
    for (const auto& batch : rows)
      for (auto& part : parts_of(batch, std::clamp(all / 4, 1, options.batch_rows))) parts.push_back(std::move(part));
    const auto every = std::min(kHeldOut, parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i) (i % every == every - 1 ? held_ : batches_).push_back(std::move(parts[i]));
  }

  /// nullopt when it was stopped.
  std::optional<BlockwiseResult> run(const std::function<bool()>& stop) {
    BlockwiseResult result;
    if (batches_.empty() || options_.epochs <= 0) return result;
    const double start = held_out_loss();
    double tokens = 0;
    for (const auto& batch : held_) tokens += mx::sum(counting(batch)).item<float>();
    if (!(start > options_.least_loss * tokens) || !std::isfinite(start)) return result;
    const int epoch = static_cast<int>(batches_.size());
    result.steps = options_.epochs * epoch;
    auto kept = student_.state();
    std::vector<std::size_t> order;
    for (int step = 0; step < result.steps; ++step) {
      if (step % epoch == 0) order = permutation(batches_.size(), step);
      take(batches_[order[step % epoch]], step, result.steps);
      if (stop && stop()) return std::nullopt;
      if ((step + 1) % epoch != 0) continue;
      if (const double now = held_out_loss() / start; now < result.loss) result.loss = now, result.best_step = step + 1, kept = student_.state();
    }
    student_.restore(kept);
    return result;
  }

 private:
  std::vector<mx::array> weights() const {
    auto weights = student_.weights();
    mx::eval(weights);
    return weights;
  }
  std::vector<BlockRows> micro_parts(const BlockRows& batch) const {
    return parts_of(batch, std::max(1, options_.micro_tokens / batch.inputs.shape(1)));
  }

  double held_out_loss() const {
    const auto now = weights();
    double sum = 0;
    for (const auto& batch : held_)
      for (const auto& part : micro_parts(batch)) sum += loss_of(spec_, block_, student_, now, part, loss_).item<float>();
    return sum;
  }

  void take(const BlockRows& batch, int step, int steps) {
    const auto now = weights();
    for (const auto& part : micro_parts(batch)) {
      student_.accumulate(block_gradients(spec_, block_, student_, now, part, loss_).second);
      mx::async_eval(student_.accumulated());
    }
    const float rate = rate_at(step, steps, options_.warmup);
    student_.step({rate * options_.scale_rate, rate * options_.code_rate, step + 1});
    mx::async_eval(student_.stepped());
  }

  const model::ModelSpec& spec_;
  int block_;
  Student& student_;
  const OutputLoss& loss_;
  const BlockwiseOptions& options_;
  std::vector<BlockRows> batches_, held_;
};

}  // namespace

OutputLoss weighted_squares(const std::optional<mx::array>& fisher, int columns) {
  const auto factor = fisher ? factor_of(*fisher) : std::nullopt;
  return [factor, columns](const mx::array& outputs, const BlockRows& rows) {
    const auto some = [&](const mx::array& x) {
      auto stop = x.shape();
      if (columns > 0) stop.back() = columns;
      return f32(mx::slice(x, mx::Shape(x.ndim(), 0), stop));
    };
    auto error = mx::subtract(some(outputs), some(rows.targets));
    // The difference is taken in f32; its product with the factor may be as coarse as the outputs are, but not leave f16's range.
    if (factor) {
      const auto dtype = outputs.dtype() == mx::float16 ? mx::float32 : outputs.dtype();
      error = f32(kernels::linear(mx::astype(error, dtype), {mx::astype(*factor, dtype)}));
    }
    return mx::sum(mx::multiply(mx::square(error), mx::expand_dims(counting(rows), -1)));
  };
}

OutputLoss divergence(const model::ModelSpec& spec, const model::Tensors& outer, mx::Dtype dtype) {
  const auto head = model::head(spec, outer, {}, dtype);
  kernels::HeadLossArgs args;
  args.softcap = args.teacher_softcap = head.softcap;
  args.multiplier = args.teacher_multiplier = head.multiplier;
  return [&spec, outer, head, args](const mx::array& outputs, const BlockRows& rows) {
    const auto hidden = [&](const mx::array& states) { return mx::reshape(model::final_norm(spec, outer, states), {-1, spec.hidden}); };
    const kernels::TeacherHidden teacher{hidden(mx::astype(rows.targets, outputs.dtype())), head.weight, head.bias};
    return kernels::kl_loss(hidden(outputs), head.weight, head.bias, teacher, mx::reshape(counting(rows), {-1}), args, true, false);
  };
}

std::pair<double, std::vector<mx::array>> block_gradients(const model::ModelSpec& spec, int block, const Student& student,
                                                          const std::vector<mx::array>& weights, const BlockRows& rows, const OutputLoss& loss) {
  const auto run = [&](const std::vector<mx::array>& w) { return std::vector<mx::array>{loss_of(spec, block, student, w, rows, loss)}; };
  auto pass = kernels::loss_gradients(run, weights, rows.inputs.dtype());
  if (!kernels::cpu_kernels()) {  // a GPU is kept busy by one long graph
    auto all = pass.gradients;
    all.push_back(pass.values[0]);
    mx::eval(all);
  }
  return {pass.values[0].item<float>(), std::move(pass.gradients)};
}

BlockwiseResult train_block(const model::ModelSpec& spec, int block, model::Tensors& packed, const model::Formats& formats,
                            const model::Tensors& teacher, const std::vector<BlockRows>& rows, const OutputLoss& loss,
                            const BlockwiseOptions& options, const std::function<bool()>& stop) {
  const auto own = packed_formats(spec, block, packed, formats);
  const auto trainable = [](const auto& entry) { return entry.second.mode == codec::Mode::affine && entry.second.bits < 8; };
  if (std::none_of(own.begin(), own.end(), trainable)) return {};
  Student student(spec, own, packed, teacher, true);
  const auto result = BlockTrainer(spec, block, student, rows, loss, options).run(stop);
  if (!result) return {};
  if (result->best_step > 0) packed = student.pack();
  return *result;
}

}  // namespace lquant::quantize
