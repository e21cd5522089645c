// Forward: what enters each block is written down. Backward: each block is computed again from what entered it, a few rows at a time, the loss's
// gradient is taken through it, and the squares of its weights' gradients are summed; then the block's formats are judged and all of it is dropped.
#include "pipeline/sensitivities.h"
#include "model/segments.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/json.h"
#include "lquant/version.h"
#include "pipeline/memory.h"
#include "quantize/sensitivity.h"

namespace lquant::pipeline {
using json = nlohmann::json;

namespace {

// Tokens whose gradients are summed before they are squared: enough for products to run at full speed, and few enough that a small calibration
// set still gives dozens of squares.
constexpr int kPartTokens = 1024;
// Costs are sums of f32: a larger one was made by no measurement, and would add up to no number.
constexpr double kMostCost = std::numeric_limits<float>::max();
// Whole numbers are exact in a double up to here.
constexpr std::int64_t kMostTokens = std::int64_t{1} << 53;

/// All rows at one place in the model, a tensor a batch.
using States = std::vector<mx::array>;

model::Tensors as_unit(const States& states) {
  model::Tensors unit;
  for (std::size_t b = 0; b < states.size(); ++b) unit.insert({fmt::format("{:06d}", b), states[b]});
  return unit;
}

States from_unit(const model::Tensors& unit) {
  States states;
  for (std::size_t b = 0; b < unit.size(); ++b) states.push_back(unit.at(fmt::format("{:06d}", b)));
  return states;
}

mx::array cut(const mx::array& x, int begin, int end) {
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start[0] = begin, stop[0] = end;
  return mx::contiguous(mx::slice(x, start, stop));
}

class Sweep {
 public:
  Sweep(const model::Model& model, const Rows& rows, const std::vector<codec::Format>& formats, run::RunFolder& run, const run::Context& context)
      : model_(model),
        spec_(model.spec()),
        rows_(rows),
        formats_(formats),
        run_(run),
        visits_(spec_.visits()),
        runs_(static_cast<int>(visits_.size())),
        context_(context),
        progress_(context.events(), "finding sensitivities", 2 * std::int64_t{runs_} + 3) {
    for (const auto& batch : rows_.batches) tokens_ += mx::sum(batch.next_mask).item<float>();
  }

  /// Costs by linear, in the order of the formats (null: its width does not allow it).
  json all();
  /// The unit of the gradients before a run of a block, counted over all passes.
  static std::string before(int run) { return fmt::format("gradients-{:05d}", run); }
  double tokens() const { return tokens_; }

 private:
  static std::string entering(int run) { return fmt::format("states-{:05d}", run); }
  /// Of a block that runs again, the Fisher diagonals of its later passes.
  static std::string later(int block) { return fmt::format("later-{:05d}", block); }
  model::Tensors dense_block(int i) const { return dense(model_.load_block(i, model_.stored_dtype())); }
  /// Dense, in the compute dtype.
  model::Tensors dense(model::Tensors tensors) const { return model_.cast(model::dense_tensors(model_, std::move(tensors)), model_.compute_dtype()); }
  void forward(int last);
  States through(const model::Visit& visit, const model::Tensors& tensors, const States& states, const States& gradients);
  States head(const States& states);
  void embedding(const States& gradients);
  mx::array embedded_part(const mx::array& gradient) const;
  json judge(const std::vector<const model::LinearSpec*>& linears, const model::Tensors& tensors);
  model::Tensors sums_of(const std::vector<const model::LinearSpec*>& linears) const;
  /// Calls work(begin, end) for parts of a batch's rows.
  template <class Work>
  void in_parts(std::size_t batch, const Work& work) const;
  void step() {
    release_freed_memory(spec_);
    progress_.advance(1);
    context_.check();
  }

