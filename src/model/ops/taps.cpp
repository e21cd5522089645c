// Shifted copies times a tap each: exact at the borders of texts, and differentiable as it stands.
#include "model/ops/taps.h"

#include <mlx/mlx.h>

#include <optional>
#include <stdexcept>

#include "model/segments.h"

namespace lquant::model {

mx::array convolved(const Scope& scope, const ParameterSpec& spec, const mx::array& x) {
  if (scope.context.cache && scope.context.segments) throw std::invalid_argument("[model] segments and a cache exclude each other");
  const int channels = spec.shape[0], count = spec.shape[1];
  const auto taps = mx::astype(mx::reshape(scope.tensor(spec.path), {channels, count}), mx::float32);
  const auto inputs = preceding(scope.context, scope.block, spec.path, x, count - 1);
  std::optional<mx::array> sum;
  for (int back = count - 1; back >= 0; --back) {
    const auto tap = mx::reshape(mx::slice(taps, {0, count - 1 - back}, {channels, count - back}), {channels});
    const auto term = mx::multiply(mx::astype(inputs[back], mx::float32), tap);
    sum = sum ? mx::add(*sum, term) : term;
  }
  return mx::astype(*sum, x.dtype());
}

}  // namespace lquant::model
