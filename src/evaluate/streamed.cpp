#include "evaluate/streamed.h"

#include <mlx/mlx.h>

#include "model/stream.h"

namespace lquant::evaluate {

Answers stream_answers(const model::Model& model, const std::vector<calibration::Batch>& batches) {
  model::StreamOptions options;
  std::vector<mx::array> ids;
  for (const auto& batch : batches) {
    ids.push_back(batch.ids);
    options.segments.push_back(batch.segments);
  }
  auto states = model::stream_blocks(model, ids, options);
  const auto tensors = model.load_final();
  for (auto& x : states) {
    x = mx::reshape(model::final_norm(model.spec(), tensors, x, model.formats()), {-1, model.spec().hidden});
    x.eval();
  }
  auto head = model::head(model.spec(), tensors, model.formats(), model.compute_dtype());
  head.weight.eval();
  return {std::move(head), [states = std::move(states)](std::size_t b) { return states[b]; }};
}

}  // namespace lquant::evaluate