  const model::Model& model_;
  const model::ModelSpec& spec_;
  const Rows& rows_;
  const std::vector<codec::Format>& formats_;
  run::RunFolder& run_;
  const std::vector<model::Visit> visits_;
  const int runs_;
  const run::Context& context_;
  run::Progress progress_;
  double tokens_ = 0;
  quantize::FisherStore fisher_;
};

template <class Work>
void Sweep::in_parts(std::size_t batch, const Work& work) const {
  const int rows = rows_.ids[batch].shape(0), at_once = std::max(1, kPartTokens / rows_.ids[batch].shape(1));
  for (int begin = 0; begin < rows; begin += at_once) work(begin, std::min(rows, begin + at_once));
}

/// Leaves what enters each run of a block up to `last` in the run folder; `last` may be the number of runs, what leaves the last of them.
void Sweep::forward(int last) {
  int from = -1;
  while (from < last && run_.has(entering(from + 1))) ++from;
  if (from == last) return;
  States states;
  if (from >= 0) {
    states = from_unit(run_.need(entering(from)).tensors);
    progress_.skip(from + 1);
  } else {
    const auto tensors = dense(model_.load_embedding(model_.stored_dtype()));
    for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
      model::Context context;
      context.segments = rows_.segments[b];
      states.push_back(model::embed(spec_, tensors, {}, rows_.ids[b], model_.compute_dtype(), context));
      states.back().eval();
    }
    run_.save(entering(0), as_unit(states));
    from = 0;
    step();
  }
  for (int i = from; i < last; ++i) {
    const auto tensors = dense_block(visits_[i].block);
    for (std::size_t b = 0; b < states.size(); ++b) {
      model::Context context;
      context.segments = rows_.segments[b];
      states[b] = model::block(spec_, visits_[i], tensors, {}, states[b], context);
      states[b].eval();
    }
    run_.save(entering(i + 1), as_unit(states));
    step();
  }
}

/// What each format would cost the linears whose Fisher diagonals are there.
json Sweep::judge(const std::vector<const model::LinearSpec*>& linears, const model::Tensors& tensors) {
  json result = json::object();
  for (const auto* linear : linears) {
    const auto* stack = fisher_.stack(linear->path);
    if (!stack && !fisher_.has(linear->path)) continue;
    std::vector<codec::Format> possible;
    for (const auto& format : formats_)
      if (linear->in % format.group_size == 0) possible.push_back(format);
    const auto& weight = tensors.at(linear->path + ".weight");
    const auto costs = stack ? quantize::expected_kl(linear->path, weight, *stack, tokens_, possible)
                             : quantize::expected_kl(linear->path, weight, fisher_.of(linear->path), tokens_, possible);
    auto& entry = result[linear->path] = json::array();
    std::size_t next = 0;
    for (const auto& format : formats_) entry.push_back(linear->in % format.group_size == 0 ? json(costs[next++]) : json(nullptr));
  }
  return result;
}

/// The Fisher diagonals that are there, by path.
model::Tensors Sweep::sums_of(const std::vector<const model::LinearSpec*>& linears) const {
  model::Tensors sums;
  for (const auto* linear : linears)
    if (fisher_.has(linear->path)) sums.insert({linear->path, fisher_.of(linear->path)});
  return sums;
}

/// The head's own gradient, and that of what it read.
States Sweep::head(const States& states) {
  const auto tensors = dense(model_.load_final(model_.stored_dtype()));
  const auto& linear = spec_.head ? *spec_.head : spec_.embedding;
  States gradients;
  for (std::size_t b = 0; b < states.size(); ++b) {
    const auto& batch = rows_.batches[b];
    std::vector<mx::array> parts;
    in_parts(b, [&](int begin, int end) {
      auto g = quantize::head_gradients(spec_, tensors, cut(states[b], begin, end), cut(batch.targets, begin, end), cut(batch.next_mask, begin, end));
      mx::eval(g.weight, g.input);
      fisher_.add(linear.path, g.weight);
      parts.push_back(g.input);
    });
    gradients.push_back(mx::concatenate(parts, 0));
    gradients.back().eval();
  }
  return gradients;
}

/// Of a state's gradient the columns of the embedded tokens. What a front makes of them besides is left out.
mx::array Sweep::embedded_part(const mx::array& gradient) const {
  auto stop = gradient.shape();
  stop.back() = spec_.hidden;
  return stop == gradient.shape() ? gradient : mx::slice(gradient, mx::Shape(gradient.ndim(), 0), stop);
}

/// The embeddings' rows that were looked up; those of a tied head are there already.
void Sweep::embedding(const States& gradients) {
  for (std::size_t b = 0; b < gradients.size(); ++b)
    in_parts(b, [&](int begin, int end) {
      const auto scaled = mx::multiply(mx::astype(embedded_part(cut(gradients[b], begin, end)), mx::float32), mx::array(spec_.embedding_multiplier));
      fisher_.add_lookups(spec_.embedding.path, spec_.embedding.out, cut(rows_.ids[b], begin, end), scaled);
      if (!spec_.position_embedding) return;
      model::Context context;
      context.segments = cut(rows_.segments[b], begin, end);
      fisher_.add_lookups(spec_.position_embedding->path, spec_.position_embedding->out,
                          model::positions(context, end - begin, rows_.ids[b].shape(1)), cut(gradients[b], begin, end));
    });
}

/// Takes the gradients from behind a block to before it, and sums the squares of its weights'.
States Sweep::through(const model::Visit& visit, const model::Tensors& tensors, const States& states, const States& gradients) {
  States before;
  for (std::size_t b = 0; b < states.size(); ++b) {
    std::vector<mx::array> parts;
    in_parts(b, [&](int begin, int end) {
      model::Context context;
      context.segments = cut(rows_.segments[b], begin, end);
      auto g = quantize::through_block(spec_, visit, tensors, cut(states[b], begin, end), cut(gradients[b], begin, end), context);
      std::vector<mx::array> all{g.input};
      std::map<std::string, kernels::GroupedGradient> stacks;
      for (const auto& [path, gradient] : g.weights) {
        // The sums over passes are kept weight by weight.
        const auto stack =
            spec_.passes == 1 && quantize::FisherStore::can_sum(gradient.shape(-1)) ? kernels::grouped_gradient(gradient) : std::nullopt;
        if (stack) {
          all.insert(all.end(), {stack->dy, stack->x, stack->offsets});
          stacks.insert({path, *stack});
        } else {
          all.push_back(gradient);
        }
      }
      mx::eval(all);
      for (const auto& [path, gradient] : g.weights) {
        if (const auto stack = stacks.find(path); stack != stacks.end())
          fisher_.add(path, stack->second);
        else
          fisher_.add(path, gradient);
      }
      parts.push_back(g.input);
    });
    before.push_back(mx::concatenate(parts, 0));
    before.back().eval();
  }
  return before;
}

json Sweep::all() {
  json costs = json::object();
  States gradients;
  int at = 0;  // the gradients before this run are known
  while (at <= runs_ && !run_.has(before(at))) ++at;
  if (spec_.tied() && !run_.has("head")) at = runs_ + 1;  // half of the embedding's costs is gone: nothing behind it can be used
  if (at <= runs_) {
    auto done = run_.need(before(at));
    costs = done.meta;
    gradients = from_unit(done.tensors);
    progress_.skip(2 * runs_ + 2 - at);
    if (at > 0) forward(at - 1);
  } else {
    forward(runs_);
    gradients = head(from_unit(run_.need(entering(runs_)).tensors));
    if (spec_.tied())
      run_.save("head", {{"fisher", fisher_.of(spec_.embedding.path)}});
    else
      costs.update(judge({&*spec_.head}, dense(model_.load_final(model_.stored_dtype()))));
    fisher_.clear();
    at = runs_;
    run_.save(before(at), as_unit(gradients), costs);
    run_.drop(entering(runs_));
    step();
  }
  for (int i = at - 1; i >= 0; --i) {
    const auto& visit = visits_[i];
    const auto linears = spec_.blocks[visit.block].linears();
    const auto tensors = dense_block(visit.block);
    gradients = through(visit, tensors, from_unit(run_.need(entering(i)).tensors), gradients);
    // Gradients of different passes are taken to be independent, as those of different tokens are.
    if (visit.pass + 1 < spec_.passes)
      for (const auto& [path, sum] : run_.need(later(visit.block)).tensors) fisher_.put(path, mx::add(fisher_.of(path), sum));
    if (visit.pass > 0)
      run_.save(later(visit.block), sums_of(linears));
    else
      costs.update(judge(linears, tensors));
    fisher_.clear();
    run_.save(before(i), as_unit(gradients), costs);
    run_.drop(entering(i));
    run_.drop(before(i + 1));
    if (visit.pass == 0 && spec_.passes > 1) run_.drop(later(visit.block));
    step();
  }
  embedding(gradients);
  if (spec_.tied()) fisher_.put(spec_.embedding.path, mx::add(fisher_.of(spec_.embedding.path), run_.need("head").tensors.at("fisher")));
  std::vector<const model::LinearSpec*> tables{&spec_.embedding};
  if (spec_.position_embedding) tables.push_back(&*spec_.position_embedding);
  costs.update(judge(tables, dense(model_.load_embedding(model_.stored_dtype()))));
  // What else stands outside the blocks has the embedding's format, and costs nothing of its own.
  for (const auto& outside : {spec_.front_linears(), spec_.tail_linears()})
    for (const auto* linear : outside)
      if (!costs.contains(linear->path)) {
        auto& entry = costs[linear->path] = json::array();
        for (const auto& format : formats_) entry.push_back(linear->in % format.group_size == 0 ? json(0.0) : json(nullptr));
      }
  fisher_.clear();
  step();
  progress_.finish();
  return costs;
}

json format_json(const codec::Format& f) { return {{"bits", f.bits}, {"group_size", f.group_size}, {"mode", codec::to_string(f.mode)}}; }

codec::Format format_of(const JsonView& in) {
  const auto mode = in.at("mode").text();
  const codec::Format format{codec::Mode::affine, static_cast<int>(in.at("bits").whole(2, 8)), static_cast<int>(in.at("group_size").whole(32, 128))};
  const auto known = affine_formats();
  if (mode != codec::to_string(format.mode) || std::find(known.begin(), known.end(), format) == known.end())
    in.refuse("an affine format of 2, 3, 4, 5, 6 or 8 bits with groups of 32, 64 or 128");
  return format;
}

/// A divergence is never negative; null stands where a linear's width does not allow the format.
double cost_of(const JsonView& in) {
  if (in.value().is_null()) return std::numeric_limits<double>::quiet_NaN();
  const double cost = in.number();
  if (!(cost >= 0 && cost <= kMostCost)) in.refuse("a divergence: null, or a number from 0 on that f32 can hold");
  return cost;
}

}  // namespace

