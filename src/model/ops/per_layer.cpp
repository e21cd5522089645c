#include "model/ops/per_layer.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise.h"
#include "model/norm.h"

namespace lquant::model {
namespace {

mx::array times(const mx::array& x, float factor) { return factor == 1 ? x : mx::multiply(x, mx::array(factor, x.dtype())); }

}  // namespace

mx::array EmptyColumns::finish(const Scope&, const Flow& at, const std::optional<mx::array>&) const {
  auto shape = at.inputs[0].shape();
  shape.back() = width;
  return mx::concatenate({at.inputs[0], mx::zeros(shape, at.inputs[0].dtype())}, -1);
}

void PerLayerInputs::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&table, op, first_stage});
  all.readings.push_back({&projection, op, first_stage});
  all.norms.push_back(&norm);
}

Flow PerLayerInputs::start(const Scope& scope, const mx::array&, const mx::array&) const {
  Flow next{{scope.columns(x)}, {}};
  scope.observe(projection, next.inputs[0]);
  return next;
}

mx::array PerLayerInputs::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  if (!scope.context.ids) throw std::invalid_argument("[model] the front was given no ids");
  const auto& ids = *scope.context.ids;
  const auto known = mx::where(mx::less(ids, mx::array(table.out, mx::int32)), ids, mx::zeros_like(ids));
  const auto looked_up = scope.lookup(table, known, table_factor);
  const auto projected = times(kernels::linear(at.inputs[0], scope.weight(projection)), factor);
  auto by_layer = projected.shape();
  by_layer.back() = layers;
  by_layer.push_back(size);
  const auto one = mx::reshape(normed(scope.tensors, norm, mx::reshape(projected, by_layer)), projected.shape());
  return mx::concatenate({*scope.state, times(mx::add(one, looked_up), scale)}, -1);
}

void PerLayerGate::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&gate, op, first_stage});
  all.readings.push_back({&projection, op, first_stage + 1});
}

Flow PerLayerGate::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(gate, normed);
  return {{normed}, {}};
}

Flow PerLayerGate::advance(const Scope& scope, int, const Flow& at) const {
  Flow next{{kernels::gated(kernels::linear(at.inputs[0], scope.weight(gate)), mx::contiguous(scope.columns(input)), activation)}, {}};
  scope.observe(projection, next.inputs[0]);
  return next;
}

mx::array PerLayerGate::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(projection), residual);
}

}  // namespace lquant::model
