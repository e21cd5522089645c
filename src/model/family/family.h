#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/json.h"
#include "model/spec.h"

// One file a family, one row in family.cpp. A family's function reads its fields of config.json (with the defaults of mlx_lm's
// ModelArgs, since its output must mean the same there), fills a Decoder, and changes in the result what is its own.
namespace lquant::model::family {

/// What messages about a field advise.
inline constexpr const char* kMend = "take the config.json of the original model";
/// Why such tensors are left out.
inline constexpr const char* kNotRun = "layers that predict several tokens at once (MTP), which mlx_lm does not run";

/// config.json's fields with a type and a range; null counts as absent. Throws Error naming the field. Where mlx_lm, which has the written file as
/// it stands, would not read the same (a null, 6.0 for a count), the value that was read is kept in settled().
class Config {
 public:
  explicit Config(const nlohmann::json& fields) : fields_(fields) {}
  /// For ModelSpec::settled.
  const nlohmann::json& settled() const { return *settled_; }
  void settle(const char* key, nlohmann::json value) const { (*settled_)[key] = std::move(value); }
  bool is_null(const char* key) const { return fields_.contains(key) && fields_.at(key).is_null(); }
  bool has(const char* key) const { return fields_.contains(key) && !fields_.at(key).is_null(); }
  /// A size or count, at least 1 (`least` 0 where zero has a meaning).
  int count(const char* key, int least = 1) const;
  int count_or(const char* key, int otherwise, int least = 1) const { return has(key) ? count(key, least) : otherwise_of(key, otherwise); }
  /// 0 when it is null or absent, which mlx_lm understands too.
  int count_or_none(const char* key, int least = 1) const { return has(key) ? count(key, least) : 0; }
  double number(const char* key) const;
  double number_or(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise_of(key, otherwise); }
  bool flag(const char* key) const;
  bool flag_or(const char* key, bool otherwise) const { return has(key) ? flag(key) : otherwise_of(key, otherwise); }
  /// Any value; null when absent.
  nlohmann::json value(const char* key) const { return has(key) ? fields_.at(key) : nlohmann::json(); }
  /// A list of whole numbers of this length; of any length when `size` is 0.
  std::vector<int> counts(const char* key, int size = 0) const;
  /// A list of texts of this length.
  std::vector<std::string> texts(const char* key, int size) const;

 private:
  /// The field, which must be there; its failures name it.
  JsonView field(const char* key) const;
  std::vector<JsonView> entries(const char* key, int size) const;
  template <class T>
  T otherwise_of(const char* key, T value) const {
    if (is_null(key)) settle(key, value);
    return value;
  }
  const nlohmann::json& fields_;
  std::shared_ptr<nlohmann::json> settled_ = std::make_shared<nlohmann::json>(nlohmann::json::object());
};

/// The decoder that most families vary: RMS norms before attention and MLP, rotary grouped-head attention, gated MLP.
struct Decoder {
  int hidden = 0, layers = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  float eps = 1e-6f;
  bool tied = true;
  bool head_if_present = false;  ///< the config leaves open whether it is tied
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool fused_attention = false, fused_mlp = false;  ///< qkv_proj; gate_up_proj
  bool qk_norm = false;   ///< q_norm and k_norm over each head
  bool sandwich = false;  ///< Gemma 2 and 3: norms before and after each sub-layer, under Gemma's names
  float norm_offset = 0;
  kernels::Activation activation = kernels::Activation::silu;
  float scale = 0;  ///< of attention scores; 0: 1 / sqrt(head_dim)

  /// hidden_size, num_hidden_layers, intermediate_size, heads, rms_norm_eps, vocab_size; kv heads default to heads, head_dim to
  /// hidden_size / heads (also when it is 0 or absent).
  static Decoder read(const Config& config);
  /// tie_word_embeddings, which must be there when there is no default. In Python null is false: a head of the checkpoint's own is used; where it has
  /// none the model can only be tied.
  void read_tie(const Config& config, std::optional<bool> otherwise);
  /// Every block alike, with the given rope.
  ModelSpec build(const std::string& family, const std::optional<RopeSpec>& rope) const;
};

/// "rope_scaling" as mlx_lm's initialize_rope reads it: keys that are null make way, so that they are absent there too.
nlohmann::json rope_scaling(const Config& config, const char* key = "rope_scaling");

/// How many features of a head of `head_dim` turn: "partial_rotary_factor" of them, `otherwise` where there is none; it must be there when that is null.
int rotated_features(const Config& config, int head_dim, std::optional<double> otherwise);

/// A linear of block i under "model.layers.i.": block_linear(3, "mlp.down_proj", Role::down, out, in).
LinearSpec block_linear(int block, const std::string& name, Role role, int out, int in, bool bias = false);

ModelSpec ernie4_5(const Config& config);
ModelSpec glm4(const Config& config);
ModelSpec helium(const Config& config);
ModelSpec internlm3(const Config& config);
ModelSpec llama(const Config& config);
ModelSpec mimo(const Config& config);
ModelSpec seed_oss(const Config& config);
ModelSpec telechat3(const Config& config);
ModelSpec smollm3(const Config& config);
ModelSpec qwen2(const Config& config);
ModelSpec qwen3(const Config& config);
ModelSpec qwen3_moe(const Config& config);
ModelSpec phi3(const Config& config);
ModelSpec gemma2(const Config& config);
ModelSpec gemma3_text(const Config& config);

}  // namespace lquant::model::family
