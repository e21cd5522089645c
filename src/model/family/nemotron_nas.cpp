// Llama-Nemotron (arXiv 2505.00949), made of Llama by a search over blocks (Puzzle, arXiv 2411.19146): each block has an attention with key heads of
// its own number, a single linear in its place, or none; and an MLP of its own width, a linear, or none. Where there is none there is no norm either.
#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/linear.h"

namespace lquant::model::family {
namespace {

/// One half of an entry of "block_configs".
struct Choice {
  Config fields;
  bool none, linear;

  /// mlx_lm takes the fields for arguments of a class: one that it does not know stops it.
  Choice(const nlohmann::json& half, int block, const std::vector<std::string>& known)
      : fields(half), none(fields.flag_or("no_op", false)), linear(fields.flag_or("replace_with_linear", false)) {
    for (const auto& [key, value] : half.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        fail("model", "config.json: \"block_configs[{}]\" has a field \"{}\", which mlx_lm does not know; {}", block, shown(key), kMend);
  }
};

const std::vector<std::string> kAttention = {"no_op",         "replace_with_linear", "sparsify",       "n_heads_in_group",
                                             "window_length", "num_sink_tokens",     "unshifted_sink", "use_prefill_window_in_sink_attention"};
const std::vector<std::string> kMlp = {"no_op", "replace_with_linear", "sparsify", "ffn_mult"};

/// An empty object where it is absent.
const nlohmann::json& half_of(const nlohmann::json& entry, const char* key, int block) {
  static const nlohmann::json empty = nlohmann::json::object();
  if (!entry.is_object() || (entry.contains(key) && !entry.at(key).is_object()))
    fail("model", "config.json: \"block_configs[{}]\" is not an object with an object \"{}\"; {}", block, key, kMend);
  return entry.contains(key) ? entry.at(key) : empty;
}

/// Two thirds of so many times the hidden size, up to a multiple of 256.
int width_of(double multiplier, int hidden, int block) {
  constexpr int kMultiple = 256;
  const double exact = 2 * (std::round(multiplier * 1e6) / 1e6) * hidden / 3;
  if (!(exact >= 1 && exact < 1e9)) fail("model", "config.json: \"block_configs[{}]\" has an \"ffn_mult\" of {}; {}", block, multiplier, kMend);
  return (static_cast<int>(exact) + kMultiple - 1) / kMultiple * kMultiple;
}

kernels::Activation activation_of(const Config& config) {
  using kernels::Activation;
  const std::map<std::string, Activation> known = {{"silu", Activation::silu},
                                                   {"relu", Activation::relu},
                                                   {"gelu", Activation::gelu},
                                                   {"gelu_new", Activation::gelu_tanh},
                                                   {"gelu_fast", Activation::gelu_tanh}};
  if (!config.has("hidden_act")) return Activation::silu;
  const auto name = config.value("hidden_act");
  if (!name.is_string() || !known.contains(name))
    fail("model", "config.json: \"hidden_act\" is {}; mlx_lm knows silu, relu, gelu, gelu_new and gelu_fast of this family", shown_json(name));
  return known.at(name);
}

std::shared_ptr<const Op> linear_op(int block, const std::string& path, int hidden, bool bias) {
  Linear op;
  op.linear = block_linear(block, path, Role::other, hidden, hidden, bias);
  return std::make_shared<const Linear>(op);
}

nlohmann::json scaling_of(const Config& config) {
  auto scaling = rope_scaling(config);
  if (!scaling.is_object() || scaling.empty()) return nullptr;
  if (scaling == nlohmann::json{{"rope_type", "default"}}) {  // mlx_lm asks every scaling for a factor
    config.settle("rope_scaling", nullptr);
    return nullptr;
  }
  const JsonView view("model", "config.json: rope_scaling", scaling, kMend);
  view.at("factor").number();
  view.at("rope_type").text();
  return scaling;
}

}  // namespace

ModelSpec nemotron_nas(const Config& config) {
  const auto filled =
      config.filled({{"hidden_size", 8192}, {"num_hidden_layers", 80}, {"num_attention_heads", 64}, {"vocab_size", 128256}, {"rms_norm_eps", 1e-5}});
  auto decoder = Decoder::read(filled, {.intermediate = nullptr, .kv_heads = nullptr, .head_dim = nullptr});
  if (decoder.head_dim * decoder.heads != decoder.hidden)
    fail("model", "config.json: \"hidden_size\" {} is no multiple of \"num_attention_heads\" {}", decoder.hidden, decoder.heads);
  decoder.read_tie(config, false);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  decoder.activation = activation_of(config);
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 500000), false, scaling_of(config),
                              config.count_or("max_position_embeddings", 131072));
  const auto entries = config.value("block_configs");
  if (!entries.is_array() || static_cast<int>(entries.size()) != decoder.layers)
    fail("model", "config.json: \"block_configs\" is no list of {} entries, one a layer; {}", decoder.layers, kMend);

  auto spec = decoder.outer("nemotron-nas");
  bool mixes = false;
  for (int i = 0; i < decoder.layers; ++i) {
    const Choice attention(half_of(entries[i], "attention", i), i, kAttention), mlp(half_of(entries[i], "ffn", i), i, kMlp);
    auto sized = decoder;
    const bool heads = !attention.none && !attention.linear, gated = !mlp.none && !mlp.linear;
    if (heads) {
      const int group = attention.fields.count("n_heads_in_group");
      if (decoder.heads % group != 0)
        fail("model", "config.json: \"num_attention_heads\" {} is no multiple of \"n_heads_in_group\" {} in \"block_configs[{}]\"", decoder.heads,
             group, i);
      sized.kv_heads = decoder.heads / group;
    } else {
      sized.kv_heads = decoder.heads;  // of an attention that is not used
    }
    sized.intermediate = gated ? width_of(mlp.fields.number("ffn_mult"), decoder.hidden, i) : 1;
    auto layer = sized.layer(i, rope);
    if (attention.linear) layer.mixer = linear_op(i, layer.prefix + "self_attn.linear", decoder.hidden, decoder.qkv_bias);
    if (mlp.linear) layer.mlp = linear_op(i, layer.prefix + "mlp.linear", decoder.hidden, decoder.mlp_bias);
    auto block = layer.block();
    if (mlp.none) block.steps.pop_back();
    if (attention.none) block.steps.erase(block.steps.begin());
    mixes = mixes || !attention.none;
    spec.blocks.push_back(std::move(block));
  }
  if (!mixes)
    fail("model", "config.json: \"block_configs\" has no block with an attention or a linear in its place, and mlx_lm does not run such a model");
  return spec;
}

}  // namespace lquant::model::family
