// GPT-J (Wang and Komatsuzaki, 2021): attention and a plain MLP side by side behind one layer norm, biases in the MLP and the head alone; of each
// head the first features turn, neighbours in pairs.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec gptj(const Config& given) {
  const auto config = given.filled({{"n_embd", 4096}, {"n_layer", 28}, {"n_head", 16}, {"vocab_size", 50400}, {"layer_norm_epsilon", 1e-5}});
  auto decoder = Decoder::read(config, {.hidden = "n_embd",
                                        .layers = "n_layer",
                                        .intermediate = nullptr,
                                        .heads = "n_head",
                                        .kv_heads = nullptr,
                                        .head_dim = nullptr,
                                        .eps = "layer_norm_epsilon"});
  decoder.require_even_heads();
  decoder.intermediate = 4 * decoder.hidden;
  if (const int inner = config.count_or_none("n_inner"); inner != 0 && inner != decoder.intermediate)
    fail("model", "config.json: \"n_inner\" is {}, and mlx_lm runs GPT-J with MLPs of 4 times \"n_embd\" {} alone", inner, decoder.hidden);
  decoder.tied = false;
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = decoder.mlp_bias = decoder.head_bias = true;
  decoder.parallel = decoder.plain_mlp = true;
  decoder.activation = kernels::Activation::gelu_tanh;
  auto& names = decoder.names;
  names.embedding = "model.wte";
  names.final_norm = "model.ln_f";
  names.layers = "model.h.";
  names.attention_norm = "ln_1";
  names.mlp_norm.clear();
  names.q = "attn.q_proj";
  names.k = "attn.k_proj";
  names.v = "attn.v_proj";
  names.o = "attn.out_proj";
  names.up = "mlp.fc_in";
  names.down = "mlp.fc_out";
  // In Python null and 0 are both no number of features: then whole heads turn.
  int turning = config.is_null("rotary_dim") ? 0 : config.count_or("rotary_dim", 64, 0);
  if (turning == 0) turning = decoder.head_dim;
  if (turning > decoder.head_dim || turning % 2 != 0)
    fail("model", "config.json: \"rotary_dim\" is {}, of heads of {} features; {}", turning, decoder.head_dim, kMend);
  auto spec = decoder.build("gptj", make_rope(turning, 10000, true, nullptr, 0));
  spec.imports.renames = {{"model.", "transformer."}};
  spec.left_out.push_back({"*.attn.bias", "causal masks"});
  spec.left_out.push_back({"*.attn.masked_bias", "causal masks"});
  return spec;
}

}  // namespace lquant::model::family
