// GPT-2 (Radford et al., 2019) and the StarCoder of GPT-BigCode (arXiv 2305.06161): an embedding of positions in place of rotary ones, layer norms, a
// plain MLP, q, k and v in one linear. In GPT-BigCode all query heads read one head of keys and values. Hugging Face keeps GPT-2's weights [in, out],
// under names without "model.".
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

const Keys kKeys = {.hidden = "n_embd",
                    .layers = "n_layer",
                    .intermediate = nullptr,
                    .heads = "n_head",
                    .kv_heads = nullptr,
                    .head_dim = nullptr,
                    .eps = "layer_norm_epsilon"};

Decoder gpt(const Config& config, const std::string& prefix) {
  auto decoder = Decoder::read(config, kKeys);
  decoder.require_even_heads();
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = decoder.qkv_bias = decoder.o_bias = decoder.mlp_bias = true;
  decoder.plain_mlp = true;
  decoder.fused_attention = Decoder::Fused::in_order;
  auto& names = decoder.names;
  names.embedding = prefix + "wte";
  names.final_norm = prefix + "ln_f";
  names.layers = prefix + "h.";
  names.attention_norm = "ln_1";
  names.mlp_norm = "ln_2";
  names.qkv = "attn.c_attn";
  names.o = "attn.c_proj";
  names.up = "mlp.c_fc";
  names.down = "mlp.c_proj";
  return decoder;
}

ModelSpec built(const Decoder& decoder, const std::string& family, const std::string& prefix, int positions) {
  auto spec = decoder.build(family, std::nullopt);
  spec.position_embedding = LinearSpec{.path = prefix + "wpe", .role = Role::embed, .out = positions, .in = decoder.hidden};
  for (const char* pattern : {"*h.*.attn.bias", "*h.*.attn.masked_bias"}) spec.left_out.push_back({pattern, "causal masks"});
  return spec;
}

/// Where Hugging Face's files have the tensors, of the bare model and of the one with a head. Only their weights are transposed: attn.c_proj is
/// square, so that the name alone tells.
std::vector<Import> hugging_face(int layers) {
  std::vector<Import> rows;
  for (const std::string prefix : {"", "transformer."}) {
    for (const std::string name : {"wte", "wpe", "ln_f"}) rows.push_back({"model." + name, {prefix + name}});
    for (int i = 0; i < layers; ++i) {
      const auto layer = "h." + std::to_string(i) + ".";
      for (const std::string name : {"ln_1", "ln_2"}) rows.push_back({"model." + layer + name, {prefix + layer + name}});
      for (const std::string name : {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}) {
        const auto ours = "model." + layer + name, theirs = prefix + layer + name;
        rows.push_back({ours + ".weight", {theirs + ".weight"}, {{Change::Kind::transpose}}});
        rows.push_back({ours + ".bias", {theirs + ".bias"}});
      }
    }
  }
  return rows;
}

}  // namespace

ModelSpec gpt2(const Config& config) {
  auto decoder = gpt(config, "model.");
  decoder.always_tied(config);
  decoder.intermediate = 4 * decoder.hidden;
  decoder.activation = kernels::Activation::gelu_tanh;
  const int positions = config.count("n_positions");
  if (!config.has("n_ctx")) config.settle("n_ctx", positions);  // of no use, but mlx_lm opens no model without it
  auto spec = built(decoder, "gpt2", "model.", positions);
  spec.imports.rows = hugging_face(decoder.layers);
  return spec;
}

ModelSpec gpt_bigcode(const Config& config) {
  auto decoder = gpt(config, "transformer.");
  if (!config.flag_or("multi_query", true))
    fail("model", "config.json: \"multi_query\" is false: the model's q, k and v lie head by head, and mlx_lm reads them part by part");
  decoder.kv_heads = 1;
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", true);
  decoder.mlp_bias = config.flag_or("mlp_bias", true);
  decoder.intermediate = config.has("n_inner") ? config.count("n_inner") : 4 * decoder.hidden;
  if (!config.has("n_inner")) config.settle("n_inner", decoder.intermediate);
  decoder.activation = kernels::Activation::gelu;
  return built(decoder, "gpt_bigcode", "transformer.", config.count("n_positions"));
}

}  // namespace lquant::model::family
