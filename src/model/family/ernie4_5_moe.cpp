// ERNIE 4.5's mixtures: neighbouring features turn together, every moe_layer_interval-th layer from one to another has a mixture, with experts that
// every token meets. The router's correction of the choice is not read by mlx_lm, and so not here, for output would choose otherwise there.
#include <algorithm>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// A number, or of several the one that `choose` finds.
template <class Choose>
int one_of(const Config& config, const char* key, int otherwise, const Choose& choose) {
  if (!config.has(key)) return otherwise;
  if (!config.value(key).is_array()) return config.count(key, INT32_MIN);
  const auto all = config.counts(key);
  if (all.empty()) fail("model", "config.json: \"{}\" is an empty list; {}", config.place(key), kMend);
  return *choose(all.begin(), all.end());
}

Router::Score score_of(const Config& config) {
  const auto name = config.has("moe_gate_act") ? config.text("moe_gate_act") : "softmax";
  if (name == "sigmoid") return Router::Score::sigmoid;
  if (name != "softmax") fail("model", "config.json: \"moe_gate_act\" is {}, and mlx_lm knows softmax and sigmoid; {}", shown(name), kMend);
  return Router::Score::softmax;
}

}  // namespace

ModelSpec ernie4_5_moe(const Config& given) {
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, std::nullopt);
  const bool bias = config.flag("use_bias");
  decoder.qkv_bias = decoder.o_bias = decoder.mlp_bias = bias;
  const bool own_width = config.count_or("moe_intermediate_size", 0, 0) > 0;
  auto mixture = Mixture::read(config.filled({{"moe_k", 1}}), "moe_num_experts", "moe_k", own_width ? "moe_intermediate_size" : "intermediate_size");
  mixture.bias = bias;
  const int shared = config.count_or("moe_num_shared_experts", 0, 0), step = config.count_or("moe_layer_interval", 1);
  const auto smallest = [](auto from, auto to) { return std::min_element(from, to); };
  const auto largest = [](auto from, auto to) { return std::max_element(from, to); };
  const int first = one_of(config, "moe_layer_start_index", 0, smallest);
  const int last = one_of(config, "moe_layer_end_index", decoder.layers - 1, largest);
  const auto score = score_of(config);
  Imports imports;
  const auto rope = make_rope(decoder.head_dim, config.number("rope_theta"), true, nullptr, config.count("max_position_embeddings"));
  auto spec = decoder.build("ernie4_5_moe", rope, [&](Layer& layer) {
    const int i = layer.index;
    if ((i + 1) % step != 0 || i < first || i > last) return;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    mlp.router.score = score;
    mlp.router.f32 = mlp.router.normalize = true;
    mlp.router.floor = 1e-12f;
    layer.mlp = std::make_shared<const Experts>(mlp);
    if (shared == 0) return;
    layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, shared * mixture.width, bias));
  });
  for (const char* pattern : {"*mtp_block.*", "*mtp_linear_proj.*", "*mtp_hidden_norm.*", "*mtp_emb_norm.*"})
    spec.left_out.push_back({pattern, kNotRun});
  spec.left_out.push_back({"*e_score_correction_bias", "corrections of the routers' choices, which mlx_lm does not read"});
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
