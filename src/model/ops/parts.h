#pragma once

#include <mlx/array.h>

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"
#include "model/rope.h"

namespace lquant::model {

/// x as f32.
mx::array f32(const mx::array& x);
/// −∞ in f32: the score of what is not seen.
mx::array never();

/// Columns [first, end) of a state [..., width]; end 0: all from there on.
mx::array between(const mx::array& state, int first, int end = 0);

/// x [B, T, heads, D] turned by the places of its tokens; x itself without `rope`.
mx::array turned(const Scope& scope, const std::optional<RopeSpec>& rope, const mx::array& x);

/// x of this call behind what the cache holds under `name`, its tokens along `axis`; that is what it holds from now on. x itself without a cache.
mx::array remembered(const Scope& scope, const std::string& name, const mx::array& x, int axis = 1);

/// Of a product [..., out] what belongs to one part of its linear: [..., part.rows].
mx::array columns_of(const mx::array& product, const Part& part);

/// The product of x [..., in] with each part of a fused linear, in the order of its parts: [..., rows]. Parts in one piece are products of their own,
/// so that nothing is copied; the others are taken out of one product.
std::vector<mx::array> products_of_parts(const Scope& scope, const LinearSpec& linear, const mx::array& x);

/// x [B, T, matrices, in] through a stack [matrices, out, in], each slice through its own: [B, T, matrices, out].
mx::array through_each(const mx::array& x, const mx::array& stack);

}  // namespace lquant::model
