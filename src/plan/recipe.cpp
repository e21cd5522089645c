// Rounding errors of values and of an MLP's outputs go into the residual stream unfiltered, those of the first and last blocks are mended least, and
// so these get the larger share of the bits. The rule is llama.cpp's for its K-quant mixes, in mlx_lm's form of it.
#include "plan/recipe.h"

#include "base/error.h"
#include "base/nearest.h"

namespace lquant::plan {
namespace {

struct Recipe {
  std::string name;
  int low, high;
};

const std::vector<Recipe>& recipes() {
  static const std::vector<Recipe> all{{"mixed_2_6", 2, 6}, {"mixed_3_4", 3, 4}, {"mixed_3_6", 3, 6}, {"mixed_4_6", 4, 6}};
  return all;
}

const Recipe& find_recipe(const std::string& name) {
  for (const auto& recipe : recipes())
    if (recipe.name == name) return recipe;
  throw UsageError(fmt::format("--quant-predicate {}: there is no such recipe{} (recipes: {})", name, did_you_mean(name, recipe_names()),
                               fmt::join(recipe_names(), ", ")));
}

/// The first eighth of the blocks, the last, and every third between; the whole numbers are rounded as mlx_lm rounds them.
bool favoured(int block, int blocks) {
  const int eighth = blocks / 8;
  return block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2;
}

bool high(const model::LinearSpec& linear, int blocks) {
  using model::Role;
  switch (linear.role) {
    case Role::head:
      return true;
    case Role::v:
    case Role::qkv:
    case Role::kv:
    case Role::down:
    case Role::expert_down:
      return favoured(linear.block, blocks);
    default:
      return false;
  }
}

}  // namespace

const std::vector<std::string>& recipe_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& recipe : recipes()) all.push_back(recipe.name);
    return all;
  }();
  return names;
}

void check_recipe(const std::string& name, const codec::Format& base) {
  find_recipe(name);
  if (base.mode != codec::Mode::affine)
    throw UsageError(
        fmt::format("--quant-predicate {} mixes affine formats; leave out --q-mode {} or the recipe", name, codec::to_string(base.mode)));
}

QuantPlan recipe_plan(const model::ModelSpec& spec, const std::string& name, const codec::Format& base) {
  check_recipe(name, base);
  const auto& recipe = find_recipe(name);
  const int blocks = static_cast<int>(spec.blocks.size());
  auto plan = plan_by(spec, base, [&](const auto& linear) {
    return codec::Format{codec::Mode::affine, high(linear, blocks) ? recipe.high : recipe.low, base.group_size};
  });
  plan.names_all = true;
  return plan;
}

}  // namespace lquant::plan
