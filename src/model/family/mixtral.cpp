// Mixtral (arXiv 2401.04088): Llama whose MLP is a mixture in every layer, with a softmax over the experts that a token meets. mlx_lm knows neither
// windows nor scaled positions here.
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec mixtral(const Config& given) {
  nlohmann::json defaults = {{"vocab_size", 32000},       {"hidden_size", 4096},    {"intermediate_size", 14336}, {"num_hidden_layers", 32},
                             {"num_attention_heads", 32}, {"num_local_experts", 8}, {"num_experts_per_tok", 2},   {"rms_norm_eps", 1e-5}};
  if (!given.is_null("num_key_value_heads")) defaults["num_key_value_heads"] = 8;  // null: as many as heads
  const auto config = given.filled(defaults);
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.require_even_heads();
  decoder.read_tie(config, false);
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  mixture.name_as_mixtral();
  Imports imports;
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 1e6), config.flag_or("rope_traditional", false), nullptr, 0);
  auto spec = decoder.build("mixtral", rope, [&](Layer& layer) {
    auto mlp = experts_of(layer, decoder.hidden, mixture, "block_sparse_moe.gate", imports);
    mlp.router.score = Router::Score::softmax_chosen;
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
