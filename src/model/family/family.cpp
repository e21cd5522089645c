// The table of families and what they share. model_type picks the row; mlx_lm gives some types the code of another, and so do
// we, since what we write is run there.
#include "model/family/family.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/unknown.h"
#include "model/op.h"
#include "model/ops/attention.h"
#include "model/ops/latent_attention.h"

namespace lquant::model {
namespace {

using Family = ModelSpec (*)(const family::Config&);

const std::map<std::string, Family>& families() {
  static const std::map<std::string, Family> table = {
      {"afm7", family::afm7},
      {"afmoe", family::afmoe},
      {"apertus", family::apertus},
      {"baichuan_m1", family::baichuan_m1},
      {"bailing_hybrid", family::bailing_hybrid},
      {"bailing_moe", family::bailing_moe},
      {"bailing_moe_linear", family::bailing_moe_linear},
      {"bailing_moe_v3", family::bailing_moe_v3},
      {"cohere", family::cohere},
      {"cohere2", family::cohere2},
      {"dbrx", family::dbrx},
      {"deepseek", family::deepseek},
      {"deepseek_v2", family::deepseek_v2},
      {"deepseek_v3", family::deepseek_v3},
      {"deepseek_v32", family::deepseek_v32},
      {"deepseek_v41", family::deepseek_v41},
      {"dots1", family::dots1},
      {"ernie4_5", family::ernie4_5},
      {"ernie4_5_moe", family::ernie4_5_moe},
      {"exaone", family::exaone},
      {"exaone4", family::exaone4},
      {"exaone_moe", family::exaone_moe},
      {"falcon_h1", family::falcon_h1},
      {"gemma", family::gemma},
      {"gemma2", family::gemma2},
      {"gemma3", family::gemma3},
      {"gemma3_text", family::gemma3_text},
      {"gemma3n", family::gemma3n},
      {"gemma4", family::gemma4},
      {"gemma4_text", family::gemma4_text},
      {"glm", family::glm},
      {"glm4", family::glm4},
      {"glm4_moe", family::glm4_moe},
      {"glm4_moe_lite", family::glm4_moe_lite},
      {"glm_moe_dsa", family::glm_moe_dsa},
      {"gpt2", family::gpt2},
      {"gpt_bigcode", family::gpt_bigcode},
      {"gpt_neox", family::gpt_neox},
      {"gpt_oss", family::gpt_oss},
      {"gptj", family::gptj},
      {"granite", family::granite},
      {"granitemoe", family::granitemoe},
      {"granitemoehybrid", family::granitemoehybrid},
      {"helium", family::helium},
      {"hunyuan", family::hunyuan},
      {"hunyuan_v1_dense", family::hunyuan_v1_dense},
      {"internlm2", family::internlm2},
      {"internlm3", family::internlm3},
      {"iquestloopcoder", family::iquestloopcoder},
      {"Klear", family::klear},
      {"jamba", family::jamba},
      {"kimi_k25", family::kimi_k25},
      {"kimi_k3", family::kimi_k3},
      {"kimi_linear", family::kimi_linear},
      {"kimi_vl", family::kimi_vl},
      {"laguna", family::laguna},
      {"lfm2", family::lfm2},
      {"lfm2-vl", family::lfm2_vl},
      {"lfm2_moe", family::lfm2_moe},
      {"lfm2_vl", family::lfm2_vl},
      {"lille-130m", family::lille_130m},
      {"llama", family::llama},
      {"llama4", family::llama4},
      {"llama4_text", family::llama4_text},
      {"llava", family::llava},
      {"longcat_flash", family::longcat_flash},
      {"longcat_flash_ngram", family::longcat_flash_ngram},
      {"mamba", family::mamba},
      {"mamba2", family::mamba2},
      {"mimo", family::mimo},
      {"mimo_v2_flash", family::mimo_v2_flash},
      {"minicpm", family::minicpm},
      {"minicpm3", family::minicpm3},
      {"minimax", family::minimax},
      {"minimax_m3_vl", family::minimax_m3_vl},
      {"ministral3", family::ministral3},
      {"mistral3", family::mistral3},
      {"mistral4", family::mistral4},
      {"mixtral", family::mixtral},
      {"muse_glimmer", family::muse_glimmer},
      {"muse_spark", family::muse_spark},
      {"nanochat", family::nanochat},
      {"nemotron", family::nemotron},
      {"nemotron-nas", family::nemotron_nas},
      {"nemotron_h", family::nemotron_h},
      {"olmo2", family::olmo2},
      {"olmo3", family::olmo3},
      {"olmo_hybrid", family::olmo_hybrid},
      {"olmoe", family::olmoe},
      {"openelm", family::openelm},
      {"phi", family::phi},
      {"phi3", family::phi3},
      {"phimoe", family::phimoe},
      {"phixtral", family::phixtral},
      {"pixtral", family::pixtral},
      {"plamo", family::plamo},
      {"plamo2", family::plamo2},
      {"qwen", family::qwen},
      {"qwen2", family::qwen2},
      {"qwen2_moe", family::qwen2_moe},
      {"qwen2_vl", family::qwen2_vl},
      {"qwen3", family::qwen3},
      {"qwen3_5", family::qwen3_5},
      {"qwen3_5_moe", family::qwen3_5},
      {"qwen3_moe", family::qwen3_moe},
      {"qwen3_next", family::qwen3_next},
      {"qwen3_vl", family::qwen3_vl},
      {"qwen3_vl_moe", family::qwen3_vl_moe},
      {"recurrent_gemma", family::recurrent_gemma},
      {"rwkv7", family::rwkv7},
      {"seed_oss", family::seed_oss},
      {"smollm3", family::smollm3},
      {"solar_open", family::solar_open},
      {"stablelm", family::stablelm},
      {"starcoder2", family::starcoder2},
      {"step3p5", family::step3p5},
      {"telechat3", family::telechat3},
      {"youtu_llm", family::youtu_llm},
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

namespace {

/// Whether these positions are those that the model has anyway.
bool already_so(const ModelSpec& spec, const nlohmann::json& parameters) {
  for (const auto& block : spec.blocks) {
    const auto* attention = find_op<Attention>(block);
    const auto* latent = find_op<LatentAttention>(block);
    const auto own = latent ? latent->rope : attention ? attention->rope : std::nullopt;
    if (!own) continue;
    const auto& rope = *own;
    try {
      const auto wanted = make_rope(2 * static_cast<int>(rope.inv_freq.size()), family::Config(parameters).number("rope_theta"), rope.interleaved,
                                    parameters, rope.dynamic_from);
      return wanted.inv_freq == rope.inv_freq && wanted.magnitude == rope.magnitude && wanted.dynamic_from == rope.dynamic_from;
    } catch (const Error&) {
      return false;
    }
  }
  return true;
}

/// transformers 5 writes rotary positions in "rope_parameters", which most of mlx_lm's models do not read: what is made of such a file there has
/// other positions, and so has it here, where the same must come out.
void warn_of_positions(const family::Config& config, ModelSpec& spec) {
  if (config.was_read("rope_parameters") || config.has("rope_theta")) return;
  const auto parameters = config.value("rope_parameters");
  if (!parameters.is_object() || (parameters.contains("rope_theta") && already_so(spec, parameters))) return;
  spec.warnings.push_back(
      fmt::format("config.json: \"{}\" {} is not read by mlx_lm 0.32.2, in which the model would run with its type's own positions, and so it is "
                  "here; put \"rope_theta\" "
                  "(and \"rope_scaling\") beside it in a copy of the folder to have them used",
                  config.place("rope_parameters"), shown_json(parameters)));
}

}  // namespace

ModelSpec family::spec_of_type(const std::string& type, const Config& config) {
  const auto row = families().find(run_as(type));
  if (row != families().end()) return row->second(config);
  fail("model", "{}", unknown_type(type, config, known_model_types()));
}

ModelSpec spec_from_config(const nlohmann::json& config) {
  if (!config.is_object()) fail("model", "config.json: not an object; take the config.json of the original model");
  const family::Config fields(config);
  const auto type = fields.text("model_type");
  if (fields.has("model_file"))
    fail("model",
         "config.json: \"model_file\" names program code as the model's architecture, which lquant does not run; give a model of a known type");
  auto spec = family::spec_of_type(type, fields);
  spec.settled = fields.settled();
  warn_of_positions(fields, spec);
  if (fields.has("text_config")) warn_of_positions(fields.child("text_config"), spec);
  spec.removed = fields.removed();
  return spec;
}

}  // namespace lquant::model
