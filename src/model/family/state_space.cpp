#include "model/family/state_space.h"

#include <cmath>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/decoder.h"

namespace lquant::model::family {
namespace {

// Sizes beyond this belong to no model, and their products would not fit.
constexpr std::int64_t kWidest = std::numeric_limits<int>::max() / 8;

nlohmann::json number_of(double value) {
  if (std::isfinite(value)) return value;
  return {{"__float__", "Infinity"}};
}

}  // namespace

std::pair<double, double> time_step_limit(const Config& config, std::pair<double, double> otherwise, bool settle) {
  const char* key = "time_step_limit";
  const auto value = config.value(key);
  if (value.is_null()) {
    if (settle || config.is_null(key)) config.settle(key, nlohmann::json::array({number_of(otherwise.first), number_of(otherwise.second)}));
    return otherwise;
  }
  std::vector<double> limits;
  if (value.is_array())
    for (const auto& entry : value)
      if (const auto number = number_or_tagged(entry)) limits.push_back(*number);
  if (limits.size() != 2 || value.size() != 2 || !(limits[0] <= limits[1]))
    fail("model", "config.json: \"{}\" is {}, not a least and a largest number; {}", config.place(key), shown_json(value), kMend);
  return {limits[0], limits[1]};
}

Mamba2 mamba2_mixer(int block, const std::string& path, const Mamba2Sizes& sizes, Imports& imports) {
  if (sizes.heads % sizes.groups != 0)
    fail("model", "config.json: {} heads of Mamba cannot be cut into {} groups; {}", sizes.heads, sizes.groups, kMend);
  if (std::int64_t{1} * sizes.heads * sizes.head_dim > kWidest || std::int64_t{1} * sizes.groups * sizes.state > kWidest)
    fail("model", "config.json: {} heads of Mamba of {} features, {} groups of states of {} are too many", sizes.heads, sizes.head_dim, sizes.groups,
         sizes.state);
  const int inner = sizes.inner(), convolved = sizes.convolved();
  Mamba2 op;
  op.input = block_linear(block, path + "in_proj", Role::other, inner + convolved + sizes.heads, sizes.hidden, sizes.input_bias);
  op.input.parts = {Part::piece(Role::other, 0, inner), Part::piece(Role::other, inner, convolved),
                    Part::piece(Role::other, inner + convolved, sizes.heads)};
  op.taps = {path + "conv1d.weight", {convolved, sizes.taps, 1}};
  if (sizes.taps_bias) op.taps_bias = ParameterSpec{path + "conv1d.bias", {convolved}};
  auto& recurrence = op.recurrence;
  recurrence.heads = sizes.heads, recurrence.head_dim = sizes.head_dim, recurrence.groups = sizes.groups, recurrence.state = sizes.state;
  recurrence.least = sizes.limits.first, recurrence.most = sizes.limits.second;
  recurrence.dt_bias = {path + "dt_bias", {sizes.heads}};
  recurrence.a_log = {path + "A_log", {sizes.heads}};
  recurrence.d = {path + "D", {sizes.heads}};
  op.output = block_linear(block, path + "out_proj", Role::other, sizes.hidden, inner, sizes.output_bias);
  imports.rows.push_back(reshaped(op.taps));
  return op;
}

Mamba mamba_mixer(int block, const std::string& path, const MambaSizes& sizes, Imports& imports) {
  if (sizes.inner > kWidest || sizes.rank > kWidest || sizes.state > kWidest)
    fail("model", "config.json: a width of {}, a rank of {} and states of {} are too large", sizes.inner, sizes.rank, sizes.state);
  const int inner = sizes.inner, rank = sizes.rank, state = sizes.state;
  Mamba op;
  op.input = block_linear(block, path + "in_proj", Role::other, 2 * inner, sizes.hidden, sizes.bias);
  op.input.parts = {Part::piece(Role::other, 0, inner), Part::piece(Role::other, inner, inner)};
  op.taps = {path + "conv1d.weight", {inner, sizes.taps, 1}};
  if (sizes.taps_bias) op.taps_bias = ParameterSpec{path + "conv1d.bias", {inner}};
  op.select = block_linear(block, path + "x_proj", Role::other, rank + 2 * state, inner);
  op.select.parts = {Part::piece(Role::other, 0, rank), Part::piece(Role::other, rank, state), Part::piece(Role::other, rank + state, state)};
  op.dt = block_linear(block, path + "dt_proj", Role::other, inner, rank, true);
  op.a_log = ParameterSpec{path + "A_log", {inner, state}};
  op.d = ParameterSpec{path + "D", {inner}};
  op.output = block_linear(block, path + "out_proj", Role::other, sizes.hidden, inner, sizes.bias);
  imports.rows.push_back(reshaped(op.taps));
  return op;
}

int time_step_rank(const Config& config, const char* key, int hidden) {
  const auto value = config.value(key);
  return value.is_null() || value == "auto" ? (hidden + 15) / 16 : config.count(key);
}

std::vector<std::string> layer_kinds(const Config& config, const char* key, int layers) {
  auto kinds = config.texts(key, layers);
  bool renamed = false;
  for (auto& kind : kinds) {
    const auto before = kind;
    if (kind == "full_attention") kind = "attention";
    if (kind == "linear_attention" || kind == "conv") kind = "mamba";
    renamed |= kind != before;
    if (kind != "attention" && kind != "mamba")
      fail("model", "config.json: \"{}\" has a layer of kind \"{}\", where mlx_lm knows attention and mamba; {}", config.place(key), shown(kind),
           kMend);
  }
  if (renamed) config.settle(key, kinds);
  return kinds;
}

}  // namespace lquant::model::family
