#include "pipeline/perplexity.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "pipeline/output.h"
#include "pipeline/rows.h"

namespace lquant::pipeline {
namespace {

constexpr int kNoLimit = std::numeric_limits<int>::max();

/// All tokens to score, in order. `place` gets what messages about them name.
std::vector<std::int32_t> read_tokens(std::string& place, const ScoredText& o, const text::Tokenizer& tokenizer, int vocab) {
  const auto file = o.file();
  place = file.string();
  if (file.extension() != ".jsonl" && file.extension() != ".json") return calibration::encode_file(file, tokenizer, vocab, false);
  const std::size_t wanted =
      o.num_samples < 0 ? std::numeric_limits<std::size_t>::max() : static_cast<std::size_t>(o.num_samples) * o.sequence_length + 1;
  const calibration::SourceOptions source{kNoLimit, false, vocab};
  const auto rows = calibration::read_until(file, tokenizer, source, o.seed, wanted);
  place += calibration::written_by(rows, tokenizer);
  std::vector<std::int32_t> tokens;
  for (const auto& row : rows) tokens.insert(tokens.end(), row.tokens.begin(), row.tokens.end());
  return tokens;
}

}  // namespace

std::filesystem::path ScoredText::file() const {
  const std::filesystem::path path = data;
  return std::filesystem::is_directory(path) ? path / "train.jsonl" : path;
}

std::vector<calibration::Batch> ScoredText::batches(const text::Tokenizer& tokenizer, const model::ModelSpec& spec) const {
  check_positions(spec, sequence_length);
  const std::int64_t most = num_samples < 0 ? std::numeric_limits<std::int64_t>::max() : num_samples * sequence_length;
  std::string place;
  const auto tokens = read_tokens(place, *this, tokenizer, spec.vocab);
  return with_place([&] { return place; }, [&] { return calibration::text_rows(tokens, sequence_length, batch_size, most); });
}

evaluate::Quality perplexity(const PerplexityOptions& o, const run::Context& context) {
  const auto checkpoint = model::open_checkpoint(o.model);
  const auto model = model::Model::open(checkpoint);
  for (const auto& text : model.spec().warnings) context.warn(text);
  std::optional<checkpoint::Checkpoint> teacher_checkpoint;
  std::optional<evaluate::LoadedModel> teacher;
  if (o.teacher) {
    teacher_checkpoint = model::open_checkpoint(*o.teacher);
    teacher = evaluate::LoadedModel::load(model::Model::open(*teacher_checkpoint));
  }
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  const auto batches = o.batches(tokenizer, model.spec());
  std::int64_t total = 0, before = 0;
  for (const auto& batch : batches) total += static_cast<std::int64_t>(batch.tokens);
  const auto student = evaluate::LoadedModel::load(model);
  run::Progress progress(context.events(), "scoring tokens", total);
  const auto quality = evaluate::measure(student, teacher ? &*teacher : nullptr, batches, [&](std::int64_t done) {
    progress.advance(done - before);
    before = done;
  });
  progress.finish();
  const auto refuse = [](const std::filesystem::path& folder, mx::Dtype dtype) {
    fail("pipeline",
         "{}: its log-probabilities are not numbers; its weights are damaged or too large for {}: download it again, or convert it to float32 first "
         "(lquant convert --dtype float32)",
         folder.string(), dtype_name(dtype));
  };
  if (teacher && !std::isfinite(quality.teacher_nll)) refuse(*o.teacher, teacher->dtype);
  if (!std::isfinite(quality.nll) || !std::isfinite(quality.kl)) refuse(o.model, student.dtype);
  return quality;
}

}  // namespace lquant::pipeline
