// Forward once, keeping what every block was given; then back from the head, a block at a time, each computed again for its gradient.
#include "calibration/sensitivity.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <map>

#include "kernels/head_loss.h"
#include "kernels/moments.h"
#include "kernels/scaled_vjp.h"
#include "model/forward.h"

namespace lquant::calibration {
namespace {

/// The next token of each position, and 1 where there is one in the same text.
std::pair<mx::array, mx::array> next_tokens(const mx::array& ids, const mx::array* segments) {
  const int rows = ids.shape(0), length = ids.shape(1);
  const auto shifted = [&](const mx::array& x) { return mx::roll(x, -1, 1); };
  auto counts = mx::less(mx::broadcast_to(mx::arange(0, length, mx::int32), {rows, length}), mx::array(length - 1));
  if (segments)
    counts = mx::logical_and(counts, mx::logical_and(mx::greater_equal(*segments, mx::array(0)), mx::equal(*segments, shifted(*segments))));
  return {mx::reshape(shifted(ids), {-1}), mx::astype(mx::reshape(counts, {-1}), mx::float32)};
}

}  // namespace

void block_sensitivities(const model::Model& model, const std::vector<mx::array>& ids, const std::vector<mx::array>& segments,
                         const std::function<void(int block, const mx::array& fisher)>& take) {
  const auto& spec = model.spec();
  const auto dtype = model.compute_dtype();
  const auto visits = spec.visits();
  const int runs = static_cast<int>(visits.size());
  const auto context_of = [&](std::size_t b) {
    model::Context context;
    if (!segments.empty()) context.segments = segments[b];
    return context;
  };
  const auto load = [&](int i) { return model.cast(model::dense_tensors(model, model.load_block(i, model.stored_dtype())), dtype); };

  std::vector<std::vector<mx::array>> states(runs + 1);  // before each run of a block, and behind the last
  {
    const auto embedding = model::dense_tensors(model, model.load_embedding(model.stored_dtype()));
    for (std::size_t b = 0; b < ids.size(); ++b) states[0].push_back(model::embed(spec, embedding, {}, ids[b], dtype, context_of(b)));
    mx::eval(states[0]);
  }
  for (int i = 0; i < runs; ++i) {
    const auto tensors = load(visits[i].block);
    for (std::size_t b = 0; b < ids.size(); ++b) {
      states[i + 1].push_back(model::block(spec, visits[i], tensors, {}, states[i][b], context_of(b)));
      states[i + 1].back().eval();
    }
  }

  double tokens = 0;
  auto& gradients = states[runs];  // of the states behind the block at hand, in their places
  {
    const auto outer = model::dense_tensors(model, model.load_final(model.stored_dtype()));
    const auto head = model::head(spec, outer, {}, dtype);
    kernels::HeadLossArgs args;
    args.softcap = head.softcap, args.multiplier = head.multiplier;
    for (std::size_t b = 0; b < ids.size(); ++b) {
      const auto [next, counts] = next_tokens(ids[b], segments.empty() ? nullptr : &segments[b]);
      const auto loss = [&, next = next, counts = counts](const std::vector<mx::array>& x) {
        const auto h = mx::reshape(model::final_norm(spec, outer, x[0]), {-1, spec.hidden});
        return std::vector<mx::array>{kernels::cross_entropy_loss(h, head.weight, head.bias, next, counts, args, true, false)};
      };
      gradients[b] = kernels::loss_gradients(loss, {gradients[b]}, dtype).gradients[0];
      gradients[b].eval();
      tokens += mx::sum(counts).item<float>();
    }
  }
  std::map<int, mx::array> later;  // of blocks, the sums over later passes
  for (int i = runs - 1; i >= 0; --i) {
    const auto& visit = visits[i];
    const int width = spec.streams * spec.hidden;
    auto sum = mx::zeros({width, width}, mx::float32);
    for (const auto& gradient : gradients) {
      sum = mx::add(sum, kernels::gram(mx::contiguous(model::residual_of(spec, gradient))));
      sum.eval();
    }
    if (const auto others = later.extract(visit.block)) sum = mx::add(sum, others.mapped());
    if (visit.pass > 0)
      later.insert({visit.block, sum});
    else
      take(visit.block, mx::divide(sum, mx::array(static_cast<float>(std::max(1.0, tokens)))));
    if (i == 0) break;
    const auto tensors = load(visit.block);
    for (std::size_t b = 0; b < ids.size(); ++b) {
      const auto run = [&](const std::vector<mx::array>& x) {
        return std::vector<mx::array>{model::block(spec, visit, tensors, {}, x[0], context_of(b))};
      };
      gradients[b] = kernels::gradients_through(run, {states[i][b]}, gradients[b], dtype).gradients[0];
      gradients[b].eval();
    }
    states[i].clear();
  }
}

}  // namespace lquant::calibration
