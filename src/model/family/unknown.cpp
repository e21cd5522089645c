// A type that is missing is most often a misspelt one, a newer relative of a known one, or one with a part that no known family has. The name tells
// of the first two, the config's fields of the third.
#include "model/family/unknown.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>

#include "base/nearest.h"
#include "base/shown.h"

namespace lquant::model::family {
namespace {

/// The letters that a name begins with: "qwen" of "qwen3_next".
std::string stem(const std::string& name) {
  std::string letters;
  for (const unsigned char c : name) {
    if (!std::isalpha(c)) break;
    letters += static_cast<char>(std::tolower(c));
  }
  return letters;
}

std::size_t common_beginning(const std::string& a, const std::string& b) {
  return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

/// At most three types that are meant or related: a slip of the pen alone, otherwise names with the same letters at their beginning, the longest
/// common beginning first.
std::vector<std::string> relatives(const std::string& type, const std::vector<std::string>& known) {
  if (const auto meant = nearest(type, known)) return {*meant};
  constexpr std::size_t kLetters = 3;  // "glm", "gpt", "phi"; fewer name no family
  constexpr std::size_t kMost = 3;
  const auto letters = stem(type);
  if (letters.size() < kLetters) return {};
  std::vector<std::string> same;
  std::copy_if(known.begin(), known.end(), std::back_inserter(same), [&](const auto& name) { return stem(name) == letters; });
  std::stable_sort(same.begin(), same.end(), [&](const auto& a, const auto& b) { return common_beginning(type, a) > common_beginning(type, b); });
  if (same.size() > kMost) same.resize(kMost);
  return same;
}

/// What a field of the config says the model is made of; the first that is there and not 0 is named.
struct Sign {
  const char* field;
  const char* part;
};
constexpr Sign kSigns[] = {
    {"kv_lora_rank", "latent attention"},
    {"linear_num_value_heads", "linear attention"},
    {"linear_attn_config", "linear attention"},
    {"mamba_d_state", "state-space layers"},
    {"mamba_n_heads", "state-space layers"},
    {"mamba_num_heads", "state-space layers"},
    {"ssm_state_size", "state-space layers"},
    {"state_size", "state-space layers"},
    {"ssm_cfg", "state-space layers"},
    {"num_experts", "a mixture of experts"},
    {"num_local_experts", "a mixture of experts"},
    {"n_routed_experts", "a mixture of experts"},
    {"moe_num_experts", "a mixture of experts"},
    {"vision_config", "a tower beside the text model"},
    {"audio_config", "a tower beside the text model"},
};

/// A sentence on what the config describes; empty when nothing is to be said.
std::string described(const Config& config, const std::vector<std::string>& known) {
  if (const auto text = config.value("text_config"); text.is_object() && text.contains("model_type") && text["model_type"].is_string()) {
    const auto inner = text["model_type"].get<std::string>();
    const bool there = std::find(known.begin(), known.end(), inner) != known.end();
    return fmt::format(" Its text_config is of type \"{}\", which is {}.", shown(inner, 40),
                       there ? "supported without this wrapper" : "not supported either");
  }
  for (const auto& [field, part] : kSigns) {
    const auto value = config.value(field);
    if (!value.is_null() && !(value.is_number() && value.get<double>() == 0)) return fmt::format(" Its \"{}\" says that it has {}.", field, part);
  }
  return "";
}

}  // namespace

std::string unknown_type(const std::string& type, const Config& config, const std::vector<std::string>& known) {
  const auto near = relatives(type, known);
  return fmt::format(
      "config.json: {} \"{}\" is not supported{}.{} \"lquant families\" lists the types that are; CONTRIBUTING.md in lquant's "
      "repository says how to add one (\"a model family\")",
      config.place("model_type"), shown(type, 60), near.empty() ? "" : fmt::format("; nearest by name: {}", fmt::join(near, ", ")),
      described(config, known));
}

}  // namespace lquant::model::family
