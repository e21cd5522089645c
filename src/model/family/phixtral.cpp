// Phixtral: Phi-2's attention beside a mixture of its plain MLPs, both behind one layer norm. Fields and names are those of Phi-2's first files.
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec phixtral(const Config& given) {
  // mlx_lm's norms have nn.LayerNorm's eps, whatever config.json says.
  const auto config = given.filled(
      {{"num_vocab", 51200}, {"model_dim", 2560}, {"num_heads", 32}, {"num_layers", 32}, {"num_experts_per_tok", 2}, {"num_local_experts", 4}});
  const nlohmann::json sizes = {{"hidden_size", config.count("model_dim")},
                                {"num_attention_heads", config.count("num_heads")},
                                {"num_hidden_layers", config.count("num_layers")},
                                {"vocab_size", config.count("num_vocab")},
                                {"rms_norm_eps", 1e-5}};
  auto decoder = Decoder::read(Config(sizes).under(config.prefix()), {.intermediate = nullptr, .head_dim = nullptr});
  decoder.require_even_heads();
  decoder.tied = false;
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = decoder.qkv_bias = decoder.o_bias = decoder.head_bias = true;
  decoder.parallel = true;
  decoder.fused_attention = Decoder::Fused::in_order;
  auto& names = decoder.names;
  names.embedding = "transformer.embd.wte", names.final_norm = "lm_head.ln", names.head = "lm_head.linear", names.layers = "transformer.h.";
  names.attention_norm = "ln", names.qkv = "mixer.Wqkv", names.o = "mixer.out_proj";
  names.mlp_norm.clear();
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", nullptr);
  mixture.width = 4 * decoder.hidden;
  mixture.bias = true;
  mixture.stacks = "moe.switch_mlp.", mixture.singles = "moe.mlp.";
  mixture.gate.clear(), mixture.up = "fc1", mixture.down = "fc2";
  Imports imports;
  auto spec = decoder.build("phixtral", make_rope(config.count_or("rotary_dim", 32), 10000, false, nullptr, 0), [&](Layer& layer) {
    layer.attention.wide = true;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "moe.gate", imports);
    mlp.activation = kernels::Activation::gelu_tanh;
    mlp.router.score = Router::Score::softmax_chosen;
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
