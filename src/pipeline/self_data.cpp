#include "pipeline/self_data.h"

#include <mlx/mlx.h>

#include "base/error.h"
#include "calibration/self.h"

namespace lquant::pipeline {
namespace mx = mlx::core;
using json = nlohmann::json;

std::vector<calibration::Example> self_examples(const model::Model& model, const text::Tokenizer& tokenizer, int count, int max_tokens,
                                                std::uint64_t seed, run::RunFolder& run, const run::Context& context) {
  std::vector<calibration::Example> examples;
  if (const auto unit = run.load("self")) {
    const auto* at = unit->tensors.at("tokens").data<std::int32_t>();
    for (const auto& size : unit->meta.at("sizes")) {
      examples.push_back({{at, at + size.get<int>()}, 0});
      at += size.get<int>();
    }
    return examples;
  }
  run::Progress progress(context.events(), "sampling texts from the model", count);
  std::int64_t before = 0;
  examples = calibration::sample_self(model, tokenizer, count, max_tokens, seed, [&](std::int64_t done, std::int64_t) {
    progress.advance(done - before);
    before = done;
    context.check();
  });
  std::vector<std::int32_t> flat;
  json sizes = json::array();
  for (const auto& e : examples) {
    flat.insert(flat.end(), e.tokens.begin(), e.tokens.end());
    sizes.push_back(e.tokens.size());
  }
  run.save("self", {{"tokens", mx::array(flat.data(), {static_cast<int>(flat.size())}, mx::int32)}}, {{"sizes", sizes}});
  progress.finish();
  return examples;
}

}  // namespace lquant::pipeline
