#pragma once

#include <mlx/array.h>

#include <utility>

#include "model/spec.h"
#include "model/tensors.h"

// A NormSpec applied with its tensors. x [..., size]; of a norm with a weight a head [..., rows, size]; of one that reads f32 [..., kNumberColumns ·
// size]. The result is in x's dtype.
namespace lquant::model {

mx::array normed(const Tensors& tensors, const NormSpec& norm, const mx::array& x);

/// {x, normed(x)}, one op for the gradient's sake where the kernels have one.
std::pair<mx::array, mx::array> residual_norm(const Tensors& tensors, const NormSpec& norm, const mx::array& x);

/// residual + normed(y).
mx::array add_norm(const Tensors& tensors, const NormSpec& norm, const mx::array& residual, const mx::array& y);

}  // namespace lquant::model
