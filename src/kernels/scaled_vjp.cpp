#include "kernels/scaled_vjp.h"

#include <mlx/mlx.h>

#include "kernels/half.h"

namespace lquant::kernels {
namespace {

// The gradient of a token's divergence by its final hidden state has elements of some 1e-2 (a model at 2 bits) to 1e-4 (at 6 bits). Times 2^8 they
// lie near 1, 2^10 above the smallest normal f16 even at the far end, and gradients that grow on their way down, or are summed over the tokens of a
// batch, have 2^16 above them.
constexpr float kLossScale = 256;
// The same for a cotangent whose size is known.
constexpr double kLargestElement = 16;
// From one try to the next; and how often. 2^-24 of the first is below all that could be told from 0 there.
constexpr float kStep = 1.0f / 16;
constexpr int kTries = 7;

bool all_finite(const std::vector<mx::array>& arrays) {
  auto finite = mx::array(true);
  for (const auto& x : arrays) finite = mx::logical_and(finite, mx::all(mx::isfinite(x)));
  return finite.item<bool>();
}

Pullback plain(const ArrayFunction& function, const std::vector<mx::array>& inputs, const mx::array& cotangent) {
  auto [values, gradients] = mx::vjp(function, inputs, {cotangent});
  return {std::move(values), std::move(gradients)};
}

/// f16's own. `cotangent` f32, `of` the dtype of what the function gives.
Pullback scaled(const ArrayFunction& function, const std::vector<mx::array>& inputs, const mx::array& cotangent, mx::Dtype of, float scale) {
  for (int left = kTries;; scale *= kStep) {
    auto pass = plain(function, inputs, mx::astype(mx::multiply(cotangent, mx::array(scale)), of));
    auto all = pass.gradients;
    all.insert(all.end(), pass.values.begin(), pass.values.end());
    mx::eval(all);
    all.clear();
    // Where the function itself has left the range no multiple of its gradient helps.
    pass.in_range = all_finite(pass.gradients) || !all_finite(pass.values);
    if (!pass.in_range && --left > 0) continue;
    for (auto& gradient : pass.gradients) {
      gradient = mx::multiply(mx::astype(gradient, mx::float32), mx::array(1 / scale));
      gradient.eval();
    }
    return pass;
  }
}

}  // namespace

Pullback loss_gradients(const ArrayFunction& loss, const std::vector<mx::array>& inputs, mx::Dtype dtype) {
  const mx::array one(1.0f);
  return dtype == mx::float16 ? scaled(loss, inputs, one, mx::float32, kLossScale) : plain(loss, inputs, one);
}

Pullback gradients_through(const ArrayFunction& function, const std::vector<mx::array>& inputs, const mx::array& cotangent, mx::Dtype dtype) {
  if (dtype != mx::float16) return plain(function, inputs, mx::astype(cotangent, dtype));
  const auto exact = mx::astype(cotangent, mx::float32);
  const float largest = exact.size() ? mx::max(mx::abs(exact)).item<float>() : 0;
  return scaled(function, inputs, exact, dtype, power_of_two_below(kLargestElement / largest));
}

}  // namespace lquant::kernels
