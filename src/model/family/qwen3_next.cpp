// Qwen3-Next and the text models of Qwen3.5: gated delta nets (arXiv 2412.06464) in most layers, attention with an output gate in every
// full_attention_interval-th; experts and one that every token meets, or an MLP. Qwen3.5 has the nets' products apart.

#include "base/error.h"
#include "model/family/delta_net.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// Rows of in_proj_qkvz and in_proj_ba, key head by key head.
std::vector<LinearSpec> fused_inputs(const Layer& layer, const std::string& path, int hidden, const DeltaSizes& sizes) {
  const int keys = sizes.keys(), values = sizes.values(), repeats = sizes.value_heads / sizes.key_heads, dim = sizes.key_dim;
  const int wide = repeats * sizes.value_dim, stride = 2 * dim + 2 * wide;
  auto qkvz = block_linear(layer.index, path + "in_proj_qkvz", Role::other, 2 * keys + 2 * values, hidden);
  qkvz.parts = {{Role::q, keys, 0, dim, stride},
                {Role::k, keys, dim, dim, stride},
                {Role::v, values, 2 * dim, wide, stride},
                {Role::other, values, 2 * dim + wide, wide, stride}};
  auto ba = block_linear(layer.index, path + "in_proj_ba", Role::other, 2 * sizes.value_heads, hidden);
  ba.parts = {{Role::other, sizes.value_heads, 0, repeats, 2 * repeats}, {Role::other, sizes.value_heads, repeats, repeats, 2 * repeats}};
  return {qkvz, ba};
}

std::vector<LinearSpec> inputs_apart(const Layer& layer, const std::string& path, int hidden, const DeltaSizes& sizes) {
  const int keys = sizes.keys(), values = sizes.values();
  const auto linear = [&](const char* name, int out) { return block_linear(layer.index, path + name, Role::other, out, hidden); };
  auto qkv = linear("in_proj_qkv", 2 * keys + values);
  qkv.parts = parts_in_order(keys, keys);
  qkv.parts[2].rows = qkv.parts[2].run = qkv.parts[2].stride = values;
  return {qkv, linear("in_proj_z", values), linear("in_proj_b", sizes.value_heads), linear("in_proj_a", sizes.value_heads)};
}

/// A layer's attention: each query head's rows are followed by those of its gate.
void gate_attention(Attention& attention) {
  attention.inputs[0].out *= 2;
  attention.inputs[0].parts = parts_with_gate(attention.heads, attention.head_dim);
  attention.gate = OutputGate{};
}

/// Published checkpoints hold w of norms whose weight is 1 + w, and taps as torch has them; both are converted together.
void add_ones(ModelSpec& spec, const Sign& published) {
  const auto row = [&](const NormSpec& norm) {
    spec.imports.rows.push_back({norm.weight_name(), {norm.weight_name()}, {{Change::Kind::add_one}}, {}, published});
  };
  row(spec.final_norm);
  for (const auto& block : spec.blocks)
    for (const auto* norm : block.norms())
      if (!norm->path.ends_with("linear_attn.norm")) row(*norm);
}

struct Hybrid {
  const char* family;
  RopeSpec rope;
  std::function<bool(int layer)> sparse;  ///< whether this layer has experts
  bool normalize;                         ///< their weights are divided by their sum
  bool apart;                             ///< the nets' products are
};

