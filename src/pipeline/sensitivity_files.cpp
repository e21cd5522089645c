#include "pipeline/sensitivity_files.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/shown.h"
#include "base/words.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

constexpr const char* kPairs = "_sensitivities.json";
// A file's name has at most 255 bytes, and "_sensitivities.lquant.json.partial" takes 34 of them.
constexpr std::size_t kLongestName = 220;
constexpr const char* kFull = "_sensitivities.lquant.json";

// What is in such a file is f32 in the programs that write it: what is beyond that was made by no measurement, and would add up to no number.
constexpr double kMost = std::numeric_limits<float>::max();
// A model has some thousand linears and a format's cost takes some twenty bytes: 18 formats are below 1 MB.
constexpr std::size_t kLargest = std::size_t{1} << 26;
constexpr const char* kMend = "drop --sensitivities to make it anew";

double millions(const model::LinearSpec& linear) { return static_cast<double>(linear.parameters()) / 1e6; }

std::string show(const codec::Format& f) { return fmt::format("{} bits with groups of {}", f.bits, f.group_size); }

bool usable(const model::LinearSpec& linear, const codec::Format& f) {
  return (!linear.fixed_format || linear.only_advised) && linear.dense_why.empty() && linear.in % f.group_size == 0;
}

/// Throws Error naming the file, and the place in it where it is no JSON. A pipe would be waited for, and never ends.
json read_regular(const fs::path& file) {
  std::error_code ignored;
  if (fs::exists(file, ignored) && !fs::is_regular_file(file, ignored)) fail("pipeline", "{}: is no regular file; {}", file.string(), kMend);
  const auto bytes = read_file("pipeline", file, kLargest);
  try {
    return parse_json(bytes);
  } catch (const JsonFault& fault) {
    fail("pipeline", "{}: not valid JSON ({}); {}", file.string(), fault.what(), kMend);
  }
}

/// mlx_lm's values are differences between two formats: taking low costs them, taking high nothing. A negative one is no fault: to first order the
/// low format may be the better one.
Sensitivities from_pairs(const json& pairs, const fs::path& file, const model::Model& model, const codec::Format& low, const codec::Format& high) {
  const JsonView all("pipeline", file.string(), pairs, kMend);
  std::map<std::string, double> values;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto pair = all.at(i);
    if (pair.size() != 2) pair.refuse("a [path, value] pair as mlx_lm.dynamic_quant writes it");
    const auto value = pair.at(1).number();
    if (!(std::abs(value) <= kMost)) pair.at(1).refuse("a value that f32 can hold");
    if (!values.emplace(pair.at(0).text(), value).second) pair.at(0).complain("names a linear for the second time");
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

Sensitivities from_file(const json& read, const fs::path& file, const model::Model& model) {
  auto s = Sensitivities::from_json(read, file.string(), kMend);
  if (s.model != model.checkpoint().fingerprint()) fail("pipeline", "{}: was made of another model; {}", file.string(), kMend);
  const auto linears = model.spec().linears();
  for (const auto& [path, costs] : s.kl)
    if (std::none_of(linears.begin(), linears.end(), [&](const auto* linear) { return linear->path == path; }))
      fail("pipeline", "{}: \"kl.{}\" is no linear of the model; {}", file.string(), shown(path), kMend);
  return s;
}

bool is_pair_of(const json& pair, const std::set<std::string>& linears) {
  return pair.is_array() && pair.size() == 2 && pair[0].is_string() && linears.contains(pair[0].get<std::string>()) && pair[1].is_number();
}

/// Whether a file holds what a run of this model, of lquant or of mlx_lm, would write there.
bool is_of_model(const fs::path& file, const model::Model& model) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return false;
  try {
    const auto read = parse_json(read_file("pipeline", file));
    if (read.is_object()) return read.contains("lquant") && read.contains("kl") && read.value("model", json()) == model.checkpoint().fingerprint();
    std::set<std::string> linears;
    for (const auto* linear : model.spec().linears()) linears.insert(linear->path);
    return read.is_array() && !read.empty() && std::all_of(read.begin(), read.end(), [&](const json& pair) { return is_pair_of(pair, linears); });
  } catch (const JsonFault&) {
    return false;
  }
}

}  // namespace

