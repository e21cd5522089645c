// Routers are never changed: that an expert sees more tokens is brought about by rows that its own router sends there.
#include "pipeline/expert_rows.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "model/stream.h"

namespace lquant::pipeline {
namespace mx = mlx::core;
using json = nlohmann::json;

namespace {

// Examples that go through the model at once.
constexpr std::size_t kBatch = 8;
// The default floor is the mean over all experts by this: with half the mean rows about other things than most push these out, and most texts lose by
// it (docs/methods/gptq.md).
constexpr std::int64_t kFloorShare = 4;

/// Of each mixture the linear that its tokens meet last, and the number of its first expert among those of all layers.
struct Mixtures {
  std::map<std::string, std::size_t> first;
  std::size_t experts = 0;
};

Mixtures mixtures_of(const model::ModelSpec& spec) {
  Mixtures all;
  for (const auto& block : spec.blocks) {
    std::map<int, const model::LinearSpec*> last;  // of each op
    for (const auto& reading : block.contents().readings)
      if (reading.linear->routed()) last[reading.op] = reading.linear;
    for (const auto& [op, linear] : last) {
      all.first[linear->path] = all.experts;
      all.experts += linear->experts;
    }
  }
  return all;
}

struct Batch {
  mx::array ids, segments;            ///< int32 [R, L]; an example a row, padding in segment −1
  std::vector<std::size_t> examples;  ///< [R]: their numbers
};

/// Examples of like length share a batch, for a row is as long as the longest one.
std::vector<Batch> batches_of(const std::vector<calibration::Example>& examples) {
  std::vector<std::size_t> order(examples.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return examples[a].tokens.size() < examples[b].tokens.size(); });
  std::vector<Batch> batches;
  for (std::size_t begin = 0; begin < order.size(); begin += kBatch) {
    const std::vector<std::size_t> some(order.begin() + begin, order.begin() + std::min(order.size(), begin + kBatch));
    const auto length = examples[some.back()].tokens.size();
    std::vector<std::int32_t> ids(some.size() * length, 0), segments(some.size() * length, -1);
    for (std::size_t r = 0; r < some.size(); ++r) {
      const auto& tokens = examples[some[r]].tokens;
      std::copy(tokens.begin(), tokens.end(), ids.begin() + r * length);
      std::fill_n(segments.begin() + r * length, tokens.size(), 0);
    }
    const mx::Shape shape{static_cast<int>(some.size()), static_cast<int>(length)};
    batches.push_back({mx::array(ids.begin(), shape, mx::int32), mx::array(segments.begin(), shape, mx::int32), some});
  }
  return batches;
}

std::vector<std::int32_t> on_host(const mx::array& numbers) {
  auto host = mx::contiguous(mx::copy(numbers, mx::Device::cpu), false, mx::Device::cpu);
  host.eval();
  return {host.data<std::int32_t>(), host.data<std::int32_t>() + host.size()};
}

int default_floor(const calibration::Candidates& rows) {
  std::int64_t tokens = 0;
  for (const auto& row : rows.reached) tokens = std::accumulate(row.begin(), row.end(), tokens);
  return static_cast<int>(std::max<std::int64_t>(1, tokens / (kFloorShare * static_cast<std::int64_t>(rows.reached.front().size()))));
}

}  // namespace

bool has_routed_experts(const model::ModelSpec& spec) { return mixtures_of(spec).experts > 0; }

void count_expert_tokens(const model::Model& model, const std::vector<calibration::Example>& examples, calibration::Candidates& candidates,
                         const run::Context& context) {
  const auto mixtures = mixtures_of(model.spec());
  const auto batches = batches_of(examples);
  const auto before = candidates.lengths.size();
  for (const auto& example : examples) {
    candidates.lengths.push_back(static_cast<std::int32_t>(example.tokens.size()));
    candidates.reached.emplace_back(mixtures.experts);
  }
  const model::BatchObserver count = [&](std::size_t b, const std::string& path, const mx::array&, const model::ExpertRows* experts) {
    const auto mixture = mixtures.first.find(path);
    if (mixture == mixtures.first.end()) return;
    const auto offsets = on_host(experts->offsets), tokens = on_host(experts->tokens);
    const int length = batches[b].ids.shape(1);
    for (std::size_t e = 0; e + 1 < offsets.size(); ++e)
      for (auto at = offsets[e]; at < offsets[e + 1]; ++at) {
        const auto row = before + batches[b].examples[tokens[at] / length];
        if (tokens[at] % length < candidates.lengths[row]) ++candidates.reached[row][mixture->second + e];
      }
  };
  run::Progress progress(context.events(), "counting experts' tokens", static_cast<std::int64_t>(model.spec().visits().size()));
  model::StreamOptions options;
  std::vector<mx::array> ids;
  for (const auto& batch : batches) {
    ids.push_back(batch.ids);
    options.segments.push_back(batch.segments);
  }
  options.observer = &count;
  options.after_block = [&](const model::Visit& visit, std::vector<mx::array>&) {
    if (visit.block >= 0) progress.advance(1);
    context.check();
  };
  model::stream_blocks(model, ids, options);
  progress.finish();
}

json reach_experts(const model::Model& model, calibration::Drawn& drawn, std::optional<int> floor, run::RunFolder& run, const run::Context& context) {
  auto all = drawn.examples;
  all.insert(all.end(), drawn.further.begin(), drawn.further.end());
  const auto rows = drawn.examples.size();
  if (!run.has(kChosenRows)) {
    std::vector<std::size_t> chosen(rows);
    std::iota(chosen.begin(), chosen.end(), std::size_t{0});
    calibration::Candidates candidates;
    const auto count = [&](std::size_t begin) {
      const auto end = std::min(all.size(), begin + rows);
      count_expert_tokens(model, {all.begin() + begin, all.begin() + end}, candidates, context);
    };
    count(0);
    const auto tokens = std::accumulate(candidates.lengths.begin(), candidates.lengths.end(), std::int64_t{0});
    if (!floor) floor = default_floor(candidates);
    const auto before = calibration::shortage(candidates, chosen, *floor);
    auto after = before;
    for (auto begin = rows; begin < all.size() && after.experts > 0; begin += rows) {
      count(begin);
      chosen = calibration::exchange_rows(candidates, chosen, *floor, tokens);
      after = calibration::shortage(candidates, chosen, *floor);
    }
    run.save(kChosenRows, {}, {{"rows", chosen}, {"floor", *floor}, {"before", before.experts}, {"after", after.experts}});
  }
  auto found = run.need(kChosenRows).meta;
  int exchanged = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    const auto row = found.at("rows")[i].get<std::size_t>();
    exchanged += row != i;
    drawn.examples[i] = all[row];
  }
  found.erase("rows");
  found["exchanged"] = exchanged;
  if (found.at("before") > 0)
    context.line(fmt::format("experts with fewer than {} tokens: {} of {}, and {} after {} of {} rows were exchanged for others of the data",
                             found.at("floor").get<int>(), found.at("before").get<int>(), mixtures_of(model.spec()).experts,
                             found.at("after").get<int>(), exchanged, rows));
  return found;
}

}  // namespace lquant::pipeline