ModelSpec hybrid(const Config& config, const Decoder& decoder, const Hybrid& variant) {
  const int hidden = decoder.hidden, interval = layer_pattern(config, "full_attention_interval", decoder.layers, 4);
  if (interval < 2 || interval > decoder.layers)
    fail("model", "config.json: \"{}\" {} of {} layers makes layers of one kind alone, which mlx_lm does not run; {}",
         config.place("full_attention_interval"), interval, decoder.layers, kMend);
  const auto sizes = DeltaSizes::read(config);
  Mixture mixture;
  int shared = 0;
  for (int i = 0; i < decoder.layers && shared == 0; ++i) {
    if (!variant.sparse(i)) continue;
    mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
    shared = config.count("shared_expert_intermediate_size");
  }
  Imports imports;
  Sign published{.length = sizes.taps};
  auto spec = decoder.build(variant.family, variant.rope, [&](Layer& layer) {
    if ((layer.index + 1) % interval == 0) {
      gate_attention(layer.attention);
    } else {
      const auto path = layer.prefix + "linear_attn.";
      auto net = sizes.op(path);
      net.a_log.keeps_dtype = variant.apart;
      net.inputs = variant.apart ? inputs_apart(layer, path, hidden, sizes) : fused_inputs(layer, path, hidden, sizes);
      net.taps = {sizes.taps_of(path + "conv1d.weight", 2 * sizes.keys() + sizes.values(), imports)};
      net.norm = rms_norm_over(path + "norm", sizes.value_dim, decoder.eps);
      net.output = block_linear(layer.index, path + "out_proj", Role::o, hidden, sizes.values());
      published.tensor = net.taps[0].path;
      layer.mixer = std::make_shared<const GatedDelta>(net);
    }
    if (!variant.sparse(layer.index)) return;
    auto experts = experts_of(layer, hidden, mixture, "mlp.gate", imports);
    fused_experts(experts, layer.prefix + "mlp.experts.gate_up_proj", layer.prefix + "mlp.experts.down_proj", /*transposed=*/false, imports);
    experts.router.normalize = variant.normalize;
    experts.router.linear.fixed_format = kRouterFormat;
    auto every = gated_mlp(layer, "mlp.shared_expert.", hidden, shared);
    every.result_gate = block_linear(layer.index, layer.prefix + "mlp.shared_expert_gate", Role::router, 1, hidden);
    every.result_gate->fixed_format = kRouterFormat;
    layer.mlp = std::make_shared<const Experts>(experts);
    layer.shared = std::make_shared<const GatedMlp>(every);
  });
  spec.imports = std::move(imports);
  add_ones(spec, published);
  spec.left_out.push_back({"*.mtp.*", kNotRun});
  return spec;
}

}  // namespace

ModelSpec qwen3_next(const Config& given) {
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, false);
  decoder.qk_norm = true;
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  const int rotated = rotated_features(config, decoder.head_dim, std::nullopt), positions = config.count("max_position_embeddings");
  const bool mixed = config.count("num_experts", 0) > 0;
  const auto listed = layers_with_experts(config);
  const auto sparse = [&](int layer) { return mixed && listed(layer); };
  return hybrid(config, decoder,
                {"qwen3_next", make_rope(rotated, config.number("rope_theta"), false, rope_scaling(config), positions), sparse,
                 config.flag_or("norm_topk_prob", false), /*apart=*/false});
}

ModelSpec qwen3_5_text(const Config& given) {
  const auto config = given.filled({{"hidden_size", 4096},
                                    {"intermediate_size", 14336},
                                    {"num_hidden_layers", 32},
                                    {"num_attention_heads", 32},
                                    {"rms_norm_eps", 1e-6},
                                    {"vocab_size", 151936},
                                    {"num_key_value_heads", 8},
                                    {"max_position_embeddings", 131072},
                                    {"linear_num_value_heads", 64},
                                    {"linear_num_key_heads", 16},
                                    {"linear_key_head_dim", 192},
                                    {"linear_value_head_dim", 128},
                                    {"linear_conv_kernel_dim", 4},
                                    {"rope_parameters", nlohmann::json::object()}});
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.qk_norm = true;
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  const auto positions = config.child("rope_parameters").filled({{"rope_theta", 100000.0}, {"partial_rotary_factor", 0.25}});
  const int rotated = rotated_features(positions, decoder.head_dim, 0.25);
  const bool mixed = config.count_or("num_experts", 0, 0) > 0;
  return hybrid(
      config, decoder,
      {"qwen3_5",
       make_rope(rotated, positions.number("rope_theta"), false, rope_scaling(config, "rope_parameters"), config.count("max_position_embeddings")),
       [&](int) { return mixed; }, config.flag_or("norm_topk_prob", true), /*apart=*/true});
}

}  // namespace lquant::model::family
