#include "model/ops/linear.h"

#include <stdexcept>

#include "kernels/linear.h"

namespace lquant::model {

Flow Linear::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(linear, normed);
  return {{normed}, {}};
}

Flow Linear::advance(const Scope&, int, const Flow&) const { throw std::invalid_argument("[model] a linear has one stage"); }

mx::array Linear::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(linear), residual);
}

}  // namespace lquant::model
