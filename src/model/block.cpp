// The residual stream is read once for both its uses (residual_norm), and the residual is added inside the closing product where no norm or factor
// stands between: what is left between products are the kernels' fused ops, so no pass over tokens × width is spent on MLX's single-threaded
// element-wise loops.
#include "model/block.h"

#include <mlx/mlx.h>

#include <algorithm>

#include "kernels/elementwise.h"
#include "model/norm.h"
#include "model/ops/exact.h"

namespace lquant::model {
namespace {

int stages(const Step& step) {
  int most = 0;
  for (const auto& branch : step.branches) most = std::max(most, branch.op->stages());
  return most;
}

/// A Python scalar meets an array in the array's dtype in MLX.
mx::array scaled(const mx::array& x, float factor) { return factor == 1 ? x : mx::multiply(x, mx::array(factor, x.dtype())); }

mx::array columns_of(const mx::array& state, const Columns& columns) {
  auto start = mx::Shape(state.ndim(), 0), stop = state.shape();
  start.back() = columns.first;
  stop.back() = columns.first + columns.width;
  return mx::slice(state, start, stop);
}

mx::array with_columns(const mx::array& state, int first, const mx::array& values) {
  auto start = mx::Shape(state.ndim(), 0), stop = state.shape();
  start.back() = first;
  stop.back() = first + values.shape(-1);
  return mx::slice_update(state, values, start, stop);
}

mx::array without_columns(const mx::array& state, const Columns& columns) {
  const int end = columns.first + columns.width;
  return mx::concatenate({columns_of(state, {0, columns.first}), columns_of(state, {end, state.shape(-1) - end})}, -1);
}

Halted enter(Scope scope, const Step& step, const mx::array& x) {
  scope.state = &x;
  Halted at{step.columns.all() ? x : columns_of(x, step.columns)};
  if (!step.columns.all()) at.state = x;
  std::optional<mx::array> shared;
  if (step.before) {
    auto [residual, normed] = residual_norm(scope.tensors, *step.before, at.residual);
    at.residual = std::move(residual);
    shared = std::move(normed);
  }
  for (const auto& branch : step.branches) {
    auto input = shared.value_or(at.residual);
    if (branch.before) {
      auto [residual, normed] = residual_norm(scope.tensors, *branch.before, at.residual);
      at.residual = std::move(residual);
      input = std::move(normed);
    }
    at.flows.push_back(branch.op->start(scope, input, at.residual));
  }
  return at;
}

/// A residual of f32 numbers in columns and what branches add to it, each times its factors.
mx::array mixed(const Scope& scope, const ResidualFactors& factors, const mx::array& residual, const mx::array& sum) {
  const auto f32 = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  const auto kept = mx::multiply(f32(scope.tensor(factors.of_residual.path)), out_of_columns(residual, kNumberColumns));
  const auto added = mx::multiply(f32(scope.tensor(factors.of_branches.path)), f32(sum));
  return in_columns(mx::add(kept, added), kNumberColumns, scope.dtype);
}

/// x and the branches' results: added, or summed and normed first. A product itself adds what is there already.
mx::array sum_of(const Scope& scope, const Step& step, const Halted& at) {
  std::optional<mx::array> sum;
  if (!step.after && !step.replaces && !step.instead && !step.factors) sum = at.residual;
  for (std::size_t b = 0; b < step.branches.size(); ++b) {
    const auto& branch = step.branches[b];
    if (branch.late) continue;
    if (!branch.after && branch.scale == 1) {
      sum = branch.op->finish(scope, at.flows[b], sum);
      continue;
    }
    auto y = branch.op->finish(scope, at.flows[b], std::nullopt);
    if (branch.after && branch.scale == 1 && sum) {
      sum = add_norm(scope.tensors, *branch.after, *sum, y);
      continue;
    }
    if (branch.after) y = normed(scope.tensors, *branch.after, y);
    y = scaled(y, branch.scale);
    sum = sum ? kernels::add(*sum, y) : y;
  }
  if (step.factors) return mixed(scope, *step.factors, at.residual, step.after ? normed(scope.tensors, *step.after, *sum) : *sum);
  return scaled(step.after ? add_norm(scope.tensors, *step.after, at.residual, *sum) : *sum, step.scale);
}

/// The result of the step's late branch, or that of a step before.
std::optional<mx::array> late_of(const Scope& scope, const Step& step, const Halted& at) {
  for (std::size_t b = 0; b < step.branches.size(); ++b)
    if (step.branches[b].late) return step.branches[b].op->finish(scope, at.flows[b], std::nullopt);
  return at.late;
}

/// The state behind a step.
mx::array close(Scope scope, const Step& step, const Halted& at) {
  scope.state = at.state ? &*at.state : &at.residual;
  auto x = sum_of(scope, step, at);
  if (at.state && !step.replaces) x = with_columns(*at.state, step.columns.first, x);
  for (std::size_t b = 0; b < step.branches.size(); ++b) {
    if (step.branches[b].gives < 0) continue;
    const auto values = step.branches[b].op->carried(at.flows[b]);
    if (values.empty()) continue;
    x = with_columns(x, step.branches[b].gives, mx::concatenate(values, -1));
  }
  return step.drops.all() ? x : without_columns(x, step.drops);
}

/// Where the cache keeps what is this run's own.
int place_of(const ModelSpec& spec, const Visit& visit) { return visit.block + visit.pass * static_cast<int>(spec.blocks.size()); }

/// A block, the front (−1), or the tail (behind the last block).
const BlockSpec& block_of(const ModelSpec& spec, int i) {
  if (i < 0) return spec.front.value();
  return i == static_cast<int>(spec.blocks.size()) ? spec.tail.value() : spec.blocks.at(i);
}

}  // namespace

mx::array Scope::columns(const Columns& columns) const { return columns.all() ? *state : columns_of(*state, columns); }

std::vector<mx::array> Halted::arrays() const {
  std::vector<mx::array> all{residual};
  if (state) all.push_back(*state);
  if (late) all.push_back(*late);
  for (const auto& flow : flows) {
    all.insert(all.end(), flow.inputs.begin(), flow.inputs.end());
    all.insert(all.end(), flow.kept.begin(), flow.kept.end());
  }
  return all;
}

bool narrow(Halted& halted, const mx::array& at) {
  const auto by_token = [&](const mx::array& x) {
    return x.ndim() > 2 && x.shape(0) == halted.residual.shape(0) && x.shape(1) == halted.residual.shape(1);
  };
  for (const auto& x : halted.arrays())
    if (!by_token(x)) return false;
  const auto take = [&](mx::array& x) { x = mx::take(x, at, 1); };
  take(halted.residual);
  if (halted.state) take(*halted.state);
  if (halted.late) take(*halted.late);
  for (auto& flow : halted.flows) {
    std::for_each(flow.inputs.begin(), flow.inputs.end(), take);
    std::for_each(flow.kept.begin(), flow.kept.end(), take);
  }
  return true;
}

int stages(const BlockSpec& block) { return first_stage(block, static_cast<int>(block.steps.size())); }

int first_stage(const BlockSpec& block, int step) {
  int all = 0;
  for (int s = 0; s < step; ++s) all += stages(block.steps[s]);
  return all;
}

int step_of(const BlockSpec& block, int stage) {
  int step = 0;
  while (first_stage(block, step + 1) <= stage) ++step;
  return step;
}

std::vector<const LinearSpec*> applied(const BlockSpec& block, int stage) {
  std::vector<const LinearSpec*> all;
  for (int s = 0; s < static_cast<int>(block.steps.size()); ++s) {
    const int first = first_stage(block, s), behind = first_stage(block, s + 1);
    for (const auto& branch : block.steps[s].branches) {
      Contents contents;
      branch.op->contents(0, first, contents);
      const int last = first + branch.op->stages() - 1;
      // An op's last linears wait for the end of the step.
      for (const auto& reading : contents.readings)
        if ((reading.stage == last ? behind : reading.stage + 1) == stage) all.push_back(reading.linear);
    }
  }
  return all;
}

int mixed_by(const BlockSpec& block) {
  int stage = 0;
  for (int s = 0; s < static_cast<int>(block.steps.size()); ++s)
    for (const auto& branch : block.steps[s].branches)
      if (const int own = branch.op->traits().mixed_by; own > 0) stage = std::max(stage, first_stage(block, s) + own);
  return stage;
}

Halted advance(const ModelSpec& spec, const Visit& visit, int stage, const Tensors& tensors, const Formats& formats, const Halted& at,
               const Context& context) {
  const auto& block = block_of(spec, visit.block);
  Scope scope{tensors, formats, context, at.residual.dtype(), place_of(spec, visit), nullptr, visit.pass};
  const int s = step_of(block, stage), own = stage - first_stage(block, s);
  if (own == 0) {
    auto next = enter(scope, block.steps[s], s == 0 ? at.residual : close(scope, block.steps[s - 1], at));
    if (s > 0) next.late = late_of(scope, block.steps[s - 1], at);
    return next;
  }
  Halted next{at.residual, {}, at.state, at.late};
  scope.state = at.state ? &*at.state : &at.residual;
  for (std::size_t b = 0; b < at.flows.size(); ++b) {
    const auto& op = *block.steps[s].branches[b].op;
    next.flows.push_back(own < op.stages() ? op.advance(scope, own, at.flows[b]) : at.flows[b]);
  }
  return next;
}

mx::array leave(const ModelSpec& spec, const Visit& visit, const Tensors& tensors, const Formats& formats, const Halted& at, const Context& context) {
  const auto& block = block_of(spec, visit.block);
  const Scope scope{tensors, formats, context, at.residual.dtype(), place_of(spec, visit), nullptr, visit.pass};
  auto x = block.steps.empty() ? at.residual : close(scope, block.steps.back(), at);
  if (at.late) x = kernels::add(x, *at.late);
  if (block.scalar) {
    const auto& columns = block.steps.back().columns;
    const auto factor = mx::astype(scope.tensor(block.scalar->path), x.dtype());
    x = columns.all() ? mx::multiply(x, factor) : with_columns(x, columns.first, mx::multiply(columns_of(x, columns), factor));
  }
  return x;
}

mx::array block(const ModelSpec& spec, const Visit& visit, const Tensors& tensors, const Formats& formats, const mx::array& x,
                const Context& context) {
  Halted at{x};
  const int count = stages(block_of(spec, visit.block));
  for (int stage = 0; stage < count; ++stage) at = advance(spec, visit, stage, tensors, formats, at, context);
  return leave(spec, visit, tensors, formats, at, context);
}

}  // namespace lquant::model
