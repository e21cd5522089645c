#include "calibration/self.h"

#include <algorithm>

#include "model/generate.h"

namespace lquant::calibration {
namespace {

// Rows sampled together: the weights are read once a step for all of them; 64 keep the caches of a small model within a few
// hundred megabytes.
constexpr int kRows = 64;
// The likelihood of a token below which sampling is noise rather than language, relative to the likeliest: keeps a long text
// from drifting away, as min-p does in generation.
constexpr float kMinP = 0.02f;

}  // namespace

std::vector<Example> sample_self(const model::Model& teacher, const text::Tokenizer& tokenizer, int count, int max_tokens, std::uint64_t seed,
                                 const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const auto dtype = teacher.compute_dtype();
  auto tensors = teacher.load_all();
  auto formats = teacher.formats();
  model::densify(tensors, formats, dtype);
  const auto& eos = tokenizer.eos_ids();
  const int start = tokenizer.bos_id().value_or(eos.empty() ? 0 : eos.front());
  std::vector<Example> examples;
  while (static_cast<int>(examples.size()) < count) {
    const int rows = std::min(kRows, count - static_cast<int>(examples.size()));
    model::SampleOptions options;
    options.max_tokens = max_tokens - 1;
    options.temperature = 1;
    options.min_p = kMinP;
    options.seed = seed + examples.size();
    options.stop = eos;
    for (auto& tokens : model::sample(teacher.spec(), tensors, formats, dtype, std::vector<std::vector<int>>(rows, {start}), options)) {
      Example example{{start}, 0};
      example.tokens.insert(example.tokens.end(), tokens.begin(), tokens.end());
      examples.push_back(std::move(example));
    }
    progress(static_cast<std::int64_t>(examples.size()), count);
  }
  return examples;
}

}  // namespace lquant::calibration