std::string sensitivities_name(const std::string& model, bool is_path) {
  auto name = is_path ? name_of(model) : model;
  std::replace(name.begin(), name.end(), '/', '_');
  name.erase(0, name.find_first_not_of('.'));
  if (name.size() > kLongestName) {
    auto end = kLongestName;
    while ((static_cast<unsigned char>(name[end]) & 0xc0) == 0x80) --end;  // not within a character
    name.resize(end);
  }
  return name.empty() ? "model" : name;
}

void check_sensitivity_files(const std::string& name, const model::Model& model) {
  for (const char* suffix : {kPairs, kFull}) {
    const fs::path file = name + suffix;
    if (!fs::exists(fs::symlink_status(file)) || is_of_model(file, model)) continue;
    fail("pipeline",
         "{}: is there already and does not hold sensitivities of this model, which would be written there; move it away or call the command in "
         "another folder",
         file.string());
  }
  if (::access(".", W_OK | X_OK) != 0)
    fail("pipeline", "{}: sensitivities cannot be written here ({}); call the command in another folder", fs::current_path().string(),
         std::error_code(errno, std::generic_category()).message());
}

std::map<std::string, double> as_mlx_lm(const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low, const codec::Format& high) {
  std::map<std::string, double> values;
  for (const auto* linear : spec.linears()) {
    const double gain = s.of(linear->path, low) - s.of(linear->path, high);
    if (std::isfinite(gain)) values[linear->path] = gain / millions(*linear);
  }
  return values;
}

void write_sensitivities(const std::string& name, const model::ModelSpec& spec, const Sensitivities& s, const codec::Format& low,
                         const codec::Format& high, const run::Context& context) {
  const auto values = as_mlx_lm(spec, s, low, high);
  auto pairs = json::array();
  for (const auto* linear : spec.linears())
    if (const auto it = values.find(linear->path); it != values.end()) pairs.push_back({it->first, it->second});
  write_file_atomically("pipeline", name + kPairs, pairs.dump() + "\n");
  write_file_atomically("pipeline", name + kFull, s.to_json().dump(1) + "\n");
  context.line(fmt::format("sensitivities: written to {}, and as mlx_lm has them to {}", fs::absolute(name + kFull).string(), name + kPairs));
}

Sensitivities read_sensitivities(const fs::path& given, const model::Model& model, const json& data, const std::vector<codec::Format>& formats,
                                 const codec::Format& low, const codec::Format& high) {
  auto file = given;
  auto read = read_regular(file);
  const auto text = file.string();
  if (read.is_array() && text.ends_with(kPairs)) {
    const fs::path fuller = text.substr(0, text.size() - std::string_view(kPairs).size()) + kFull;
    std::error_code ignored;
    if (fs::exists(fuller, ignored)) {
      file = fuller;
      read = read_regular(file);
    }
  }
  if (!read.is_array() && !read.is_object())
    JsonView("pipeline", file.string(), read, kMend).refuse("a list of [path, value] pairs or what lquant writes beside it");
  const auto s = read.is_array() ? from_pairs(read, file, model, low, high) : from_file(read, file, model);
  if (!s.data.is_null() && !data.is_null() && s.data != data)
    fail("pipeline",
         "{}: was made on other calibration data; give the same --data-path, --num-samples, --seed and --expert-tokens, or drop --sensitivities",
         file.string());
  for (const auto& format : formats)
    for (const auto* linear : model.spec().linears())
      if (usable(*linear, format) && !std::isfinite(s.of(linear->path, format)))
        fail("pipeline", "{}: says nothing of {} in {}; {}", file.string(), linear->path, show(format), kMend);
  return s;
}

}  // namespace lquant::pipeline
