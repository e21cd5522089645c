// Llama 4: experts of which a token meets one, whose input the router's weight scales, beside one that all meet. Three layers of four see chunks of
// the text, have rotary positions and weightless norms behind them; the fourth sees everything, knows no positions, and its queries grow with theirs.
// llama4_text is another class of mlx_lm's: dense, without chunks and temperatures, for small models (MobileLLM).
#include "base/error.h"
#include "model/family/mixture.h"
#include "model/family/wrapper.h"

namespace lquant::model::family {
namespace {

/// What transformers' class means where text_config leaves a field out.
const nlohmann::json kDefaults = {{"vocab_size", 202048},
                                  {"hidden_size", 5120},
                                  {"intermediate_size", 8192},
                                  {"intermediate_size_mlp", 16384},
                                  {"num_hidden_layers", 48},
                                  {"num_attention_heads", 40},
                                  {"num_key_value_heads", 8},
                                  {"head_dim", 128},
                                  {"max_position_embeddings", 131072},
                                  {"rms_norm_eps", 1e-5},
                                  {"attention_bias", false},
                                  {"num_experts_per_tok", 1},
                                  {"num_local_experts", 16},
                                  {"interleave_moe_layer_step", 1},
                                  {"use_qk_norm", true},
                                  {"attention_chunk_size", 8192}};

Names names_of_llama4() {
  Names names;
  names.gate = "feed_forward.gate_proj";
  names.up = "feed_forward.up_proj";
  names.down = "feed_forward.down_proj";
  return names;
}

void norm_heads(Attention& attention, float eps) { attention.q_norm = attention.k_norm = rms_norm_over("", attention.head_dim, eps, false); }

ModelSpec text_model(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.names = names_of_llama4();
  decoder.tied = false;
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  decoder.intermediate = config.count("intermediate_size_mlp");
  constexpr int kPeriod = 4;  // of layers, fixed in mlx_lm
  if (decoder.layers < kPeriod)
    fail("model", "config.json: \"{}\" is {}, and mlx_lm runs no Llama 4 with less than {} layers", config.place("num_hidden_layers"), decoder.layers,
         kPeriod);
  const auto scaling = rope_scaling(config);
  if (scaling.is_null()) config.settle("rope_scaling", nullptr);  // mlx_lm wants it to be there
  const auto rope = make_rope(decoder.head_dim, config.number("rope_theta"), /*interleaved=*/true, scaling, config.count("max_position_embeddings"));
  const bool qk_norm = config.flag("use_qk_norm");
  const int chunk = config.count("attention_chunk_size");
  std::optional<QueryTemperature> temperature;
  if (config.truthy("attn_temperature_tuning", true))
    temperature = {.beta = static_cast<float>(config.number_or("attn_scale", 0.1)), .period = config.count_or("floor_scale", 8192), .first = 1};

  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  if (mixture.top_k != 1)
    fail("model", "config.json: \"{}\" is {}, and mlx_lm runs a Llama 4 with 1 alone", config.place("num_experts_per_tok"), mixture.top_k);
  mixture.stacks = "feed_forward.experts.";
  mixture.singles = "";
  const int step = config.count("interleave_moe_layer_step");
  Imports imports;
  auto spec = decoder.build("llama4", rope, [&](Layer& layer) {
    auto& attention = layer.attention;
    if ((layer.index + 1) % kPeriod == 0) {
      attention.rope.reset();
      attention.temperature = temperature;
    } else {
      attention.chunk = chunk;
      attention.norms_behind_rope = true;
      if (qk_norm) norm_heads(attention, 1e-6f);
    }
    if (layer.index % step != step - 1) return;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "feed_forward.router", imports);
    mlp.router.score = Router::Score::sigmoid_chosen;
    mlp.router.f32 = mlp.router.rounded = true;
    mlp.weighs_inputs = true;
    const auto stacks = layer.prefix + mixture.stacks;
    fused_experts(mlp, stacks + "gate_up_proj", stacks + "down_proj", /*transposed=*/true, imports);
    layer.mlp = std::make_shared<const Experts>(mlp);
    layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "feed_forward.shared_expert.", decoder.hidden, mixture.width));
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace

ModelSpec llama4(const Config& config) {
  auto text = with_flat_positions(text_of(config, nlohmann::json::object(), kDefaults));
  if (!text.has("rope_theta")) text = text.with({{"rope_theta", 500000.0}});
  return wrapped(text_model(text), {{"the vision tower", "vision_model.", {"model.vision_model."}},
                                    {"the projector", "multi_modal_projector.", {"model.multi_modal_projector."}}});
}

ModelSpec llama4_text(const Config& config) {
  const auto flat = with_flat_positions(config);
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.names = names_of_llama4();
  decoder.names.head = "output";
  decoder.read_tie(config, std::nullopt);
  decoder.intermediate = config.count("intermediate_size_mlp");
  const bool qk_norm = config.flag("use_qk_norm");
  const auto rotated = config.counts("no_rope_layers", decoder.layers);
  const auto rope = make_rope(decoder.head_dim, flat.number("rope_theta"), /*interleaved=*/true, nullptr, 0);
  auto spec = decoder.build("llama4_text", rope, [&](Layer& layer) {
    if (rotated[layer.index] == 0) layer.attention.rope.reset();
    if (qk_norm) norm_heads(layer.attention, decoder.eps);
  });
  // transformers calls the head otherwise.
  if (decoder.tied) {
    spec.embedding.dense_why = "mlx_lm multiplies by Llama 4's tied embedding as it is stored";
    spec.left_out.push_back({"lm_head.weight", "a second head, where config.json ties the head to the embedding"});
  } else {
    spec.imports.rows.push_back({spec.head->path, {"lm_head"}});
  }
  return spec;
}

}  // namespace lquant::model::family
