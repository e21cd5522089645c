// One step: the student's weights are made dense once; the batch is worked through in parts that fit in memory; each part
// gives the gradient of every dense weight, which is reduced at once to scales, biases and latents and dropped, from the last
// linear to the first, so that few dense gradients exist at a time. Then every linear takes its step.
#include "quantize/dwq.h"

#include <mlx/distributed/ops.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "kernels/head_loss.h"
#include "kernels/primitive.h"
#include "kernels/scaled_vjp.h"
#include "model/forward.h"
#include "quantize/schedule.h"

namespace lquant::quantize {
namespace {

/// Rows [begin, end) of each part: as many as micro_tokens holds, at least one.
std::vector<std::pair<int, int>> parts_of(const calibration::Batch& batch, int micro_tokens, int rank, int ranks) {
  // Each rank takes a run of rows; parts never cross it.
  const int from = batch.rows() * rank / ranks, to = batch.rows() * (rank + 1) / ranks;
  const int rows = std::max(1, micro_tokens / batch.length());
  std::vector<std::pair<int, int>> parts;
  for (int begin = from; begin < to; begin += rows) parts.push_back({begin, std::min(to, begin + rows)});
  return parts;
}

}  // namespace

DwqTrainer::DwqTrainer(const model::ModelSpec& spec, Student& student, mx::Dtype dtype, const std::vector<calibration::Batch>& train,
                       const std::vector<calibration::Batch>& valid, calibration::Targets& targets, const DwqOptions& options,
                       mx::distributed::Group group)
    : spec_(spec), student_(student), dtype_(dtype), train_(train), valid_(valid), targets_(targets), options_(options), group_(std::move(group)) {}

double DwqTrainer::sum_over_ranks(double value) const {
  if (group_.size() == 1) return value;
  auto total = mx::distributed::all_sum(mx::array(static_cast<float>(value)), group_);
  return total.item<float>();
}

mx::array DwqTrainer::loss(const std::vector<mx::array>& weights, const calibration::Batch& part, const calibration::Target& target,
                           float temperature, bool needs_gradient) const {
  const auto tensors = student_.with(weights);
  const auto& formats = student_.fixed_formats();
  model::Context context;
  context.segments = part.segments;
  mx::array hidden(0);
  if (options_.grad_checkpoint && needs_gradient) {
    hidden = model::embed(spec_, tensors, formats, part.ids, dtype_, context);
    for (const auto& visit : spec_.visits()) {
      // Everything that gradients flow to must be an input of the checkpointed function.
      std::vector<std::string> names;
      std::vector<mx::array> inputs{hidden};
      for (const auto* linear : spec_.blocks[visit.block].linears()) {
        names.push_back(linear->path + ".weight");
        inputs.push_back(tensors.at(names.back()));
      }
      // By value: the backward pass calls it again when this function has returned.
      hidden = mx::checkpoint([this, &formats, tensors, context, visit, names](const std::vector<mx::array>& in) {
        auto own = tensors;
        for (std::size_t n = 0; n < names.size(); ++n) own.insert_or_assign(names[n], in[n + 1]);
        return std::vector<mx::array>{model::block(spec_, visit, own, formats, in[0], context)};
      })(inputs)[0];
    }
    hidden = model::final_norm(spec_, tensors, hidden, formats);
  } else {
    hidden = model::hidden_states(spec_, tensors, formats, part.ids, dtype_, context);
  }
  hidden = mx::reshape(hidden, {-1, hidden.shape(-1)});
  const auto head = model::head(spec_, tensors, formats, dtype_);
  kernels::HeadLossArgs args;
  args.temperature = temperature;
  args.softcap = head.softcap;
  args.multiplier = head.multiplier;
  const auto mask = mx::reshape(part.mask, {-1});
  if (!target.hidden)
    return kernels::kl_loss(hidden, head.weight, head.bias, kernels::TeacherTopK{*target.logits, *target.ids}, mask, args, needs_gradient);
  const auto& teacher = targets_.head();
  args.teacher_softcap = teacher.softcap;
  args.teacher_multiplier = teacher.multiplier;
  return kernels::kl_loss(hidden, head.weight, head.bias, kernels::TeacherHidden{*target.hidden, teacher.weight, teacher.bias}, mask, args,
                          needs_gradient);
}

std::pair<double, std::vector<mx::array>> DwqTrainer::loss_and_gradients(const std::vector<mx::array>& weights, const calibration::Batch& part,
                                                                         const calibration::Target& target) const {
  const auto run = [&](const std::vector<mx::array>& w) { return std::vector<mx::array>{loss(w, part, target, options_.temperature, true)}; };
  auto pass = kernels::loss_gradients(run, weights, dtype_);
  if (!pass.in_range) fail("quantize", "gradients left the range of float16; make the model float32 first (lquant convert --dtype float32)");
  if (!kernels::cpu_kernels()) {  // a GPU is kept busy by one long graph
    auto all = pass.gradients;
    all.push_back(pass.values[0]);
    mx::eval(all);
  }
  return {pass.values[0].item<float>(), std::move(pass.gradients)};
}

double DwqTrainer::train_step(int step, double* tokens) {
  const auto& batch = train_[step];
  auto weights = student_.weights();
  mx::eval(weights);
  double loss = 0;
  for (const auto& [begin, end] : parts_of(batch, options_.micro_tokens, group_.rank(), group_.size())) {
    const auto target = targets_.rows("train", step, batch, begin, end);
    auto [value, gradients] = loss_and_gradients(weights, calibration::slice_rows(batch, begin, end), target);
    loss += value;
    for (std::size_t i = student_.size(); i-- > 0;) {
      student_.linear(i).accumulate(gradients[i]);
      gradients.pop_back();
    }
  }
  weights.clear();
  *tokens = batch.tokens;  // of all ranks: every rank holds the whole batch's mask
  loss = sum_over_ranks(loss);
  if (!std::isfinite(loss))
    fail("quantize", "the loss is not a number at step {}; check the model's weights, {}or give a smaller --learning-rate", step + 1,
         dtype_ == mx::float16 ? "make the model float32 first, whose range is larger (lquant convert --dtype float32), " : "");
  const float rate = rate_at(step, steps(), options_.warmup);
  for (std::size_t i = 0; i < student_.size(); ++i) {
    auto& linear = student_.linear(i);
    if (group_.size() > 1)
      for (auto* part : linear.gradient()) *part = mx::distributed::all_sum(*part, group_);
    linear.step({rate * options_.scale_rate, rate * options_.code_rate, step + 1});
  }
  return *tokens > 0 ? loss / *tokens : 0;  // every row may have been cut inside its masked prompt
}

int DwqTrainer::steps_between_validations() const {
  // A validation is a forward pass, a third of a training step's work: all of them together may cost a tenth of the training.
  const auto tokens = [](const std::vector<calibration::Batch>& batches) {
    double sum = 0;
    for (const auto& batch : batches) sum += batch.tokens;
    return sum;
  };
  const double affordable = 0.1 * tokens(train_) / (tokens(valid_) / 3) - 2;
  const int count = std::clamp(static_cast<int>(affordable), 1, options_.validations);
  return std::max(1, (steps() + count) / (count + 1));
}

double DwqTrainer::validate() {
  auto weights = student_.weights();
  mx::eval(weights);
  double loss = 0, tokens = 0;
  for (std::size_t i = 0; i < valid_.size(); ++i) {
    for (const auto& [begin, end] : parts_of(valid_[i], options_.micro_tokens, group_.rank(), group_.size())) {
      const auto target = targets_.rows("valid", i, valid_[i], begin, end);
      loss += this->loss(weights, calibration::slice_rows(valid_[i], begin, end), target, 1.0f, false).item<float>();
    }
    tokens += valid_[i].tokens;
  }
  return sum_over_ranks(loss) / tokens;
}

void DwqTrainer::run(DwqProgress& progress, const std::function<bool(const DwqReport&)>& report, const std::function<void()>& keep_best) {
  if (progress.step == 0) {
    progress.start = progress.best = validate();
    progress.best_step = 0;
    keep_best();
  }
  const int every = steps_between_validations();
  while (progress.step < steps()) {
    DwqReport now;
    now.steps = steps();
    const auto began = std::chrono::steady_clock::now();
    now.loss = train_step(progress.step, &now.tokens);
    now.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    now.step = ++progress.step;
    progress.losses.push_back(now.loss);
    if (progress.step % every == 0 || progress.step == steps()) {
      now.validation = validate();
      if (*now.validation < progress.best) {
        progress.best = *now.validation;
        progress.best_step = progress.step;
        now.best = true;
        keep_best();
      }
    }
    if (!report(now)) return;
  }
}

float default_code_rate(int steps) { return std::min(0.008f, 0.048f / std::sqrt(static_cast<float>(std::max(1, steps)))); }

namespace {

// With fewer steps the noise of single batches says more than the trend.
constexpr std::size_t kTellingSteps = 20;

}  // namespace

std::string diagnose(const std::vector<double>& losses, double start, double best) {
  const bool few = losses.size() < kTellingSteps;
  const std::string kept = "Training did not lower the KL on the held-out rows; the model is saved as it was before training. ";
  if (best >= start && few)
    return kept + fmt::format("{} too few to learn from: give more rows (--num-samples) or a smaller --batch-size.",
                              losses.size() == 1 ? "1 step is" : fmt::format("{} steps are", losses.size()));
  if (few) return "";
  const std::size_t quarter = losses.size() / 4;
  const auto mean = [&](std::size_t from, std::size_t to) {
    double sum = 0;
    for (std::size_t i = from; i < to; ++i) sum += losses[i];
    return sum / static_cast<double>(to - from);
  };
  const double first = mean(0, quarter), last = mean(losses.size() - quarter, losses.size());
  const std::size_t half = losses.size() / 2;
  double swings = 0;
  for (std::size_t i = half; i < losses.size(); ++i) swings += std::abs(losses[i] - losses[i - 1]);
  swings /= static_cast<double>(losses.size() - half);
  const bool rises = last > 1.02 * first || swings > last;
  if (best >= start && rises)
    return kept +
           "The loss on the rows that it learns from did not go down either, so the learning rate is probably too high: give a smaller "
           "--learning-rate.";
  if (best >= start)
    return kept +
           "The loss on the rows that it learns from went down or stayed, so there are probably too few of them, or they are unlike the held-out "
           "rows: "
           "give more --num-samples, or a smaller --learning-rate.";
  if (rises) return "The loss oscillates instead of going down: give a smaller --learning-rate.";
  if (best > 0.97 * start) return "The loss barely moved: give a larger --learning-rate or more --num-samples.";
  return "";
}

}  // namespace lquant::quantize
