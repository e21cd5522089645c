// Lille 130M: Llama under names of its own, q, k and v in one linear, neighbouring features turn together, and the MLP's width follows from the
// residual's.
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec lille_130m(const Config& config) {
  auto decoder = Decoder::read(config, {.hidden = "n_embd",
                                        .layers = "n_layer",
                                        .intermediate = nullptr,
                                        .heads = "n_head",
                                        .kv_heads = "n_kv_heads",
                                        .head_dim = nullptr,
                                        .eps = "layer_norm_eps"});
  config.count("block_size");  // mlx_lm opens no model without it
  // 8/3 of the residual's width to the nearest multiple of 256; of two as near to the even one, as Python rounds.
  decoder.intermediate = 256 * static_cast<int>(std::nearbyint(static_cast<double>(std::int64_t{8} * decoder.hidden / 3) / 256));
  if (decoder.intermediate == 0) fail("model", "config.json: \"n_embd\" {} leaves the MLP no width; {}", decoder.hidden, kMend);
  auto& names = decoder.names;
  names.embedding = "transformer.tok_embeddings";
  names.final_norm = "transformer.norm";
  names.layers = "transformer.layers.";
  names.attention_norm = "attention.norm";
  names.mlp_norm = "feed_forward.norm";
  names.qkv = "attention.qkv_proj";
  names.o = "attention.out_proj";
  names.gate = "feed_forward.gate_proj";
  names.up = "feed_forward.up_proj";
  names.down = "feed_forward.down_proj";
  decoder.fused_attention = Decoder::Fused::in_order;
  auto spec = decoder.build("lille-130m", make_rope(decoder.head_dim, config.number("rope_theta"), true, nullptr, 0));
  spec.left_out.push_back({"*rotary_emb*", "rotary tables, which follow from config.json"});
  return spec;
}

}  // namespace lquant::model::family
