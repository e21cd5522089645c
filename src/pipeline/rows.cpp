#include "pipeline/rows.h"

#include <mlx/mlx.h>

#include "base/error.h"
#include "calibration/batches.h"
#include "pipeline/expert_rows.h"
#include "pipeline/self_data.h"

namespace lquant::pipeline {
using json = nlohmann::json;

namespace {

// Rows that go through the model at once; 4,096 tokens of 512 keep products long and their activations small.
constexpr int kBatchRows = 8;
// Rows sampled from the model itself when no number is given.
constexpr int kSelfRows = 128;
// One batch in eight judges.
constexpr std::size_t kHeldOut = 8;

void add(Rows& rows, const calibration::Batch& batch, const std::optional<mx::array>& counted) {
  rows.batches.push_back(batch);
  rows.ids.push_back(batch.ids);
  rows.segments.push_back(batch.segments);
  rows.counted.push_back(counted);
  rows.tokens += static_cast<double>(counted ? counted->size() : batch.ids.size());
}

}  // namespace

std::optional<mx::array> counted_tokens(const calibration::Batch& batch) {
  auto host = batch.segments;
  host.eval();
  const auto* segments = host.data<std::int32_t>();
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(host.size()); ++i)
    if (segments[i] >= 0) rows.push_back(i);
  if (rows.size() == host.size()) return std::nullopt;
  return mx::array(rows.data(), {static_cast<int>(rows.size())}, mx::int32);
}

std::size_t Rows::held_every() const { return std::min(kHeldOut, batches.size() / passes); }

std::pair<Rows, Rows> Rows::hold_out() const {
  if (batches.size() < 2) return {*this, *this};
  const auto every = held_every();
  std::pair<Rows, Rows> parts;
  for (std::size_t b = 0; b < batches.size(); ++b) add(b % every == every - 1 ? parts.first : parts.second, batches[b], counted[b]);
  parts.first.manifest = parts.second.manifest = manifest;
  return parts;
}

Rows Rows::first(double least) const {
  Rows some;
  some.manifest = manifest;
  for (std::size_t b = 0; b < batches.size() && some.tokens < least; ++b) add(some, batches[b], counted[b]);
  return some;
}

Rows Rows::in_passes(int passes) const {
  auto all = *this;
  for (int pass = 1; pass < passes; ++pass)
    for (std::size_t b = 0; b < batches.size(); ++b) add(all, batches[b], counted[b]);
  all.tokens = tokens;
  all.passes = passes;
  return all;
}

void check_positions(const model::ModelSpec& spec, int tokens, const char* flag) {
  if (const int most = spec.positions(); most > 0 && tokens > most)
    fail("pipeline", "rows of {} tokens are longer than the {} positions that the model knows; give {} {} or less", tokens, most, flag, most);
}

RowSource::RowSource(const RowOptions& options, const text::Tokenizer& tokenizer, const model::ModelSpec& spec)
    : options_(options), tokenizer_(tokenizer) {
  const auto& o = options_;
  check_positions(spec, o.sequence_length);
  if (o.data == std::vector<std::string>{"self"}) return;
  const bool exchanging = o.expert_tokens != 0 && o.num_samples > 0 && has_routed_experts(spec);
  drawn_ = calibration::draw_examples({o.data.begin(), o.data.end()}, tokenizer_, {o.sequence_length, false, spec.vocab}, o.num_samples, o.seed,
                                      exchanging ? std::size_t{kExpertPool - 1} * o.num_samples : 0);
  if (exchanges()) drawn_->manifest["expert_tokens"] = o.expert_tokens ? json(*o.expert_tokens) : json("auto");
}

void RowSource::identify(json& identity) const {
  if (drawn_) identity["data"] = drawn_->manifest;
}

const calibration::Drawn& RowSource::draw(const model::Model& model, run::RunFolder& run, const run::Context& context) {
  const auto& o = options_;
  if (!drawn_) {
    const int rows = o.num_samples < 0 ? kSelfRows : o.num_samples;
    drawn_ = {self_examples(model, tokenizer_, rows, o.sequence_length, o.seed, run, context),
              {},
              {{"source", "self"}, {"seed", o.seed}, {"rows", rows}, {"max_tokens", o.sequence_length}}};
  }
  if (o.num_samples > static_cast<int>(drawn_->examples.size()))
    context.line(fmt::format("{} rows were asked for and {} found; all of them are used", o.num_samples, drawn_->examples.size()));
  if (exchanges()) {
    // Of rows that were handed on the user was told when they were chosen.
    if (o.chosen) run.save(kChosenRows, {}, *o.chosen);
    drawn_->manifest["experts_below"] = reach_experts(model, *drawn_, o.expert_tokens, run, o.chosen ? context.silent() : context);
    drawn_->further.clear();
  }
  return *drawn_;
}

std::optional<json> RowSource::choose(const model::Model& model, run::RunFolder& run, const run::Context& context) {
  if (!exchanges()) return std::nullopt;
  draw(model, run, context);
  return run.need(kChosenRows).meta;
}

Rows RowSource::read(const model::Model& model, run::RunFolder& run, const run::Context& context) {
  const auto& drawn = draw(model, run, context);
  Rows rows;
  for (const auto& batch : calibration::make_batches(drawn.examples, kBatchRows, options_.sequence_length, false)) {
    add(rows, batch, counted_tokens(batch));
  }
  rows.manifest = drawn.manifest;
  return rows;
}

}  // namespace lquant::pipeline