std::vector<codec::Format> affine_formats() { return formats_of({2, 3, 4, 5, 6, 8}, {32, 64, 128}); }

std::vector<codec::Format> formats_of(const std::vector<int>& bits, const std::vector<int>& groups) {
  std::vector<codec::Format> formats;
  for (int b : bits)
    for (int g : groups) {
      formats.push_back({codec::Mode::affine, b, g});
      codec::check(formats.back());
    }
  return formats;
}

double Sensitivities::of(const std::string& path, const codec::Format& format) const {
  const auto it = kl.find(path);
  if (it != kl.end())
    for (std::size_t i = 0; i < formats.size(); ++i)
      if (formats[i] == format) return it->second[i];
  return std::numeric_limits<double>::quiet_NaN();
}

json Sensitivities::to_json() const {
  json out{{"lquant", LQUANT_VERSION}, {"model", model}, {"data", data}, {"tokens", tokens}, {"measured", measured}};
  for (const auto& format : formats) out["formats"].push_back(format_json(format));
  auto& linears = out["kl"] = json::object();
  for (const auto& [path, costs] : kl) {
    auto& entry = linears[path] = json::array();
    for (double cost : costs) entry.push_back(std::isfinite(cost) ? json(cost) : json(nullptr));
  }
  return out;
}

