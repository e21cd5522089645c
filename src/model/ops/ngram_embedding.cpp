#include "model/ops/ngram_embedding.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/linear.h"
#include "model/segments.h"

namespace lquant::model {

void NgramEmbedding::contents(int op, int first_stage, Contents& all) const {
  const int count = static_cast<int>(tables.size());
  for (int i = 0; i < count; ++i) all.readings.push_back({&tables[i], op, first_stage, count + i});
  for (int i = 0; i < count; ++i) all.readings.push_back({&projections[i], op, first_stage, i});
}

Flow NgramEmbedding::start(const Scope& scope, const mx::array&, const mx::array& raw) const {
  if (!scope.context.ids) throw std::invalid_argument("[model] the front was given no ids");
  const int count = static_cast<int>(tables.size()), longest = 1 + count / per_length;
  // Of the cache block 0 keeps what the front does. Products of ids and rows do not fit in 32 bits.
  auto tokens = preceding(scope.context, 0, tables[0].path, *scope.context.ids, longest - 1);
  for (auto& token : tokens) token = mx::astype(token, mx::int64);
  Flow next{{}, {raw}};
  for (int i = 0; i < count; ++i) {
    const std::int64_t rows = tables[i].out;
    auto id = tokens[0];
    std::int64_t power = 1;
    for (int before = 1; before <= 1 + i / per_length; ++before) {
      power = power * vocab % rows;
      id = mx::add(id, mx::multiply(tokens[before], mx::array(power, mx::int64)));
    }
    id = mx::astype(mx::remainder(id, mx::array(rows, mx::int64)), mx::int32);
    next.inputs.push_back(scope.lookup(tables[i], id));
    scope.observe(projections[i], next.inputs.back());
  }
  return next;
}

mx::array NgramEmbedding::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  auto x = at.kept[0];
  for (std::size_t i = 0; i < projections.size(); ++i) x = kernels::linear(at.inputs[i], scope.weight(projections[i]), x);
  return mx::divide(x, mx::array(1.0f + static_cast<float>(projections.size()), x.dtype()));
}

}  // namespace lquant::model
