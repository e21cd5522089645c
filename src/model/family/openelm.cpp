// OpenELM (arXiv 2404.14619): each layer has a number of heads and an MLP's width of its own. q, k and v are one linear, gate and up another.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

/// The multiple of `divisor` nearest to `width`, at least one and not more than a tenth below.
int divisible(double width, int divisor) {
  const auto nearest = static_cast<std::int64_t>(width + divisor / 2.0) / divisor * divisor;
  const auto multiple = std::max<std::int64_t>(divisor, nearest);
  return static_cast<int>(multiple < 0.9 * width ? multiple + divisor : multiple);
}

}  // namespace

ModelSpec openelm(const Config& config) {
  const int layers = config.count("num_transformer_layers"), divisor = config.count("ffn_dim_divisor");
  const auto heads = config.counts("num_query_heads", layers), kv_heads = config.counts("num_kv_heads", layers);
  const auto multipliers = config.numbers("ffn_multipliers", layers);
  nlohmann::json fields = {{"rms_norm_eps", config.number_or("rms_norm_eps", 1e-6)}};
  for (const char* key : {"num_transformer_layers", "model_dim", "head_dim", "vocab_size"}) fields[key] = config.count(key);
  const bool qk_norm = config.flag_or("normalize_qk_projections", true);
  const bool tied = config.flag_or("share_input_output_layers", true);
  const auto rope = make_rope(config.count("head_dim"), config.number_or("rope_freq_constant", 10000), false, nullptr, 0);

  const auto decoder_of = [&](int i) {
    auto own = fields;
    own["num_query_heads"] = heads[i];
    own["num_kv_heads"] = kv_heads[i];
    auto decoder = Decoder::read(
        Config(own),
        {.hidden = "model_dim", .layers = "num_transformer_layers", .intermediate = nullptr, .heads = "num_query_heads", .kv_heads = "num_kv_heads"});
    const double width = multipliers[i] * decoder.hidden;
    if (!(width > 0 && width < 1e9)) fail("model", "config.json: \"ffn_multipliers[{}]\" is {}; {}", i, multipliers[i], kMend);
    decoder.intermediate = divisible(width, divisor);
    auto& names = decoder.names;
    names.embedding = "transformer.token_embeddings";
    names.final_norm = "transformer.norm";
    names.layers = "transformer.layers.";
    names.attention_norm = "attn_norm";
    names.mlp_norm = "ffn_norm";
    names.qkv = "attn.qkv_proj";
    names.o = "attn.out_proj";
    names.q_norm = "attn.q_norm";
    names.k_norm = "attn.k_norm";
    names.gate_up = "ffn.proj_1";
    names.down = "ffn.proj_2";
    decoder.tied = tied;
    decoder.qk_norm = qk_norm;
    decoder.fused_attention = Decoder::Fused::in_order;
    decoder.fused_mlp = true;
    return decoder;
  };
  auto spec = decoder_of(0).outer("openelm");
  for (int i = 0; i < layers; ++i) spec.blocks.push_back(decoder_of(i).layer(i, rope).block());
  return spec;
}

}  // namespace lquant::model::family