Sensitivities Sensitivities::from_json(const json& in, const std::string& file, const char* mend) {
  const JsonView all("pipeline", file, in, mend);
  Sensitivities s;
  s.model = all.at("model").text();
  s.data = all.at("data").value();
  s.tokens = static_cast<double>(all.at("tokens").whole(0, kMostTokens));
  s.measured = all.at("measured").flag();
  const auto formats = all.at("formats");
  for (std::size_t i = 0; i < formats.size(); ++i) s.formats.push_back(format_of(formats.at(i)));
  const auto linears = all.at("kl");
  if (!linears.value().is_object()) linears.refuse("an object");
  for (const auto& [path, value] : linears.value().items()) {
    const auto costs = linears.at(path);
    if (costs.size() != s.formats.size()) costs.complain(fmt::format("has {} costs where the file has {} formats", costs.size(), s.formats.size()));
    auto& entry = s.kl[path];
    for (std::size_t i = 0; i < s.formats.size(); ++i) entry.push_back(cost_of(costs.at(i)));
  }
  return s;
}

Sensitivities compute_sensitivities(const model::Model& model, const Rows& rows, const std::vector<codec::Format>& formats, run::RunFolder& run,
                                    const run::Context& context) {
  if (const auto done = run.load("sensitivities")) return Sensitivities::from_json(done->meta, run.path().string(), "add --fresh to start over");
  Sweep sweep(model, rows, formats, run, context);
  Sensitivities s;
  s.formats = formats;
  s.tokens = sweep.tokens();
  s.model = model.checkpoint().fingerprint();
  s.data = rows.manifest;
  const auto found = sweep.all();
  for (const auto& [path, costs] : found.items()) {
    auto& entry = s.kl[path];
    for (const auto& cost : costs) entry.push_back(cost.is_null() ? std::numeric_limits<double>::quiet_NaN() : cost.get<double>());
  }
  run.save("sensitivities", {}, s.to_json());
  run.drop("head");
  run.drop(Sweep::before(0));
  return s;
}

}  // namespace lquant::pipeline
