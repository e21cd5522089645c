#include "pipeline/sensitivity_files.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/files.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

constexpr const char* kPairs = "_sensitivities.json";
constexpr const char* kFull = "_sensitivities.lquant.json";

double millions(const model::LinearSpec& linear) { return static_cast<double>(linear.parameters()) / 1e6; }

std::string show(const codec::Format& f) { return fmt::format("{} bits with groups of {}", f.bits, f.group_size); }

bool usable(const model::LinearSpec& linear, const codec::Format& f) { return !linear.fixed_format && linear.in % f.group_size == 0; }

/// mlx_lm's values are differences between two formats: taking low costs them, taking high nothing.
Sensitivities from_pairs(const json& pairs, const fs::path& file, const model::Model& model, const codec::Format& low, const codec::Format& high) {
  std::map<std::string, double> values;
  try {
    for (const auto& pair : pairs) values[pair.at(0).get<std::string>()] = pair.at(1).get<double>();
  } catch (const json::exception&) {
    fail("pipeline", "{}: is not a list of [path, value] pairs as mlx_lm.dynamic_quant writes it; drop --sensitivities to make it anew",
         file.string());
  }
  Sensitivities s;
  s.formats = {low, high};
  s.model = model.checkpoint().fingerprint();
  s.data = nullptr;
  for (const auto* linear : model.spec().linears()) {
    const auto it = values.find(linear->path);
    if (it == values.end()) continue;
    s.kl[linear->path] = {it->second * millions(*linear), 0};
  }
  return s;
}

}  // namespace

std::map<std::string, double> as_mlx_lm(const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low, const codec::Format& high) {
  std::map<std::string, double> values;
  for (const auto* linear : spec.linears()) {
    const double gain = s.of(linear->path, low) - s.of(linear->path, high);
    if (std::isfinite(gain)) values[linear->path] = gain / millions(*linear);
  }
  return values;
}

void write_sensitivities(const std::string& name, const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low,
                         const codec::Format& high) {
  const auto values = as_mlx_lm(spec, s, low, high);
  auto pairs = json::array();
  for (const auto* linear : spec.linears())
    if (const auto it = values.find(linear->path); it != values.end()) pairs.push_back({it->first, it->second});
  write_file_atomically("pipeline", name + kPairs, pairs.dump() + "\n");
  write_file_atomically("pipeline", name + kFull, s.to_json().dump(1) + "\n");
}

Sensitivities read_sensitivities(const fs::path& given, const model::Model& model, const json& data, const std::vector<codec::Format>& formats,
                                 const codec::Format& low, const codec::Format& high) {
  auto file = given;
  auto read = json::parse(read_file("pipeline", file), nullptr, false);
  if (read.is_discarded()) fail("pipeline", "{}: is not JSON; mend it or drop --sensitivities to make it anew", file.string());
  const auto text = file.string();
  if (read.is_array() && text.ends_with(kPairs)) {
    const fs::path fuller = text.substr(0, text.size() - std::string_view(kPairs).size()) + kFull;
    if (fs::is_regular_file(fuller)) {
      file = fuller;
      read = json::parse(read_file("pipeline", file), nullptr, false);
    }
  }
  auto s = read.is_array() ? from_pairs(read, file, model, low, high) : Sensitivities::from_json(read, file);
  if (s.model != model.checkpoint().fingerprint())
    fail("pipeline", "{}: was made of another model; drop --sensitivities to make it anew", file.string());
  if (!s.data.is_null() && !data.is_null() && s.data != data)
    fail("pipeline", "{}: was made on other calibration data; give the same --data-path, --num-samples and --seed, or drop --sensitivities",
         file.string());
  for (const auto& format : formats)
    for (const auto* linear : model.spec().linears())
      if (usable(*linear, format) && !std::isfinite(s.of(linear->path, format)))
        fail("pipeline", "{}: says nothing of {} in {}; drop --sensitivities to make it anew", file.string(), linear->path, show(format));
  return s;
}

}  // namespace lquant::pipeline
