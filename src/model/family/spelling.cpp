// transformers 5 keeps all that says how a head turns with its position in "rope_parameters", where transformers 4 had "rope_theta", "rope_scaling",
// "partial_rotary_factor" and, for Gemma 3's local layers, "rope_local_base_freq". mlx_lm reads the older fields; where they are missing it takes
// its defaults without a word, and a Llama 3 then turns with a base of 10,000 in place of 500,000.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

using nlohmann::json;

constexpr const char* kParameters = "rope_parameters";

/// What one block of rope_parameters says, under the older names; null: nothing.
struct Rope {
  json theta, part, scaling;
};

json taken(json& block, const char* key) {
  const auto it = block.find(key);
  if (it == block.end()) return nullptr;
  auto value = std::move(*it);
  block.erase(it);
  return value;
}

Rope rope_of(json block) {
  Rope rope;
  rope.theta = taken(block, "rope_theta");
  const auto type = block.contains("rope_type") ? block.at("rope_type") : block.value("type", json("default"));
  if (type != "proportional") rope.part = taken(block, "partial_rotary_factor");  // that one reads it itself
  if (type != "default") rope.scaling = std::move(block);
  return rope;
}

/// A block for each kind of layer ("full_attention", "sliding_attention"), or one for all.
bool is_by_kind(const json& parameters) {
  return !parameters.empty() && std::all_of(parameters.begin(), parameters.end(), [](const json& value) { return value.is_object(); });
}

}  // namespace

Spelling older_spelling(const json& config, const std::string& type) {
  Spelling spelled{config, json::object()};
  const auto given = config.find(kParameters);
  if (given == config.end() || given->is_null()) return spelled;
  const JsonView view("model", "config.json", config, kMend);
  if (!given->is_object()) view.at(kParameters).refuse("an object");

  const auto add = [&](const char* key, const json& value) {
    if (value.is_null() || (config.contains(key) && !config.at(key).is_null())) return;  // the older field goes first
    spelled.fields[key] = value;
    if (type != "qwen3") spelled.settled[key] = value;  // mlx_lm's reads rope_parameters itself
  };
  const auto add_all = [&](const Rope& rope) {
    add("rope_theta", rope.theta);
    add("partial_rotary_factor", rope.part);
    add("rope_scaling", rope.scaling);
  };
  if (!is_by_kind(*given)) {
    add_all(rope_of(*given));
  } else if (type == "gemma3_text") {
    for (const auto& [kind, block] : given->items()) {
      const auto rope = rope_of(block);
      if (kind == "full_attention") {
        add_all(rope);
      } else if (kind == "sliding_attention") {
        if (!rope.scaling.is_null()) view.at(kParameters).at(kind).complain("scales the positions of local layers, which mlx_lm does not run");
        add("rope_local_base_freq", rope.theta);
      } else {
        view.at(kParameters).at(kind).complain("is of a kind of layers that Gemma 3 does not have");
      }
    }
  } else {
    for (const auto& [kind, block] : given->items())
      if (block != given->front()) view.at(kParameters).at(kind).complain("differs from another kind of layers', and this architecture has one for all");
    add_all(rope_of(given->front()));
  }
  return spelled;
}

}  // namespace lquant::model::family
