#include "model/ops/taps.h"

#include <mlx/mlx.h>

#include <optional>
#include <stdexcept>

#include "kernels/causal_conv.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

/// Endings, whose first tokens reach back into a text that stands elsewhere in the row: moved copies times a tap each.
mx::array over_branches(const Scope& scope, const ParameterSpec& spec, const mx::array& taps, const mx::array& x) {
  const int channels = spec.shape[0], count = spec.shape[1];
  const auto inputs = preceding(scope.context, scope.block, spec.path, x, count - 1);
  std::optional<mx::array> sum;
  for (int back = count - 1; back >= 0; --back) {
    const auto tap = mx::reshape(mx::slice(taps, {0, count - 1 - back}, {channels, count - back}), {channels});
    const auto term = mx::multiply(mx::astype(inputs[back], mx::float32), tap);
    sum = sum ? mx::add(*sum, term) : term;
  }
  return mx::astype(*sum, x.dtype());
}

mx::array tokens(const mx::array& x, int first, int end) { return mx::slice(x, {0, first, 0}, {x.shape(0), end, x.shape(2)}); }

}  // namespace

mx::array convolved(const Scope& scope, const ParameterSpec& spec, const mx::array& x) {
  const auto& context = scope.context;
  if (context.cache && context.segments) throw std::invalid_argument("[model] segments and a cache exclude each other");
  const int channels = spec.shape[0], count = spec.shape[1];
  const auto taps = mx::astype(mx::reshape(scope.tensor(spec.path), {channels, count}), mx::float32);
  if (context.branches) return over_branches(scope, spec, taps, x);
  if (!context.cache || count == 1) return kernels::causal_conv(x, taps, context.segments);
  const auto before = context.cache->kept(scope.block, spec.path);
  const auto row = mx::concatenate({before ? *before : mx::zeros({x.shape(0), count - 1, channels}, x.dtype()), x}, 1);
  const int end = row.shape(1);
  context.cache->keep(scope.block, spec.path, tokens(row, end - count + 1, end));
  return tokens(kernels::causal_conv(row, taps), count - 1, end);
}

}  // namespace lquant::model
