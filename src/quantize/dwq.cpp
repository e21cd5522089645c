// One step: the student's weights are made dense once; the batch is worked through in parts that fit in memory; each part
// gives the gradient of every dense weight, which is reduced at once to scales, biases and latents and dropped, from the last
// linear to the first, so that few dense gradients exist at a time. Then every linear takes its step.
#include "quantize/dwq.h"

#include <mlx/distributed/ops.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>

#include "base/error.h"
#include "kernels/head_loss.h"
#include "kernels/primitive.h"
#include "model/forward.h"
#include "quantize/schedule.h"

namespace lquant::quantize {
namespace {

// MLX's fused backward pass of attention takes rows of multiples of it. And it compiles the whole pass anew for each length.
constexpr int kDeviceLength = 128;

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

DwqTrainer::Rows DwqTrainer::rows_of(const std::string& split, int index, const calibration::Batch& batch, int begin, int end) {
  const auto part = calibration::slice_rows(batch, begin, end);
  Rows rows{part.ids, part.mask, part.borders(), targets_.rows(split, index, batch, begin, end)};
  if (kernels::cpu_kernels() || part.length() % kDeviceLength == 0) return rows;
  const int more = kDeviceLength - part.length() % kDeviceLength, count = part.rows(), length = part.length();
  const auto padded = [&](const mx::array& x, int with) { return mx::pad(x, {{0, 0}, {0, more}}, mx::array(with, x.dtype())); };
  rows.ids = padded(rows.ids, 0);
  rows.mask = padded(rows.mask, 0);
  if (rows.segments) rows.segments = padded(*rows.segments, -1);
  for (auto* of_tokens : {&rows.target.hidden, &rows.target.logits, &rows.target.ids}) {
    if (!*of_tokens) continue;
    const auto& x = **of_tokens;
    const auto by_row = mx::pad(mx::reshape(x, {count, length, x.shape(1)}), {{0, 0}, {0, more}, {0, 0}});
    *of_tokens = mx::reshape(by_row, {count * (length + more), x.shape(1)});
  }
  return rows;
}

DwqTrainer::Rows DwqTrainer::next_rows(int step, std::pair<int, int> part) {
  if (ahead_ && ahead_->first == step) {  // asked for the first part first
    auto rows = std::move(ahead_->second);
    ahead_.reset();
    return rows;
  }
  return rows_of("train", step, train_[step], part.first, part.second);
}

mx::array DwqTrainer::loss(const std::vector<mx::array>& weights, const Rows& rows, float temperature, bool needs_gradient) const {
  const auto tensors = student_.with(weights);
  const auto& formats = student_.fixed_formats();
  model::Context context;
  context.segments = rows.segments;
  mx::array hidden(0);
  if (options_.grad_checkpoint && needs_gradient) {
    hidden = model::embed(spec_, tensors, formats, rows.ids, dtype_, context);
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
    hidden = model::hidden_states(spec_, tensors, formats, rows.ids, dtype_, context);
  }
  hidden = mx::reshape(hidden, {-1, hidden.shape(-1)});
  const auto head = model::head(spec_, tensors, formats, dtype_);
  kernels::HeadLossArgs args;
  args.temperature = temperature;
  args.softcap = head.softcap;
  args.multiplier = head.multiplier;
  const auto mask = mx::reshape(rows.mask, {-1});
  const auto& target = rows.target;
  if (!target.hidden)
    return kernels::kl_loss(hidden, head.weight, head.bias, kernels::TeacherTopK{*target.logits, *target.ids}, mask, args, needs_gradient);
  const auto& teacher = targets_.head();
  args.teacher_softcap = teacher.softcap;
  args.teacher_multiplier = teacher.multiplier;
  return kernels::kl_loss(hidden, head.weight, head.bias, kernels::TeacherHidden{*target.hidden, teacher.weight, teacher.bias}, mask, args,
                          needs_gradient);
}

kernels::Pullback DwqTrainer::differentiated(const std::vector<mx::array>& weights, const Rows& rows) const {
  const auto run = [&](const std::vector<mx::array>& w) { return std::vector<mx::array>{loss(w, rows, options_.temperature, true)}; };
  return kernels::loss_gradients(run, weights, dtype_);
}

/// `inputs`: the weights, then ids, mask, segments if there are any, then hidden states or logits and ids. Gives the loss and the gradients.
std::vector<mx::array> DwqTrainer::traced(const std::vector<mx::array>& inputs, bool segments, bool hidden) const {
  const auto count = static_cast<std::ptrdiff_t>(student_.size());
  const std::vector<mx::array> weights(inputs.begin(), inputs.begin() + count);
  auto at = inputs.begin() + count;
  Rows rows{at[0], at[1], std::nullopt, {}};
  at += 2;
  if (segments) rows.segments = *at++;
  if (hidden) {
    rows.target.hidden = at[0];
  } else {
    rows.target.logits = at[0];
    rows.target.ids = at[1];
  }
  auto pass = differentiated(weights, rows);
  std::vector<mx::array> all{pass.values[0]};
  all.insert(all.end(), std::make_move_iterator(pass.gradients.begin()), std::make_move_iterator(pass.gradients.end()));
  return all;
}

DwqTrainer::Pass DwqTrainer::pass(const std::vector<mx::array>& weights, const Rows& rows) {
  if (options_.compile && dtype_ != mx::float16) {
    const std::pair kind{rows.segments.has_value(), rows.target.hidden.has_value()};
    auto& compiled = compiled_[kind];
    if (!compiled) compiled = mx::compile([this, kind](const std::vector<mx::array>& in) { return traced(in, kind.first, kind.second); });
    auto inputs = weights;
    inputs.push_back(rows.ids);
    inputs.push_back(rows.mask);
    for (const auto& more : {rows.segments, rows.target.hidden, rows.target.logits, rows.target.ids})
      if (more) inputs.push_back(*more);
    auto all = compiled(inputs);
    const auto loss = all.front();
    all.erase(all.begin());
    return {loss, std::move(all)};
  }
  auto made = differentiated(weights, rows);
  if (!made.in_range) fail("quantize", "gradients left the range of float16; make the model float32 first (lquant convert --dtype float32)");
  return {made.values[0], std::move(made.gradients)};
}

void DwqTrainer::require_finite(double loss, int step) const {
  if (std::isfinite(loss)) return;
  fail("quantize", "the loss is not a number at step {}; check the model's weights, {}or give a smaller --learning-rate", step + 1,
       dtype_ == mx::float16 ? "make the model float32 first, whose range is larger (lquant convert --dtype float32), " : "");
}

/// On a CPU all is evaluated as it is made. A device gets the whole step at once, and the teacher's pass of the next one behind it, before the
/// host waits for the loss: its graph is built while the device is busy.
double DwqTrainer::train_step(int step, double* tokens) {
  const bool host = kernels::cpu_kernels();
  auto weights = student_.weights();
  if (host) mx::eval(weights);
  std::vector<mx::array> losses;
  double loss = 0;
  const auto parts = parts_of(train_[step], options_.micro_tokens, group_.rank(), group_.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    auto made = pass(weights, next_rows(step, parts[i]));
    if (i + 1 == parts.size()) weights.clear();
    if (host) loss += made.loss.item<float>();
    losses.push_back(made.loss);
    student_.accumulate(std::move(made.gradients));
    if (host || i + 1 == parts.size()) continue;
    auto now = student_.accumulated();
    now.push_back(losses.back());
    mx::async_eval(std::move(now));
  }
  *tokens = train_[step].tokens;  // of all ranks: every rank holds the whole batch's mask
  if (host) {
    loss = sum_over_ranks(loss);
    require_finite(loss, step);
  }
  if (group_.size() > 1)
    for (std::size_t i = 0; i < student_.size(); ++i)
      for (auto* part : student_.linear(i).gradient()) *part = mx::distributed::all_sum(*part, group_);
  const float rate = rate_at(step, steps(), options_.warmup);
  student_.step({rate * options_.scale_rate, rate * options_.code_rate, step + 1});
  if (!host) {
    auto now = student_.stepped();
    now.insert(now.end(), losses.begin(), losses.end());
    mx::async_eval(std::move(now));
    if (step + 1 < steps()) {
      const auto coming = parts_of(train_[step + 1], options_.micro_tokens, group_.rank(), group_.size());
      if (!coming.empty()) ahead_ = {step + 1, rows_of("train", step + 1, train_[step + 1], coming[0].first, coming[0].second)};
    }
    for (auto& part : losses) loss += part.item<float>();
    loss = sum_over_ranks(loss);
    require_finite(loss, step);
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
  const bool host = kernels::cpu_kernels();
  auto weights = student_.weights();
  if (host) mx::eval(weights);
  std::vector<mx::array> losses;
  double loss = 0, tokens = 0;
  for (std::size_t i = 0; i < valid_.size(); ++i) {
    for (const auto& [begin, end] : parts_of(valid_[i], options_.micro_tokens, group_.rank(), group_.size())) {
      auto part = this->loss(weights, rows_of("valid", static_cast<int>(i), valid_[i], begin, end), 1.0f, false);
      if (host)
        loss += part.item<float>();
      else
        mx::async_eval(losses.emplace_back(part));
    }
    tokens += valid_[i].tokens;
  }
  for (auto& part : losses) loss += part.item<float>();
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
