// gpt-oss (arXiv 2508.10925): mixtures with biases everywhere, windows in every second layer, a sink in each head's softmax, gates between limits
// whose other factor has 1 added. The published experts are mxfp4, their gate and up in one matrix, row by row in turn.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// The published form of one layer's experts: gate and up in turn. As mxfp4 blocks rows are outputs; in 16 bits (transformers) they are inputs.
void published_experts(const std::string& path, const Experts& op, Imports& imports) {
  const auto every_second = [](const LinearSpec& linear, int axis, int first) {
    return Change{.kind = Change::Kind::slice, .axis = axis, .first = first, .count = linear.out, .stride = 2};
  };
  const auto gate_up = path + "gate_up_proj", down = path + "down_proj";
  const Change transpose{Change::Kind::transpose};
  for (const int first : {0, 1}) {
    const auto& linear = first == 0 ? *op.gate : op.up;
    imports.rows.push_back({linear.path + ".weight", {gate_up}, {every_second(linear, -1, first), transpose}, gate_up + "_blocks"});
    imports.rows.push_back({linear.path + ".weight", {gate_up}, {every_second(linear, -2, first)}});
    imports.rows.push_back({linear.path + ".bias", {gate_up + "_bias"}, {every_second(linear, -1, first)}});
  }
  imports.rows.push_back({op.down.path + ".weight", {down}, {transpose}, down + "_blocks"});
  imports.rows.push_back({op.down.path + ".weight", {down}});
  imports.rows.push_back({op.down.path + ".bias", {down + "_bias"}});
}

std::vector<std::string> kinds_of_layers(const Config& config, int layers) {
  std::vector<std::string> kinds;
  if (config.has("layer_types")) {
    kinds = config.texts("layer_types", layers);
  } else if (layers % 2 != 0) {
    fail("model", "config.json: of {} layers without \"layer_types\" mlx_lm runs all but the last; {}", layers, kMend);
  } else {
    for (int i = 0; i < layers; ++i) kinds.push_back(i % 2 == 0 ? "sliding_attention" : "full_attention");
  }
  for (const char* kind : {"sliding_attention", "full_attention"})
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end())
      fail("model", "config.json: \"layer_types\" has no {}, and mlx_lm runs no gpt-oss model without", kind);
  return kinds;
}

}  // namespace

ModelSpec gpt_oss(const Config& given) {
  const auto config = with_flat_positions(given).filled({{"num_hidden_layers", 36},
                                                         {"num_local_experts", 128},
                                                         {"num_experts_per_tok", 4},
                                                         {"vocab_size", 201088},
                                                         {"rms_norm_eps", 1e-5},
                                                         {"hidden_size", 2880},
                                                         {"intermediate_size", 2880},
                                                         {"head_dim", 64},
                                                         {"num_attention_heads", 64},
                                                         {"num_key_value_heads", 8},
                                                         {"sliding_window", 128},
                                                         {"rope_theta", 150000}});
  auto decoder = Decoder::read(config);
  decoder.tied = false;
  decoder.qkv_bias = decoder.o_bias = true;
  const auto kinds = kinds_of_layers(config, decoder.layers);
  const int window = config.count("sliding_window");
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  mixture.bias = true;
  mixture.stacks = "mlp.experts.";
  mixture.singles.clear();
  Imports imports;
  const auto rope = make_rope(decoder.head_dim, config.number("rope_theta"), false, rope_scaling(config), 0);
  auto spec = decoder.build("gpt_oss", rope, [&](Layer& layer) {
    if (kinds[layer.index] != "full_attention") layer.attention.window = window;
    layer.attention.sinks = ParameterSpec{layer.prefix + "self_attn.sinks", {decoder.heads}};
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.router", imports);
    mlp.clamp = kernels::ClampedGate{.alpha = 1.702f, .limit = 7, .shift = 1};
    mlp.router.linear.bias = true;
    mlp.router.linear.fixed_format = kRouterFormat;
    mlp.router.score = Router::Score::softmax_chosen;
    published_experts(layer.prefix + mixture.stacks, mlp, imports);
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  for (const auto& [key, value] : {std::pair{"swiglu_limit", 7.0}, {"swiglu_alpha", 1.702}})
    if (config.number_or(key, value) != value)
      spec.warnings.push_back(
          fmt::format("config.json: \"{}\" {} is not followed: mlx_lm 0.32.2, in which outputs run, has {} for every model of this type",
                      config.place(key), config.number(key), value));
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
