#include "pipeline/walk.h"

#include <mlx/mlx.h>

namespace lquant::pipeline {
namespace {

void settle(model::Cut& cut) {
  std::vector<mx::array> all{cut.residual, cut.input};
  if (cut.routing) all.insert(all.end(), {cut.routing->order, cut.routing->offsets});
  if (cut.weights) all.push_back(*cut.weights);
  mx::eval(all);
}

}  // namespace

Walk::Walk(const model::ModelSpec& spec, const std::vector<mx::array>& ids, const std::vector<mx::array>& segments, const model::Tensors& tensors,
           const model::Formats& formats, mx::Dtype dtype)
    : spec_(&spec), segments_(segments) {
  for (const auto& batch : ids) {
    auto x = model::embed(spec, tensors, formats, batch, dtype);
    x.eval();
    at_.push_back({x, x});
  }
}

void Walk::advance(std::size_t batch, int block, Halt halt, const model::Tensors& tensors, const model::Formats& formats,
                   const model::Observer* observer) {
  model::Context context;
  if (!segments_.empty()) context.segments = segments_[batch];
  context.observer = observer;
  auto& at = at_[batch];
  switch (halt) {
    case Halt::attention_input:
      at = model::attention_input(*spec_, block, tensors, formats, at.residual, context);
      break;
    case Halt::attention_output:
      at = model::attention_output(*spec_, block, tensors, formats, at, context);
      break;
    case Halt::mlp_input:
      at = model::mlp_input(*spec_, block, tensors, formats, at, context);
      break;
    case Halt::mlp_output:
      at = model::mlp_output(*spec_, block, tensors, formats, at, context);
      break;
  }
  settle(at);
}

void Walk::leave(std::size_t batch, int block, const model::Tensors& tensors, const model::Formats& formats) {
  auto x = model::block_output(*spec_, block, tensors, formats, at_[batch]);
  x.eval();
  at_[batch] = {x, x};
}

void Walk::pass(int block, const model::Tensors& tensors, const model::Formats& formats) {
  for (std::size_t b = 0; b < at_.size(); ++b) {
    model::Context context;
    if (!segments_.empty()) context.segments = segments_[b];
    auto x = model::block(*spec_, block, tensors, formats, at_[b].residual, context);
    x.eval();
    at_[b] = {x, x};
  }
}

}  // namespace lquant::pipeline
