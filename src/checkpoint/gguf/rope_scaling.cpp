// Rotary positions. Llama 3's scaling is in the file as the factors that it makes (rope_freqs), with none of the four numbers that made them;
// those of all published models are the same, so they are tried, and kept only if they make the same factors again. Else the
// factors themselves are written, as LongRoPE's, which says the same to every reader.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "checkpoint/gguf/config.h"

namespace lquant::checkpoint::gguf {

using nlohmann::json;

namespace {

constexpr double kPi = 3.14159265358979323846;
// Of Llama 3.1, 3.2 and 3.3.
constexpr double kLowFactor = 1, kHighFactor = 4, kContext = 8192;
// Factors went through one rounding to f32, 2^-24, after a few in double or, in early converters, f32.
constexpr double kSame = 1e-5;

/// Both keys are in use for the kind; mlx_lm's Phi-3 reads "type" alone.
json block(const char* type) { return {{"rope_type", type}, {"type", type}}; }

/// By how much Llama 3 divides the frequency of wave `f`.
double llama3_factor(int f, int rotated, double base, double factor) {
  const double wave = 2 * kPi * std::pow(base, 2.0 * f / rotated);
  if (wave < kContext / kHighFactor) return 1;
  if (wave > kContext / kLowFactor) return factor;
  const double smooth = (kContext / wave - kLowFactor) / (kHighFactor - kLowFactor);
  return 1 / ((1 - smooth) / factor + smooth);
}

json from_factors(const Metadata& metadata, const std::vector<float>& factors, int rotated, double base, int context) {
  if (static_cast<int>(factors.size()) != rotated / 2)
    fail("checkpoint", "{}: rope_freqs.weight has {} factors for {} turning features; convert the original model again", metadata.file().string(),
         factors.size(), rotated);
  const double largest = *std::max_element(factors.begin(), factors.end());
  if (largest == 1 && *std::min_element(factors.begin(), factors.end()) == 1) return nullptr;
  bool same = true;
  for (int f = 0; f < rotated / 2; ++f) same &= std::abs(factors[static_cast<std::size_t>(f)] / llama3_factor(f, rotated, base, largest) - 1) < kSame;
  if (same) {
    auto scaling = block("llama3");
    scaling.update(
        {{"factor", largest}, {"low_freq_factor", kLowFactor}, {"high_freq_factor", kHighFactor}, {"original_max_position_embeddings", kContext}});
    return scaling;
  }
  auto scaling = block("longrope");
  // The same factors at every length, and no stretched context, by which LongRoPE would scale the scores.
  scaling.update({{"short_factor", factors}, {"long_factor", factors}, {"original_max_position_embeddings", context}});
  return scaling;
}

json longrope(const Metadata& metadata, const Tables& tables, int rotated, int context) {
  const auto longs = tables.find("rope_factors_long"), shorts = tables.find("rope_factors_short");
  for (const auto& found : {longs, shorts})
    if (found == tables.end() || static_cast<int>(found->second.size()) != rotated / 2)
      fail("checkpoint", "{}: its factors of rotary positions are not complete; convert the original model again", metadata.file().string());
  auto scaling = block("longrope");
  scaling.update({{"short_factor", shorts->second},
                  {"long_factor", longs->second},
                  {"original_max_position_embeddings", metadata.count(metadata.key("rope.scaling.original_context_length")).value_or(context)}});
  return scaling;
}

}  // namespace

json make_rope_scaling(const Metadata& metadata, const Tables& tables, int rotated, double base, int context) {
  if (tables.contains("rope_factors_long") || tables.contains("rope_factors_short")) return longrope(metadata, tables, rotated, context);
  if (const auto freqs = tables.find("rope_freqs"); freqs != tables.end()) return from_factors(metadata, freqs->second, rotated, base, context);

  auto factor = metadata.number(metadata.key("rope.scaling.factor"));
  auto type = metadata.text(metadata.key("rope.scaling.type")).value_or("");
  if (!factor && (factor = metadata.number(metadata.key("rope.scale_linear")))) type = "linear";  // the key of 2023
  if (type.empty() && factor) type = "linear";
  if (type.empty() || type == "none" || !factor || (*factor == 1 && type == "linear")) return nullptr;
  if (type == "linear") {
    auto scaling = block("linear");
    scaling["factor"] = *factor;
    return scaling;
  }
  if (type == "yarn") {
    auto scaling = block("yarn");
    scaling.update({{"factor", *factor},
                    {"original_max_position_embeddings", metadata.count(metadata.key("rope.scaling.original_context_length")).value_or(context)}});
    for (const auto& [field, key] : {std::pair("beta_fast", "rope.scaling.yarn_beta_fast"), std::pair("beta_slow", "rope.scaling.yarn_beta_slow")})
      if (const auto value = metadata.number(metadata.key(key))) scaling[field] = *value;
    return scaling;
  }
  fail("checkpoint", "{}: scales rotary positions by \"{}\"; lquant knows linear, yarn and the factors of Llama 3 and LongRoPE",
       metadata.file().string(), type);
}

}  // namespace lquant::checkpoint::gguf
