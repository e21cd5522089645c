#pragma once

#include <string>
#include <vector>

#include "plan/plan.h"

namespace lquant::plan {

/// The names of mlx_lm.convert's --quant-predicate: mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6.
const std::vector<std::string>& recipe_names();

/// Throws UsageError for an unknown name, offering the nearest, and for a `base` that is not affine.
void check_recipe(const std::string& name, const codec::Format& base);

/// The plan of mixed_L_H: L bits for every linear, the embedding and the routers; H bits for a head of its own and, in the first and the last eighth
/// of the blocks and every third one between, for values (alone or fused with queries and keys) and for what leads out of an MLP (its experts' too).
/// All are affine in groups of base.group_size. `base` is what config.json names globally, though every linear is named: no other use is made of its
/// bits. Throws as check_recipe.
QuantPlan recipe_plan(const model::ModelSpec& spec, const std::string& name, const codec::Format& base);

}  // namespace lquant::plan
