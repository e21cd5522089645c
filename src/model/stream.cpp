// The whole calibration set moves through block 0, then through block 1, …: each block's weights are read once, dequantized
// once, and let go. Outputs replace inputs batch by batch, so the activations of the set exist once.
#include "model/stream.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/primitive.h"

namespace lquant::model {
namespace {

mx::array settled(const mx::array& x, mx::Dtype dtype) {
  const auto kept = x.dtype() == dtype ? x : mx::astype(x, dtype);
  kernels::settle({kept});
  return kept;
}

/// The formats of one block's tensors.
Formats formats_of(const Formats& all, const Tensors& tensors) {
  Formats present;
  for (const auto& [path, format] : all)
    if (tensors.count(path + ".scales")) present.emplace(path, format);
  return present;
}

}  // namespace

std::vector<mx::array> stream_blocks(const Model& model, const std::vector<mx::array>& ids, const StreamOptions& options) {
  if (!options.segments.empty() && options.segments.size() != ids.size()) throw std::invalid_argument("[model] one segments array a batch is needed");
  const auto dtype = options.dtype.value_or(model.compute_dtype());
  const auto boundary = options.boundary_dtype.value_or(dtype);
  const auto& spec = model.spec();

  const auto context_of = [&](std::size_t b) {
    Context context;
    if (!options.segments.empty()) context.segments = options.segments[b];
    return context;
  };
  std::vector<mx::array> activations;
  {
    const auto tensors = model.load_embedding(dtype);
    for (std::size_t b = 0; b < ids.size(); ++b)
      activations.push_back(settled(embed(spec, tensors, model.formats(), ids[b], dtype, context_of(b)), boundary));
  }
  if (options.after_block) options.after_block(-1, activations);

  for (const auto& visit : spec.visits()) {
    auto tensors = model.load_block(visit.block, dtype);
    auto formats = formats_of(model.formats(), tensors);
    if (options.before_block) options.before_block(visit.block, tensors, formats);
    densify(tensors, formats, dtype);
    for (std::size_t b = 0; b < activations.size(); ++b) {
      const auto observer = of_batch(options.observer, b);
      auto context = context_of(b);
      context.observer = &observer;
      activations[b] = settled(block(spec, visit, tensors, formats, mx::astype(activations[b], dtype), context), boundary);
    }
    if (options.after_block) options.after_block(visit, activations);
  }
  return activations;
}

}  // namespace lquant::model
