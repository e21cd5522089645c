// Fields of config.json with a type and a range.
#include "model/family/config.h"

#include "base/error.h"
#include "base/shown.h"

namespace lquant::model::family {

using nlohmann::json;

Config::Config(const json& fields) : fields_(std::make_shared<const json>(fields)), state_(std::make_shared<State>()) { state_->original = fields; }

json Config::State::written() const {
  auto all = original;
  all.update(settled);
  for (const auto& key : removed) all.erase(key);
  return all;
}

void Config::State::tell_parent() const {
  if (!parent) return;
  parent->settled[key] = written();
  parent->tell_parent();
}

Config Config::child(const char* key, const json& given, const json& otherwise) const {
  const auto& inner = field(key).value();
  if (!inner.is_object()) fail("model", "config.json: \"{}\" is {}, not an object; {}", place(key), shown_json(inner), kMend);
  Config child(inner);
  child.state_->parent = state_;
  child.state_->read = state_->read;
  child.state_->key = key;
  child.state_->path = place(key);
  auto fields = inner;
  const auto set = [&](const std::string& name, const json& value) {
    fields[name] = value;
    child.settle(name.c_str(), value);
  };
  for (const auto& [name, value] : given.items())
    if (!inner.contains(name) || inner.at(name) != value) set(name, value);
  for (const auto& [name, value] : otherwise.items())
    if (!fields.contains(name) || fields.at(name).is_null()) set(name, value);
  child.fields_ = std::make_shared<const json>(std::move(fields));
  return child;
}

Config Config::with(const json& changes) const {
  auto fields = *fields_;
  auto same = *this;
  for (const auto& [name, value] : changes.items()) {
    fields[name] = value;
    settle(name.c_str(), value);
  }
  same.fields_ = std::make_shared<const json>(std::move(fields));
  return same;
}

Config Config::filled(const json& otherwise) const {
  auto fields = *fields_;
  auto same = *this;
  for (const auto& [name, value] : otherwise.items()) {
    if (has(name.c_str())) continue;
    fields[name] = value;
    if (is_null(name.c_str())) settle(name.c_str(), value);
  }
  same.fields_ = std::make_shared<const json>(std::move(fields));
  return same;
}

Config Config::under(const std::string& prefix) const {
  auto same = *this;
  same.prefix_ = prefix;
  return same;
}

void Config::settle(const char* key, json value) const {
  state_->settled[key] = std::move(value);
  state_->tell_parent();
}

void Config::remove(const char* key) const {
  state_->removed.emplace_back(key);
  state_->settled.erase(key);
  state_->tell_parent();
}

JsonView Config::field(const char* key) const {
  const JsonView view("model", "config.json", *fields_, kMend, state_->path);
  state_->read->insert(place(key));
  if (!has(key)) fail("model", "config.json: \"{}\" is missing; {}", place(key), kMend);
  return view.at(key);
}

int Config::count(const char* key, int least) const {
  // Above a thousand million no model has layers, heads or vocabulary, and products of two such sizes still fit in 64 bits.
  const auto value = static_cast<int>(field(key).whole(least, 1'000'000'000));
  if (!fields_->at(key).is_number_integer()) settle(key, value);
  return value;
}

std::string Config::text(const char* key) const { return field(key).text(); }

double Config::number(const char* key) const { return field(key).number(); }

bool Config::flag(const char* key) const {
  if (!is_null(key)) return field(key).flag();
  settle(key, false);
  return false;
}

bool Config::truthy(const char* key, bool otherwise) const {
  if (is_null(key)) return false;
  if (!has(key)) return otherwise;
  const auto own = value(key);
  return own.is_boolean() ? own.get<bool>() : own.is_number() ? own != 0 : own.is_string() ? own != "" : !own.empty();
}

std::vector<JsonView> Config::entries(const char* key, int size) const {
  const auto list = field(key);
  std::vector<JsonView> all;
  for (std::size_t i = 0; i < list.size(); ++i) all.push_back(list.at(i));
  if (size > 0 && static_cast<int>(all.size()) != size)
    fail("model", "config.json: \"{}\" has {} entries where the model has {} layers", place(key), all.size(), size);
  return all;
}

std::vector<int> Config::counts(const char* key, int size) const {
  std::vector<int> values;
  for (const auto& entry : entries(key, size)) values.push_back(static_cast<int>(entry.whole(INT32_MIN, INT32_MAX)));
  return values;
}

std::vector<double> Config::numbers(const char* key, int size) const {
  std::vector<double> values;
  for (const auto& entry : entries(key, size)) values.push_back(entry.number());
  return values;
}

std::vector<bool> Config::flags(const char* key, int size) const {
  std::vector<bool> values;
  for (const auto& entry : entries(key, size)) values.push_back(entry.flag());
  return values;
}

std::vector<std::string> Config::texts(const char* key, int size) const {
  std::vector<std::string> values;
  for (const auto& entry : entries(key, size)) values.push_back(entry.text());
  return values;
}

nlohmann::json rope_scaling(const Config& config, const char* key) {
  auto scaling = config.value(key);
  if (scaling.is_null()) return scaling;
  if (!scaling.is_object()) fail("model", "config.json: \"{}\" is {}, not an object; {}", config.place(key), shown_json(scaling), kMend);
  const auto before = scaling.size();
  for (auto field = scaling.begin(); field != scaling.end();) field = field->is_null() ? scaling.erase(field) : std::next(field);
  if (scaling.size() != before) config.settle(key, scaling);
  return scaling;
}

Config with_flat_positions(const Config& config, const char* theta, const char* part) {
  auto nested = rope_scaling(config, "rope_parameters");
  if (config.has(theta) || !nested.is_object()) return config;
  nlohmann::json changes = nlohmann::json::object();
  const auto move = [&](const char* from, const char* to) {
    if (!nested.contains(from)) return;
    changes[to] = nested[from];
    nested.erase(from);
  };
  move("rope_theta", theta);
  move("partial_rotary_factor", part);
  const bool plain = !nested.contains("rope_type") || nested["rope_type"] == "default";
  if (!plain && !config.has("rope_scaling")) changes["rope_scaling"] = nested;
  return config.with(changes);
}

std::pair<double, nlohmann::json> nested_positions(const Config& config, const char* kind, const char* key) {
  const auto all = config.child("rope_parameters");
  auto scaling = rope_scaling(all, kind);
  const double base = all.child(kind).number("rope_theta");
  scaling.erase("rope_theta");
  config.settle(key, base);
  return {base, scaling};
}

int layer_pattern(const Config& config, const char* key, int layers, int otherwise) {
  if (config.has(key) || !config.has("layer_types")) return config.count_or(key, otherwise);
  const auto types = config.texts("layer_types", layers);
  int pattern = 1;
  while (pattern <= layers && types[pattern - 1] != "full_attention") ++pattern;
  for (int i = 0; i < layers; ++i)
    if ((types[i] == "full_attention") != ((i + 1) % pattern == 0))
      fail("model",
           "config.json: \"layer_types\" repeats no pattern of one full_attention behind others, and mlx_lm knows no other order of layers here");
  if (pattern != otherwise) config.settle(key, pattern);
  return pattern;
}

int rotated_features(const Config& config, int head_dim, std::optional<double> otherwise, const char* key) {
  const double part = otherwise ? config.number_or(key, *otherwise) : config.number(key);
  if (!(part > 0 && part <= 1)) fail("model", "config.json: \"{}\" is {}, not a share above 0 and up to 1; {}", config.place(key), part, kMend);
  return static_cast<int>(head_dim * part);
}

}  // namespace lquant::model::family
