#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace lquant::model::family {

/// What messages about a field advise.
inline constexpr const char* kMend = "take the config.json of the original model";

/// config.json's fields with a type and a range; null counts as absent, but for a flag, which it leaves false. Throws Error naming the field. Where
/// mlx_lm, which has the written file as it stands, would not read the same (a null, 6.0 for a count), the value that was read is kept in settled().
/// Copies share what is settled.
class Config {
 public:
  explicit Config(const nlohmann::json& fields);

  /// The object under `key` as a config of its own, whose messages say "key.x". What is settled there is settled here too: settled()[key] is then the
  /// whole object as an output's config.json is to have it. A wrapper gives values of its own: `given` ones take the place of the object's,
  /// `otherwise` ones stand where it has none (or null); both are settled.
  Config child(const char* key, const nlohmann::json& given = nlohmann::json::object(),
               const nlohmann::json& otherwise = nlohmann::json::object()) const;
  /// The same fields with these in place of theirs; they are settled too.
  Config with(const nlohmann::json& changes) const;
  /// The same fields with these where it has none, as mlx_lm fills them in itself; only where null stood are they settled.
  Config filled(const nlohmann::json& otherwise) const;
  /// The same config of a model whose tensors' names begin with `prefix`.
  Config under(const std::string& prefix) const;
  const std::string& prefix() const { return prefix_; }

  /// For ModelSpec::settled and ModelSpec::removed.
  const nlohmann::json& settled() const { return state_->settled; }
  const std::vector<std::string>& removed() const { return state_->removed; }
  void settle(const char* key, nlohmann::json value) const;
  /// An output's config.json has no such field.
  void remove(const char* key) const;
  /// All fields as an output's config.json is to have them.
  nlohmann::json written() const { return state_->written(); }

  /// The field's place in the file, for messages: "text_config.hidden_size".
  std::string place(const char* key) const { return state_->path.empty() ? key : state_->path + "." + key; }
  bool is_null(const char* key) const { return fields_->contains(key) && fields_->at(key).is_null(); }
  bool has(const char* key) const { return fields_->contains(key) && !fields_->at(key).is_null(); }
  /// A size or count, at least 1 (`least` 0 where zero has a meaning).
  int count(const char* key, int least = 1) const;
  int count_or(const char* key, int otherwise, int least = 1) const { return has(key) ? count(key, least) : otherwise_of(key, otherwise); }
  /// 0 when it is null or absent, which mlx_lm understands too.
  int count_or_none(const char* key, int least = 1) const { return has(key) ? count(key, least) : 0; }
  double number(const char* key) const;
  double number_or(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise_of(key, otherwise); }
  bool flag(const char* key) const;
  bool flag_or(const char* key, bool otherwise) const { return has(key) || is_null(key) ? flag(key) : otherwise; }
  /// Whether Python takes the field for true: no 0, no empty text or list, no null.
  bool truthy(const char* key, bool otherwise) const;
  std::string text(const char* key) const;
  /// Any value; null when absent.
  nlohmann::json value(const char* key) const {
    state_->read->insert(place(key));
    return has(key) ? fields_->at(key) : nlohmann::json();
  }
  /// Whether the field's value was asked for, of this config or of any other of the same place in the file.
  bool was_read(const char* key) const { return state_->read->contains(place(key)); }
  /// A list of whole numbers of this length; of any length when `size` is 0.
  std::vector<int> counts(const char* key, int size = 0) const;
  /// A list of numbers of this length.
  std::vector<double> numbers(const char* key, int size) const;
  /// A list of true and false of this length.
  std::vector<bool> flags(const char* key, int size) const;
  /// A list of texts of this length.
  std::vector<std::string> texts(const char* key, int size) const;

 private:
  struct State {
    nlohmann::json original;  ///< the object as it stands in the file
    nlohmann::json settled = nlohmann::json::object();
    std::vector<std::string> removed;
    std::shared_ptr<std::set<std::string>> read = std::make_shared<std::set<std::string>>();  ///< places of the whole file
    std::shared_ptr<State> parent;
    std::string key, path;  ///< in the parent and in the file: "text_config"
    nlohmann::json written() const;
    void tell_parent() const;
  };
  /// The field, which must be there; its failures name it.
  JsonView field(const char* key) const;
  std::vector<JsonView> entries(const char* key, int size) const;
  template <class T>
  T otherwise_of(const char* key, T value) const {
    if (is_null(key)) settle(key, value);
    return value;
  }
  std::shared_ptr<const nlohmann::json> fields_;
  std::shared_ptr<State> state_;
  std::string prefix_;
};

/// "rope_scaling" as mlx_lm's initialize_rope reads it: keys that are null make way, so that they are absent there too.
nlohmann::json rope_scaling(const Config& config, const char* key = "rope_scaling");

/// transformers 5 keeps in "rope_parameters" what stood in fields of their own. For models that mlx_lm does not open without these: the config with
/// them, settled. A config that has a field called `theta` is as it was.
Config with_flat_positions(const Config& config, const char* theta = "rope_theta", const char* part = "partial_rotary_factor");

/// The same where transformers 5 nests them by kind of layer ("full_attention"): base and scaling of one kind, the base settled under `key`.
std::pair<double, nlohmann::json> nested_positions(const Config& config, const char* kind, const char* key);

/// Of so many layers, which the field of this name says, the last has full attention, the others something else. transformers 5 lists "layer_types"
/// instead, whose pattern is settled; a list without one is refused.
int layer_pattern(const Config& config, const char* key, int layers, int otherwise);

/// "sliding_window_pattern": the others see a window.
inline int sliding_window_pattern(const Config& config, int layers, int otherwise) {
  return layer_pattern(config, "sliding_window_pattern", layers, otherwise);
}

/// How many features of a head of `head_dim` turn: "partial_rotary_factor" of them, `otherwise` where there is none; it must be there when that is
/// null.
int rotated_features(const Config& config, int head_dim, std::optional<double> otherwise, const char* key = "partial_rotary_factor");

}  // namespace lquant::model::family
