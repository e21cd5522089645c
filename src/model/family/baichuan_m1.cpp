// Baichuan M1 (arXiv 2502.12671): keys and values are mixed with those of the token before, by two taps a head; some layers see a window, with heads
// of another number and width; q, k and v stand in one linear. Each row of the head is used at length 1: mlx_lm norms it at every load, and so does
// this row.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

/// The decoder with heads of these numbers.
Decoder with_heads(Decoder decoder, int heads, int kv_heads) {
  if (decoder.hidden % heads != 0) fail("model", "config.json: \"hidden_size\" {} is no multiple of {} attention heads", decoder.hidden, heads);
  if (heads % kv_heads != 0) fail("model", "config.json: {} attention heads are no multiple of {} key and value heads", heads, kv_heads);
  decoder.heads = heads;
  decoder.kv_heads = kv_heads;
  decoder.head_dim = decoder.hidden / heads;
  return decoder;
}

}  // namespace

ModelSpec baichuan_m1(const Config& config) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  if (config.flag_or("tie_word_embeddings", false))
    fail("model", "config.json: \"tie_word_embeddings\" is true, and mlx_lm does not run a Baichuan M1 without a head of its own");
  decoder.tied = false;
  decoder.fused_attention = Decoder::Fused::in_order;
  decoder.names.qkv = "self_attn.W_pack";
  if (const int taps = config.count("conv_window"); taps != 2)
    fail("model", "config.json: \"conv_window\" is {}, and mlx_lm runs a Baichuan M1 with 2 alone", taps);
  const int window = config.count("sliding_window");
  const auto sliding = config.counts("sliding_window_layers");
  for (const int layer : sliding)
    if (layer < 0 || layer >= decoder.layers)
      fail("model", "config.json: \"sliding_window_layers\" names layer {} of {}; {}", layer, decoder.layers, kMend);
  const auto or_else = [&](const char* key, int otherwise) {
    const int own = config.count_or_none(key, 0);
    return own > 0 ? own : otherwise;
  };
  const auto global = with_heads(decoder, decoder.heads, decoder.kv_heads);
  const auto local =
      sliding.empty() ? global
                      : with_heads(decoder, or_else("num_swa_attention_heads", decoder.heads), or_else("num_swa_key_value_heads", decoder.kv_heads));
  const double theta = config.number("rope_theta");

  auto spec = decoder.outer("baichuan_m1");
  for (int i = 0; i < decoder.layers; ++i) {
    const bool slides = std::find(sliding.begin(), sliding.end(), i) != sliding.end();
    const auto& own = slides ? local : global;
    auto layer = own.layer(i, make_rope(own.head_dim, theta, false, nullptr, 0));
    layer.attention.window = slides ? window : 0;
    layer.attention.k_taps = ParameterSpec{layer.prefix + "self_attn.conv_k", {1, 1, own.kv_heads, 1, 2}};
    layer.attention.v_taps = ParameterSpec{layer.prefix + "self_attn.conv_v", {1, 1, own.kv_heads, 1, 2}};
    spec.blocks.push_back(layer.block());
  }
  const auto head = decoder.names.head;
  spec.imports.rows.push_back({head + ".weight", {head + ".weight"}, {{.kind = Change::Kind::unit_rows}}, head + ".scales"});
  return spec;
}

}  // namespace lquant::model::family
