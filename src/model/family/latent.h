#pragma once

#include <optional>
#include <string>

#include "model/family/decoder.h"
#include "model/ops/latent_attention.h"

// What families with latent attention have in common: names and sizes of its linears, and, where keys and values are made by two stacks, how
// published checkpoints, which have them in one linear, are cut.
namespace lquant::model::family {

struct Latent {
  int hidden = 0, heads = 0;
  int rank = 0, q_rank = 0;  ///< of the latent; of the queries', 0: they have none
  int nope = 0, rotated = 0, value = 0;
  float eps = 1e-6f;  ///< of the norms inside
  bool bias = false;  ///< on q_a, kv_a and o
  bool absorbed = false;
  float scale = 0;
  std::optional<RopeSpec> rope;
  bool gated = false;             ///< by g_proj, each head,
  bool gated_by_feature = false;  ///< or each of its features
  std::string output = "o_proj";

  /// kv_lora_rank, q_lora_rank (null: none; absent: `q_rank`, where that is above 0), qk_nope_head_dim, qk_rope_head_dim, v_head_dim (absent:
  /// `value`, where that is above 0), attention_bias. The scale is that of the whole query head.
  static Latent read(const Config& config, const Decoder& decoder, int q_rank = 0, int value = 0);
};

/// The op at this path below the layer's prefix; of the absorbed form with its rows.
LatentAttention latent_attention(const Layer& layer, const Latent& sizes, Imports& imports, const std::string& path = "self_attn.");

}  // namespace lquant::model::family
