#include "model/family/decoder.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/plain_mlp.h"

namespace lquant::model::family {

Decoder Decoder::read(const Config& config, const Keys& keys) {
  Decoder d;
  d.prefix = config.prefix();
  d.hidden = config.count(keys.hidden);
  d.layers = config.count(keys.layers);
  // The deepest published decoders have some two hundred layers; a file that claims more than this is damaged.
  if (d.layers > 10000) fail("model", "config.json: \"{}\" is {}; {}", config.place(keys.layers), d.layers, kMend);
  if (keys.intermediate) d.intermediate = config.count(keys.intermediate);
  d.vocab = config.count(keys.vocab);
  d.eps = static_cast<float>(config.number(keys.eps));
  if (!keys.heads) return d;
  d.heads = config.count(keys.heads);
  d.kv_heads = keys.kv_heads && config.has(keys.kv_heads) ? config.count(keys.kv_heads) : d.heads;
  if (keys.kv_heads && !config.has(keys.kv_heads)) config.settle(keys.kv_heads, d.kv_heads);  // some families have no default for it in mlx_lm
  if (keys.head_dim) d.head_dim = config.count_or_none(keys.head_dim, 0);
  if (d.head_dim == 0) d.head_dim = d.hidden / d.heads;
  if (d.head_dim == 0)
    fail("model", "config.json: \"{}\" {} exceeds \"{}\" {}", config.place(keys.heads), d.heads, config.place(keys.hidden), d.hidden);
  if (d.heads % d.kv_heads != 0)
    fail("model", "config.json: \"{}\" {} is no multiple of \"{}\" {}", config.place(keys.heads), d.heads, config.place(keys.kv_heads), d.kv_heads);
  if (std::int64_t{1} * d.heads * d.head_dim > std::numeric_limits<int>::max() / 4)
    fail("model", "config.json: {} heads of {} features are too many", d.heads, d.head_dim);
  return d;
}

void Decoder::read_tie(const Config& config, std::optional<bool> otherwise, const char* key) {
  if (config.is_null(key)) {
    tied = false;
    head_if_present = true;
    config.settle(key, false);  // until Model::open has seen the checkpoint
  } else {
    tied = otherwise ? config.flag_or(key, *otherwise) : config.flag(key);
  }
}

void Decoder::always_tied(const Config& config) {
  tied = true;
  drops_head = config.filled({{"tie_word_embeddings", true}}).flag("tie_word_embeddings");
}

void Decoder::require_even_heads() const {
  if (hidden % heads != 0) fail("model", "config.json: a hidden size of {} cannot be cut into {} heads; {}", hidden, heads, kMend);
}

namespace {

std::vector<LeftOut> usual_left_out(bool tied, const std::string& head) {
  std::vector<LeftOut> rows;
  for (const char* name : {"inv_freq", "cos_cached", "sin_cached"})
    rows.push_back({std::string("*.rotary_emb.") + name, "rotary tables, which follow from config.json"});
  for (const char* pattern : {"position_ids", "*.position_ids"})
    rows.push_back({pattern, "numbers of positions, which are counted as the model runs"});
  for (const char* pattern : {"mtp.*", "model.mtp.*"}) rows.push_back({pattern, kNotRun});
  if (tied)
    for (const char* tensor : {"weight", "scales", "biases"})
      rows.push_back({head + "." + tensor, "a second head, where config.json ties the head to the embedding"});
  return rows;
}

}  // namespace

Names Names::sandwich() {
  Names names;
  names.attention_post_norm = "post_attention_layernorm";
  names.mlp_norm = "pre_feedforward_layernorm";
  names.mlp_post_norm = "post_feedforward_layernorm";
  return names;
}

Names Names::under(const std::string& prefix) const {
  auto names = *this;
  for (auto* name : {&names.embedding, &names.final_norm, &names.head, &names.layers}) *name = prefix + *name;
  return names;
}

NormSpec rms_norm_over(const std::string& name, int size, float eps, bool weight) {
  NormSpec norm;
  norm.path = name;
  norm.size = size;
  norm.eps = eps;
  norm.weight = weight;
  return norm;
}

Import reshaped(const ParameterSpec& parameter) {
  return {parameter.path, {parameter.path}, {{.kind = Change::Kind::reshape, .shape = parameter.shape}}};
}

LinearSpec block_linear(int block, const std::string& path, Role role, int out, int in, bool bias) {
  LinearSpec linear;
  linear.path = path;
  linear.role = role;
  linear.out = out;
  linear.in = in;
  linear.bias = bias;
  linear.block = block;
  return linear;
}

void leave_dense(LinearSpec& linear) {
  linear.dense_why = "mlx_lm's own quantizer leaves it dense in this type of model";
  linear.only_advised = true;
}

void Layer::norm_over_all_heads() {
  if (attention.q_norm) attention.q_norm->size = attention.heads * attention.head_dim;
  if (attention.k_norm) attention.k_norm->size = attention.kv_heads * attention.head_dim;
}

BlockSpec Layer::block() const {
  const auto mixing = mixer ? mixer : std::make_shared<const Attention>(attention);
  BlockSpec block;
  if (parallel) {
    Step step;
    if (!mlp_norm) step.before = attention_norm;
    step.branches = {{mlp_norm ? attention_norm : std::nullopt, mixing, attention_post_norm, scale}, {mlp_norm, mlp, mlp_post_norm, scale}};
    block.steps = {step};
  } else {
    block.steps = {{.branches = {{attention_norm, mixing, attention_post_norm, scale}}}, {.branches = {{mlp_norm, mlp, mlp_post_norm, scale}}}};
    if (shared) {
      Step sum{.before = mlp_norm, .branches = {{.op = mlp, .scale = scale}, {.op = shared, .scale = scale}}, .after = mlp_post_norm};
      block.steps[1] = std::move(sum);
    }
  }
  return block;
}

NormSpec Decoder::norm_at(const std::string& name) const {
  NormSpec spec;
  spec.path = name;
  spec.size = hidden;
  spec.eps = eps;
  spec.offset = norm_offset;
  spec.kind = norm;
  spec.weight = norm_weight;
  spec.bias = norm_bias;
  return spec;
}

Layer Decoder::layer(int i, const std::optional<RopeSpec>& rope) const {
  Layer layer;
  layer.index = i;
  layer.prefix = prefix + names.layers + std::to_string(i) + ".";
  layer.scale = branch_scale;
  layer.parallel = parallel;
  const auto at = [&](const std::string& name) { return name.empty() ? std::nullopt : std::optional(norm_at(layer.prefix + name)); };
  layer.attention_norm = at(names.attention_norm);
  layer.attention_post_norm = at(names.attention_post_norm);
  layer.mlp_norm = at(names.mlp_norm);
  layer.mlp_post_norm = at(names.mlp_post_norm);
  const auto linear = [&](const std::string& name, Role role, int out, int in, bool bias) {
    return block_linear(i, layer.prefix + name, role, out, in, bias);
  };

  auto& attention = layer.attention;
  const int q = heads * head_dim, kv = kv_heads * head_dim;
  attention.heads = heads;
  attention.kv_heads = kv_heads;
  attention.head_dim = head_dim;
  attention.scale = scale > 0 ? scale : 1 / std::sqrt(static_cast<float>(head_dim));
  attention.rope = rope;
  if (qk_norm) {
    const auto over_head = [&](const std::string& name) {
      auto spec = norm_at(layer.prefix + name);
      spec.size = head_dim;
      return spec;
    };
    attention.q_norm = over_head(names.q_norm);
    attention.k_norm = over_head(names.k_norm);
  }
  if (fused_attention == Fused::apart) {
    attention.inputs = {linear(names.q, Role::q, q, hidden, qkv_bias), linear(names.k, Role::k, kv, hidden, qkv_bias),
                        linear(names.v, Role::v, kv, hidden, qkv_bias)};
  } else {
    attention.inputs = {linear(names.qkv, Role::qkv, q + 2 * kv, hidden, qkv_bias)};
    attention.inputs[0].parts = fused_attention == Fused::in_order ? parts_in_order(q, kv) : parts_by_group(kv_heads, heads / kv_heads, head_dim);
  }
  attention.output = linear(names.o, Role::o, hidden, q, o_bias);

  if (plain_mlp) {
    PlainMlp mlp;
    mlp.activation = activation;
    mlp.up = linear(names.up, Role::up, intermediate, hidden, mlp_bias);
    mlp.down = linear(names.down, Role::down, hidden, intermediate, mlp_bias);
    layer.mlp = std::make_shared<const PlainMlp>(mlp);
    return layer;
  }
  GatedMlp mlp;
  mlp.activation = activation;
  if (fused_mlp) {
    mlp.inputs = {linear(names.gate_up, Role::gate_up, 2 * intermediate, hidden, mlp_bias)};
    mlp.inputs[0].parts = {Part::piece(Role::gate, 0, intermediate), Part::piece(Role::up, intermediate, intermediate)};
  } else {
    mlp.inputs = {linear(names.gate, Role::gate, intermediate, hidden, mlp_bias), linear(names.up, Role::up, intermediate, hidden, mlp_bias)};
  }
  mlp.down = linear(names.down, Role::down, hidden, intermediate, mlp_bias);
  layer.mlp = std::make_shared<const GatedMlp>(mlp);
  return layer;
}

ModelSpec Decoder::outer(const std::string& family) const {
  const auto own = names.under(prefix);
  ModelSpec spec;
  spec.family = family;
  spec.hidden = hidden;
  spec.vocab = vocab;
  spec.embedding = {.path = own.embedding, .role = Role::embed, .out = vocab, .in = hidden};
  spec.final_norm = norm_at(own.final_norm);
  spec.head_if_present = head_if_present;
  spec.left_out = usual_left_out(tied && drops_head, own.head);
  if (!tied) spec.head = LinearSpec{.path = own.head, .role = Role::head, .out = vocab, .in = hidden, .bias = head_bias};
  return spec;
}

ModelSpec Decoder::build(const std::string& family, const std::optional<RopeSpec>& rope, const std::function<void(Layer&)>& change) const {
  auto spec = outer(family);
  for (int i = 0; i < layers; ++i) {
    auto own = layer(i, rope);
    if (change) change(own);
    spec.blocks.push_back(own.block());
  }
  return spec;
}

}  // namespace lquant::model::family
