#include "pipeline/walk.h"

#include <mlx/mlx.h>

#include "base/error.h"
#include "kernels/primitive.h"

namespace lquant::pipeline {

Walk::Walk(const model::ModelSpec& spec, const std::vector<mx::array>& ids, const std::vector<mx::array>& segments, const model::Tensors& tensors,
           const model::Formats& formats, mx::Dtype dtype)
    : spec_(&spec), segments_(segments) {
  for (std::size_t b = 0; b < ids.size(); ++b) {
    const auto x = model::embed(spec, tensors, formats, ids[b], dtype, context_of(b));
    kernels::settle({x});
    at_.push_back({x});
  }
}

model::Context Walk::context_of(std::size_t batch) const {
  model::Context context;
  if (!segments_.empty()) context.segments = segments_[batch];
  return context;
}

void Walk::reach_passes(const std::function<model::Tensors(int block)>& load) {
  const std::size_t part = at_.size() / spec_->passes;
  for (std::size_t first = part; first < at_.size(); first += part) {
    for (std::size_t b = first; b < first + part; ++b) at_[b] = at_[b - part];
    for (int i = 0; i < static_cast<int>(spec_->blocks.size()); ++i) {
      const auto tensors = load(i);
      for (std::size_t b = first; b < first + part; ++b) {
        const auto x = model::block(*spec_, visit(b - part, i), tensors, {}, at_[b].residual, context_of(b));
        kernels::settle({x});
        at_[b] = {x};
      }
    }
  }
}

void Walk::take_passes(const Walk& other) {
  for (std::size_t b = at_.size() / spec_->passes; b < at_.size(); ++b) at_[b] = other.at_[b];
}

void Walk::advance(std::size_t batch, int block, int stage, const model::Tensors& tensors, const model::Formats& formats,
                   const model::Observer* observer) {
  auto context = context_of(batch);
  context.observer = observer;
  auto& at = at_[batch];
  at = model::advance(*spec_, visit(batch, block), stage, tensors, formats, at, context);
  kernels::settle(at.arrays());
}

namespace {

bool is_finite(const mx::array& x) { return mx::all(mx::isfinite(x)).item<bool>(); }

/// Numbers that are not finite would spread from here to everything behind, and be saved. Their sum is not finite either, and takes MLX's CPU ops
/// much less time than looking at each; but sums also overflow.
void refuse_infinite(const mx::array& states, int block) {
  if (is_finite(mx::sum(states)) || is_finite(states)) return;
  fail("pipeline",
       "block {}: the hidden states behind it became NaN or infinite on the calibration data; make the model float32 first (lquant convert --dtype "
       "float32), use other rows, or get the model again",
       block);
}

}  // namespace

void Walk::leave(std::size_t batch, int block, const model::Tensors& tensors, const model::Formats& formats) {
  auto x = model::leave(*spec_, visit(batch, block), tensors, formats, at_[batch], context_of(batch));
  refuse_infinite(x, block);
  at_[batch] = {x};
}

void Walk::pass(int block, const model::Tensors& tensors, const model::Formats& formats) {
  for (std::size_t b = 0; b < at_.size(); ++b) {
    auto x = model::block(*spec_, visit(b, block), tensors, formats, at_[b].residual, context_of(b));
    refuse_infinite(x, block);
    at_[b] = {x};
  }
}

}  // namespace lquant::pipeline
