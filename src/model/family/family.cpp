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
      {"apertus", family::apertus},
      {"baichuan_m1", family::baichuan_m1},
      {"ernie4_5", family::ernie4_5},
      {"gemma2", family::gemma2},
      {"gemma3", family::gemma3},
      {"gemma3_text", family::gemma3_text},
      {"gemma4", family::gemma4},
      {"gemma4_text", family::gemma4_text},
      {"gemma4_unified", family::gemma4},
      {"glm4", family::glm4},
      {"helium", family::helium},
      {"internlm3", family::internlm3},
      {"iquestcoder", family::llama},
      {"lfm2", family::lfm2},
      {"lfm2-vl", family::lfm2_vl},
      {"lfm2_vl", family::lfm2_vl},
      {"llama", family::llama},
      {"llava", family::llava},
      {"mimo", family::mimo},
      {"ministral3", family::ministral3},
      {"mistral", family::llama},
      {"mistral3", family::mistral3},
      {"nemotron-nas", family::nemotron_nas},
      {"phi3", family::phi3},
      {"pixtral", family::pixtral},
      {"qwen2", family::qwen2},
      {"qwen2_5_vl", family::qwen2_vl},
      {"qwen2_vl", family::qwen2_vl},
      {"qwen3", family::qwen3},
      {"qwen3_moe", family::qwen3_moe},
      {"qwen3_vl", family::qwen3_vl},
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

ModelSpec family::spec_of_type(const std::string& type, const Config& config) {
  const auto row = families().find(type);
  if (row != families().end()) return row->second(config);
  std::string known;
  for (const auto& name : known_model_types()) known += (known.empty() ? "" : ", ") + name;
  fail("model", "config.json: {} \"{}\" is not supported; supported: {}", config.place("model_type"), shown(type), known);
}

ModelSpec spec_from_config(const nlohmann::json& config) {
  if (!config.is_object()) fail("model", "config.json: not an object; take the config.json of the original model");
  const family::Config fields(config);
  const auto type = fields.text("model_type");
  if (fields.has("model_file"))
    fail("model", "config.json: \"model_file\" names program code as the model's architecture, which lquant does not run; give a model of a known type");
  auto spec = family::spec_of_type(type, fields);
  spec.settled = fields.settled();
  spec.removed = fields.removed();
  return spec;
}

}  // namespace lquant::model
