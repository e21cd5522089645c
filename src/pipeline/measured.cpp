// Each linear's figure is a unit of the run; the walk that takes them all is alone.h's.
#include "pipeline/measured.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "pipeline/alone.h"
#include "pipeline/moments.h"
#include "quantize/sensitivity.h"

namespace lquant::pipeline {

namespace {

// A prediction is right within a factor of two or three. What lies outside is noise: a divergence that cannot be told from none.
constexpr double kMostCorrection = 4;

std::map<std::string, double> measured(const model::Model& model, const Rows& rows, const Sensitivities& estimated, const codec::Format& format,
                                       run::RunFolder& run, const run::Context& context) {
  std::map<std::string, double> found;
  Moments moments;
  run::Progress progress(context.events(), "measuring sensitivities", static_cast<std::int64_t>(estimated.kl.size()));
  const model::BatchObserver observer = [&](std::size_t b, const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
    add_moment(moments, path, input, experts, rows.counted[b]);
  };
  AloneRun alone;
  for (const auto* linear : model.spec().linears())
    if (estimated.kl.contains(linear->path) && std::isfinite(estimated.of(linear->path, format)))
      alone.parts.push_back({linear->path, linear->block, {linear}});
  // The weight's values after range search by the moments of what it reads.
  alone.replaced = [&](const AlonePart&, const model::LinearSpec& linear, const mx::array& weight) {
    const auto moment = moments.find(linear.path);
    const auto packed = codec::range_search(weight, format, moment == moments.end() ? std::nullopt : std::optional(moment->second)).packed;
    return codec::dequantize(packed, format, weight.dtype());
  };
  alone.skip = [&](const AlonePart& part) {
    const auto done = run.load("measured-" + part.name);
    if (!done) return false;
    found[part.name] = done->meta.at("kl");
    progress.skip(1);
    return true;
  };
  alone.done = [&](const AlonePart& part, const evaluate::Quality& quality) {
    found[part.name] = quality.kl;
    run.save("measured-" + part.name, {}, {{"kl", quality.kl}});
    progress.advance(1, fmt::format("{} {:.5f}", part.name, quality.kl));
    context.check();
  };
  alone.observer = &observer;
  alone.after_block = [&](int block) {
    for (const auto* linear : model.spec().blocks[block].linears()) moments.erase(linear->path);
  };
  measure_alone(model, rows.batches, alone);
  progress.finish();
  return found;
}

}  // namespace

Sensitivities measure_sensitivities(const model::Model& model, const Rows& rows, Sensitivities estimated, const codec::Format& format,
                                    run::RunFolder& run, const run::Context& context) {
  if (estimated.measured) return estimated;
  const auto found = measured(model, rows, estimated, format, run, context);
  for (const auto& [path, kl] : found) {
    const double predicted = estimated.of(path, format) * quantize::beyond_second_order(format);
    if (!(predicted > 0)) continue;
    const double correction = std::clamp(kl / predicted, 1 / kMostCorrection, kMostCorrection);
    for (double& cost : estimated.kl.at(path)) cost *= correction;
  }
  estimated.measured = true;
  return estimated;
}

}  // namespace lquant::pipeline
