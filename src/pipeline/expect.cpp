// Every step is mostly matrix products, and each weight meets each token a known number of times: twice an operation forward, four times
// backward. What is not products (range searches, Cholesky factors, rounding) is counted by what it was measured to cost beside them.
#include "pipeline/expect.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>

#include "kernels/linear.h"
#include "pipeline/expert_rows.h"
#include "pipeline/memory.h"

namespace lquant::pipeline {
using Clock = std::chrono::steady_clock;

namespace {

// The share of a plain product's rate that whole steps reached on two CPU cores (docs/methods/dwq.md: 57 to 59 %) and, with smaller matrices, less.
constexpr double kShareOfPeak = 0.4;

/// Operations a second of one long product in the model's compute dtype.
double rate_of(mx::Dtype dtype) {
  constexpr int kSize = 2048, kTimes = 3;
  const auto x = mx::astype(mx::random::normal({1024, kSize}), dtype), w = mx::astype(mx::random::normal({kSize, kSize}), dtype);
  mx::eval(x, w);
  auto warm = kernels::linear(x, {w, std::nullopt});
  warm.eval();
  const auto start = Clock::now();
  for (int i = 0; i < kTimes; ++i) {
    auto y = kernels::linear(x, {w, std::nullopt});
    y.eval();
  }
  return 2.0 * 1024 * kSize * kSize * kTimes / std::chrono::duration<double>(Clock::now() - start).count();
}

struct Shape {
  double met = 0;      ///< weights that a token meets
  double all = 0;      ///< all weights
  double moments = 0;  ///< Σ K² over distinct inputs, each summed for every token
  double solves = 0;   ///< Σ N·K², what a solve and each sweep of descent cost
  double largest = 0;  ///< weights of the largest block
};

Shape shape_of(const model::ModelSpec& spec) {
  Shape s;
  for (const auto* linear : spec.linears()) {
    const double n = linear->out, k = linear->in, experts = std::max(1, linear->experts);
    s.all += n * k * experts;
    if (linear->role == model::Role::embed && spec.head) continue;
    const double active = std::max(1, linear->top_k);
    s.met += n * k * active;
    const bool one_input = linear->stack == model::LinearSpec::Stack::shared;
    s.moments += k * k * (one_input ? 1 : active) / 2;  // linears that read one input share its moments: two of them at the mean
    s.solves += n * k * k * experts;
  }
  for (const auto& block : spec.blocks) {
    double weights = 0;
    for (const auto* linear : block.linears()) weights += static_cast<double>(linear->parameters());
    s.largest = std::max(s.largest, weights);
  }
  s.largest = std::max(s.largest, static_cast<double>(spec.embedding.parameters()));
  return s;
}

}  // namespace

std::vector<AutoStep> expect(const AutoRun& o, const model::Model& model) {
  const auto& spec = model.spec();
  const auto s = shape_of(spec);
  const double rate = kShareOfPeak * rate_of(model.compute_dtype());
  const double few = static_cast<double>(kStatisticRows) * o.sequence_length, many = static_cast<double>(o.num_samples) * o.sequence_length;
  // Range searches of all formats cost about 2,000 operations a weight, a sweep of descent 2·N·K² at the rate of a product.
  const double search = 2000 * s.all;
  const double states = 2 * few * spec.hidden;
  const auto any = plan::uniform_plan(spec, {codec::Mode::affine, 4, o.groups.empty() ? 64 : o.groups.front()});
  std::vector<AutoStep> steps;
  const auto add = [&](const std::string& name, double operations, double memory) {
    if (name != "allocate" && std::find(o.steps.begin(), o.steps.end(), name) == o.steps.end()) return;
    steps.push_back({.name = name, .expected_time = operations / rate, .expected_memory = memory});
  };
  // Experts' tokens are counted while experts lack some, which in most mixtures is to the last of the rows.
  const bool counts = has_routed_experts(spec) && o.expert_tokens != 0 && o.num_samples > kStatisticRows;
  const double counting = counts ? 2 * s.met * std::min(few * kExpertPool, many) : 0;
  add("allocate", counting + 10 * s.met * few + search, 12 * s.largest + 3 * states);
  add("awq", 8 * s.met * few + 4 * s.moments * few + 20 * s.solves, 16 * s.largest + 3 * states);
  add("gptq", 6 * s.met * few + 4 * s.moments * few + 10 * s.solves, 16 * s.largest + 3 * states);
  add("blocks", 6 * s.met * few + 4 * s.moments * few + 10 * s.solves + 4 * 6 * s.met * few, 24 * s.largest + 4 * states);
  add("dwq", 8 * s.met * many, expected_memory(spec, any, {8, o.sequence_length, false, true}));
  return steps;
}

void tell(const std::vector<AutoStep>& steps, const AutoRun& o, const model::Model& model, const run::Context& context) {
  plan::QuantPlan dense;
  const auto size = plan::size_of(model.spec(), dense, static_cast<int>(mx::size_of(model.stored_dtype())));
  const double parameters = static_cast<double>(size.parameters);
  const auto target = o.target.bytes ? fmt::format("{:.3f} bits per weight", 8.0 * static_cast<double>(*o.target.bytes) / parameters)
                      : o.target.kl  ? fmt::format("a predicted KL of {}", *o.target.kl)
                                     : fmt::format("{} bits per weight, {}", *o.target.bits, format_bytes(*o.target.bits * parameters / 8));
  context.line(fmt::format("plan: {} ({:.1f} million weights, {}) to {}", model.checkpoint().name(), parameters / 1e6,
                           format_bytes(static_cast<double>(size.bytes)), target));
  double time = 0, memory = 0;
  for (const auto& step : steps) {
    context.line(
        fmt::format("  {:<9} about {:>12}, {} of memory", step.name, format_duration(step.expected_time), format_bytes(step.expected_memory)));
    time += step.expected_time, memory = std::max(memory, step.expected_memory);
  }
  context.line(fmt::format("  together  about {:>12}, {} of memory", format_duration(time), format_bytes(memory)));
  const double have = available_memory();
  if (have > 0 && memory > 0.8 * have)
    context.warn(fmt::format("this machine has {}; leave out dwq (--steps awq gptq blocks), or shorten --sequence-length", format_bytes(have)));
}

}  // namespace lquant::pipeline
