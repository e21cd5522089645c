// Rotary frequencies. Every published scaling of rotary positions is a change of the F frequencies and at most one factor of
// cos and sin, so each becomes a short function from (dims, base, config) to those numbers, in double; the forward pass never
// knows which one it was. mlx_lm divides positions by "frequencies" that are our reciprocals. Only dynamic NTK depends on
// the length at hand and is made when that is known.
#include "model/rope.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "base/shown.h"

namespace lquant::model {
namespace {

using nlohmann::json;
// Published heads have 64 to 512 features. Every block of a model keeps its frequencies, so a damaged file must not ask for many more.
constexpr int kMostFeatures = 1 << 14;
constexpr double kPi = 3.14159265358979323846;

constexpr const char* kMend = "take the config.json of the original model";

JsonView view(const json& scaling) { return {"model", "config.json: rope_scaling", scaling, kMend}; }

double number(const json& scaling, const char* key) { return view(scaling).at(key).number(); }

double number(const json& scaling, const char* key, double otherwise) {
  return scaling.contains(key) && !scaling[key].is_null() ? number(scaling, key) : otherwise;
}

/// The wavelengths' base: position · base^(−2f / dims).
double unscaled(int f, int dims, double base) { return std::pow(base, -2.0 * f / dims); }

std::vector<double> plain(int dims, double base, double factor) {
  std::vector<double> inv_freq(dims / 2);
  for (int f = 0; f < dims / 2; ++f) inv_freq[f] = unscaled(f, dims, base) / factor;
  return inv_freq;
}

// Long waves are stretched by `factor`, short ones kept, those in between blended.
std::vector<double> llama3(int dims, double base, const json& scaling) {
  const double factor = number(scaling, "factor"), low = number(scaling, "low_freq_factor", 1), high = number(scaling, "high_freq_factor", 4);
  const double context = number(scaling, "original_max_position_embeddings", 8192);
  auto inv_freq = plain(dims, base, 1);
  for (auto& w : inv_freq) {
    const double wave = 2 * kPi / w;
    if (wave > context / low) {
      w /= factor;
    } else if (wave > context / high && wave < context / low) {
      const double smooth = (context / wave - low) / (high - low);
      w *= (1 - smooth) / factor + smooth;
    }
  }
  return inv_freq;
}

// Features that turn more than beta_fast times in the trained context keep their frequency, those below beta_slow are
// interpolated, with a linear ramp over the feature index in between.
std::vector<double> yarn(int dims, double base, const json& scaling, float& magnitude) {
  const double factor = number(scaling, "factor"), context = number(scaling, "original_max_position_embeddings", 4096);
  const auto index_of = [&](double rotations) { return dims * std::log(context / (rotations * 2 * kPi)) / (2 * std::log(base)); };
  const auto gain = [&](double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; };
  magnitude = static_cast<float>(gain(number(scaling, "mscale", 1)) / gain(number(scaling, "mscale_all_dim", 0)));
  const double low = std::max(std::floor(index_of(number(scaling, "beta_fast", 32))), 0.0);
  double high = std::min(std::ceil(index_of(number(scaling, "beta_slow", 1))), dims - 1.0);
  if (low == high) high += 0.001;  // the paper's code does so too; a ramp of no width is a step
  auto inv_freq = plain(dims, base, 1);
  for (int f = 0; f < dims / 2; ++f) {
    const double ramp = std::clamp((f - low) / (high - low), 0.0, 1.0);
    inv_freq[f] *= (1 - ramp) + ramp / factor;
  }
  return inv_freq;
}

std::vector<double> longrope(int dims, double base, const json& scaling, int max_positions, float& magnitude) {
  const double context = number(scaling, "original_max_position_embeddings");
  const double ratio = max_positions / context;
  magnitude = static_cast<float>(ratio <= 1 ? 1.0 : std::sqrt(1 + std::log(ratio) / std::log(context)));
  auto inv_freq = plain(dims, base, 1);
  if (!scaling.contains("long_factor")) fail("model", "config.json: rope_scaling of type longrope lacks \"long_factor\"");
  const json& factors = scaling["long_factor"];
  if (factors.is_array() && factors.size() != inv_freq.size())
    fail("model", "config.json: rope_scaling.long_factor has {} values where {} features are rotated", factors.size(), inv_freq.size());
  if (!scaling.contains("short_factor"))
    fail("model", "config.json: rope_scaling of type longrope lacks \"short_factor\", without which mlx_lm does not open the model");
  const auto factor = view(scaling).at("long_factor");
  for (std::size_t f = 0; f < inv_freq.size(); ++f) inv_freq[f] /= factors.is_array() ? factor.at(f).number() : factor.number();
  return inv_freq;
}

// A part of the features turns, with the exponents of the whole; the others stand still.
std::vector<double> proportional(int dims, double base, const json& scaling) {
  const double part = number(scaling, "partial_rotary_factor", 1);
  if (!(part >= 0 && part <= 1)) view(scaling).at("partial_rotary_factor").refuse("a share from 0 to 1");
  const int turning = static_cast<int>(dims * part);
  auto inv_freq = plain(dims, base, number(scaling, "factor", 1));
  for (int f = (turning + 1) / 2; f < dims / 2; ++f) inv_freq[f] = 0;
  return inv_freq;
}

}  // namespace

RopeSpec make_rope(int dims, double base, bool interleaved, const json& scaling, int max_positions) {
  if (dims < 2 || dims % 2 != 0) fail("model", "config.json: {} rotated features in a head; an even number of 2 or more is needed", dims);
  if (dims > kMostFeatures)
    fail("model", "config.json: {} rotated features in a head are more than the {} that one may have; {}", dims, kMostFeatures, kMend);
  if (!(base > 0)) fail("model", "config.json: rope_theta is {}; it must be positive", base);
  RopeSpec rope;
  rope.interleaved = interleaved;
  rope.base = static_cast<float>(base);
  const auto text = [&](const char* key) {
    return scaling.is_object() && scaling.contains(key) && !scaling[key].is_null() ? view(scaling).at(key).text() : std::string();
  };
  auto type = text("type");
  if (type.empty()) type = text("rope_type");
  if (type.empty()) type = "default";

  std::vector<double> inv_freq;
  if (type == "mrope" && (!scaling.contains("mrope_section") || scaling["mrope_section"].size() != 3))
    fail("model", "config.json: rope_scaling of type mrope needs a \"mrope_section\" of three; take the config.json of the original model");
  if (type == "default" || type == "mrope") {
    inv_freq = plain(dims, base, 1);
  } else if (type == "linear") {
    inv_freq = plain(dims, base, number(scaling, "factor"));
  } else if (type == "dynamic") {
    if (max_positions <= 0) fail("model", "config.json: rope_scaling of type dynamic needs \"max_position_embeddings\"");
    inv_freq = plain(dims, base, 1);
    rope.dynamic_from = max_positions;
    rope.dynamic_factor = static_cast<float>(number(scaling, "factor"));
  } else if (type == "llama3") {
    inv_freq = llama3(dims, base, scaling);
  } else if (type == "yarn" || type == "deepseek_yarn" || type == "telechat3-yarn") {
    inv_freq = yarn(dims, base, scaling, rope.magnitude);
  } else if (type == "longrope") {
    inv_freq = longrope(dims, base, scaling, max_positions, rope.magnitude);
    rope.interleaved = false;  // mlx_lm's has halves alone
  } else if (type == "proportional") {
    inv_freq = proportional(dims, base, scaling);
  } else {
    fail("model",
         "config.json: rope_scaling of type \"{}\" is not known; known: default, linear, dynamic, llama3, yarn, longrope, proportional, mrope",
         shown(type));
  }
  const bool finite = std::all_of(inv_freq.begin(), inv_freq.end(), [](double w) { return std::abs(w) <= std::numeric_limits<float>::max(); });
  if (!finite || !std::isfinite(rope.magnitude))
    fail("model", "config.json: rope_theta {} and rope_scaling give rotary frequencies that are no finite numbers; {}", base, kMend);
  rope.inv_freq.assign(inv_freq.begin(), inv_freq.end());
  return rope;
}

mx::array inverse_frequencies(const RopeSpec& rope, int length) {
  const int count = static_cast<int>(rope.inv_freq.size());
  if (rope.dynamic_from == 0 || length <= rope.dynamic_from) return mx::array(rope.inv_freq.data(), {count}, mx::float32);
  const int dims = 2 * count;
  const double stretch = double(rope.dynamic_factor) * length / rope.dynamic_from - (rope.dynamic_factor - 1);
  const auto grown = plain(dims, rope.base * std::pow(stretch, double(dims) / (dims - 2)), 1);
  const std::vector<float> inv_freq(grown.begin(), grown.end());
  return mx::array(inv_freq.data(), {count}, mx::float32);
}

}  // namespace lquant::model
