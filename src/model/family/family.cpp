// The table of families and what they share. model_type picks the row; mlx_lm gives some types the code of another, and so do
// we, since what we write is run there.
#include "model/family/family.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/shown.h"

namespace lquant::model {
namespace {

using Family = ModelSpec (*)(const family::Config&);

const std::map<std::string, Family>& families() {
  static const std::map<std::string, Family> table = {
      {"ernie4_5", family::ernie4_5},
      {"gemma2", family::gemma2},
      {"gemma3_text", family::gemma3_text},
      {"gemma4_text", family::gemma4_text},
      {"glm4", family::glm4},
      {"helium", family::helium},
      {"internlm3", family::internlm3},
      {"iquestcoder", family::llama},
      {"llama", family::llama},
      {"mimo", family::mimo},
      {"mistral", family::llama},
      {"phi3", family::phi3},
      {"qwen2", family::qwen2},
      {"qwen3", family::qwen3},
      {"qwen3_moe", family::qwen3_moe},
      {"seed_oss", family::seed_oss},
      {"smollm3", family::smollm3},
      {"telechat3", family::telechat3},
      {"xverse", family::llama},
  };
  return table;
}

}  // namespace

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const auto& [name, function] : families()) names.push_back(name);
  return names;
}

ModelSpec spec_from_config(const nlohmann::json& config) {
  if (!config.is_object()) fail("model", "config.json: not an object; take the config.json of the original model");
  const auto type = JsonView("model", "config.json", config, family::kMend).at("model_type").text();
  const auto row = families().find(type);
  if (row == families().end()) {
    std::string known;
    for (const auto& name : known_model_types()) known += (known.empty() ? "" : ", ") + name;
    fail("model", "config.json: model_type \"{}\" is not supported; supported: {}", shown(type), known);
  }
  const family::Config fields(config);
  if (fields.has("model_file"))
    fail("model", "config.json: \"model_file\" names program code as the model's architecture, which lquant does not run; give a model of a known type");
  auto spec = row->second(fields);
  spec.settled = fields.settled();
  return spec;
}

}  // namespace lquant::model
