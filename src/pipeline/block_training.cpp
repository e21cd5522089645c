#include "pipeline/block_training.h"

#include <mlx/mlx.h>

#include "calibration/sensitivity.h"

namespace lquant::pipeline {
namespace {

// Batches that tell what the outputs' errors cost: their states behind every block are in memory at once.
constexpr std::size_t kSensitivityBatches = 2;
// Nats a token: the logarithms of probabilities in f32 are no more exact. A model so sure of itself has nothing to learn from its divergence.
constexpr double kDivergenceRounding = 1e-6;

std::string unit_of(int block) { return fmt::format("sensitivity-{:05d}", block); }

}  // namespace

quantize::OutputLoss BlockTraining::loss_of(int block) {
  const auto& model = run_.model();
  if (is_last(block)) {
    const auto outer = model::dense_tensors(model, model.load_final(model.stored_dtype()));
    return quantize::divergence(model.spec(), model.cast(outer, model.compute_dtype()), model.compute_dtype());
  }
  if (!run_.folder().has(unit_of(block))) {
    const auto& rows = run_.rows();
    const auto first = [](const std::vector<mx::array>& all) {
      return std::vector<mx::array>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(std::min(kSensitivityBatches, all.size())));
    };
    // The last block's is not needed; the others come from the back to the front.
    calibration::block_sensitivities(model, first(rows.ids), first(rows.segments), [&](int i, const mx::array& fisher) {
      run_.context().check();
      if (!is_last(i)) run_.folder().save(unit_of(i), {{"fisher", fisher}});
    });
  }
  return quantize::weighted_squares(run_.folder().need(unit_of(block)).tensors.at("fisher"), model.spec().streams * model.spec().hidden);
}

quantize::BlockwiseResult BlockTraining::train(int block, const model::Tensors& dense, const Walk& before, model::Tensors& tensors) {
  std::vector<quantize::BlockRows> rows;
  const auto& segments = run_.rows().segments;
  for (std::size_t b = 0; b < before.batches(); ++b)
    rows.push_back(
        {before.states(b), run_.teacher()->states(b), segments.empty() ? std::nullopt : std::optional(segments[b]), before.visit(b, block).pass});
  auto options = options_;
  if (is_last(block)) options.least_loss = kDivergenceRounding;
  const auto result = quantize::train_block(run_.model().spec(), block, tensors, run_.plan().by_path(), dense, rows, loss_of(block), options,
                                            [&] { return run_.context().stop().requested(); });
  run_.context().check();
  return result;
}

}  // namespace lquant::pipeline
