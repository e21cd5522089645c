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
      {"cohere", family::cohere},
      {"cohere2", family::cohere2},
      {"ernie4_5", family::ernie4_5},
      {"exaone", family::exaone},
      {"exaone4", family::exaone4},
      {"gemma", family::gemma},
      {"gemma2", family::gemma2},
      {"gemma3_text", family::gemma3_text},
      {"gemma3n", family::gemma3n},
      {"gemma4_text", family::gemma4_text},
      {"glm", family::glm},
      {"glm4", family::glm4},
      {"gpt2", family::gpt2},
      {"gpt_bigcode", family::gpt_bigcode},
      {"gpt_neox", family::gpt_neox},
      {"granite", family::granite},
      {"helium", family::helium},
      {"hunyuan_v1_dense", family::hunyuan_v1_dense},
      {"internlm2", family::internlm2},
      {"internlm3", family::internlm3},
      {"lille-130m", family::lille_130m},
      {"llama", family::llama},
      {"mimo", family::mimo},
      {"minicpm", family::minicpm},
      {"mistral", family::llama},
      {"nanochat", family::nanochat},
      {"nemotron", family::nemotron},
      {"olmo2", family::olmo2},
      {"olmo3", family::olmo3},
      {"openelm", family::openelm},
      {"phi", family::phi},
      {"phi3", family::phi3},
      {"plamo", family::plamo},
      {"qwen", family::qwen},
      {"qwen2", family::qwen2},
      {"qwen3", family::qwen3},
      {"qwen3_moe", family::qwen3_moe},
      {"seed_oss", family::seed_oss},
      {"smollm3", family::smollm3},
      {"stablelm", family::stablelm},
      {"starcoder2", family::starcoder2},
      {"telechat3", family::telechat3},
  };
  return table;
}

/// mlx_lm's MODEL_REMAPPING: types that it runs with the code of another.
const std::map<std::string, std::string>& aliases() {
  static const std::map<std::string, std::string> table = {
      {"deepseek_v41_text", "deepseek_v41"},
      {"falcon_mamba", "mamba"},
      {"gemma4_unified", "gemma4"},
      {"iquestcoder", "llama"},
      {"joyai_llm_flash", "deepseek_v3"},
      {"kimi_k2", "deepseek_v3"},
      {"llava", "mistral3"},
      {"minimax_m2", "minimax"},
      {"mistral", "llama"},
      {"phi-msft", "phixtral"},
      {"qwen2_5_vl", "qwen2_vl"},
      {"xverse", "llama"},
  };
  return table;
}

}  // namespace

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const auto& [name, function] : families()) names.push_back(name);
  for (const auto& [name, target] : aliases())
    if (families().contains(target) && !families().contains(name)) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

std::string run_as(const std::string& model_type) {
  const auto alias = aliases().find(model_type);
  return families().contains(model_type) || alias == aliases().end() ? model_type : alias->second;
}

ModelSpec spec_from_config(const nlohmann::json& config) {
  if (!config.is_object()) fail("model", "config.json: not an object; take the config.json of the original model");
  const auto type = JsonView("model", "config.json", config, family::kMend).at("model_type").text();
  const auto row = families().find(run_as(type));
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
