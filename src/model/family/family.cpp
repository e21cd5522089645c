// The table of families and what they share. model_type picks the row; mlx_lm gives some types the code of another, and so do
// we, since what we write is run there.
#include "model/family/family.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/shown.h"

namespace lquant::model {
namespace {

using Family = ModelSpec (*)(const family::Config&);

const std::map<std::string, Family>& families() {
  static const std::map<std::string, Family> table = {
      {"ernie4_5", family::ernie4_5},
      {"gemma2", family::gemma2},
      {"gemma3_text", family::gemma3_text},
      {"glm4", family::glm4},
      {"helium", family::helium},
      {"internlm3", family::internlm3},
      {"iquestcoder", family::llama},
      {"llama", family::llama},
      {"mimo", family::mimo},
      {"mistral", family::llama},
      {"phi3", family::phi3},
      {"qwen2", family::qwen2},
      {"qwen3", family::qwen3},
      {"qwen3_moe", family::qwen3_moe},
      {"seed_oss", family::seed_oss},
      {"smollm3", family::smollm3},
      {"telechat3", family::telechat3},
      {"xverse", family::llama},
  };
  return table;
}

}  // namespace

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const auto& [name, function] : families()) names.push_back(name);
  return names;
}

ModelSpec spec_from_config(const nlohmann::json& config) {
  if (!config.is_object()) fail("model", "config.json: not an object; take the config.json of the original model");
  const auto type = JsonView("model", "config.json", config, family::kMend).at("model_type").text();
  const auto row = families().find(type);
  if (row == families().end()) {
    std::string known;
    for (const auto& name : known_model_types()) known += (known.empty() ? "" : ", ") + name;
    fail("model", "config.json: model_type \"{}\" is not supported; supported: {}", shown(type), known);
  }
  const family::Config fields(config);
  if (fields.has("model_file"))
    fail("model", "config.json: \"model_file\" names program code as the model's architecture, which lquant does not run; give a model of a known type");
  auto spec = row->second(fields);
  spec.settled = fields.settled();
  return spec;
}

namespace family {

JsonView Config::field(const char* key) const {
  const JsonView view("model", "config.json", fields_, kMend);
  if (!has(key)) fail("model", "config.json: \"{}\" is missing; {}", key, kMend);
  return view.at(key);
}

int Config::count(const char* key, int least) const {
  // Above a thousand million no model has layers, heads or vocabulary, and products of two such sizes still fit in 64 bits.
  const auto value = static_cast<int>(field(key).whole(least, 1'000'000'000));
  if (!fields_.at(key).is_number_integer()) settle(key, value);
  return value;
}

double Config::number(const char* key) const { return field(key).number(); }

bool Config::flag(const char* key) const { return field(key).flag(); }

std::vector<JsonView> Config::entries(const char* key, int size) const {
  const auto list = field(key);
  std::vector<JsonView> all;
  for (std::size_t i = 0; i < list.size(); ++i) all.push_back(list.at(i));
  if (size > 0 && static_cast<int>(all.size()) != size)
    fail("model", "config.json: \"{}\" has {} entries where the model has {} layers", key, all.size(), size);
  return all;
}

std::vector<int> Config::counts(const char* key, int size) const {
  std::vector<int> values;
  for (const auto& entry : entries(key, size)) values.push_back(static_cast<int>(entry.whole(INT32_MIN, INT32_MAX)));
  return values;
}

std::vector<std::string> Config::texts(const char* key, int size) const {
  std::vector<std::string> values;
  for (const auto& entry : entries(key, size)) values.push_back(entry.text());
  return values;
}

Decoder Decoder::read(const Config& config) {
  Decoder d;
  d.hidden = config.count("hidden_size");
  d.layers = config.count("num_hidden_layers");
  // The deepest published decoders have some two hundred layers; a file that claims more than this is damaged.
  if (d.layers > 10000) fail("model", "config.json: \"num_hidden_layers\" is {}; {}", d.layers, kMend);
  d.intermediate = config.count("intermediate_size");
  d.heads = config.count("num_attention_heads");
  d.kv_heads = config.has("num_key_value_heads") ? config.count("num_key_value_heads") : d.heads;
  if (!config.has("num_key_value_heads")) config.settle("num_key_value_heads", d.kv_heads);  // some families have no default for it in mlx_lm
  d.vocab = config.count("vocab_size");
  d.eps = static_cast<float>(config.number("rms_norm_eps"));
  d.head_dim = config.count_or_none("head_dim", 0);
  if (d.head_dim == 0) d.head_dim = d.hidden / d.heads;
  if (d.head_dim == 0) fail("model", "config.json: \"num_attention_heads\" {} exceeds \"hidden_size\" {}", d.heads, d.hidden);
  if (d.heads % d.kv_heads != 0)
    fail("model", "config.json: \"num_attention_heads\" {} is no multiple of \"num_key_value_heads\" {}", d.heads, d.kv_heads);
  if (std::int64_t{1} * d.heads * d.head_dim > std::numeric_limits<int>::max() / 4)
    fail("model", "config.json: {} heads of {} features are too many", d.heads, d.head_dim);
  return d;
}

void Decoder::read_tie(const Config& config, std::optional<bool> otherwise) {
  if (config.is_null("tie_word_embeddings")) {
    tied = false;
    head_if_present = true;
    config.settle("tie_word_embeddings", false);  // until Model::open has seen the checkpoint
  } else {
    tied = otherwise ? config.flag_or("tie_word_embeddings", *otherwise) : config.flag("tie_word_embeddings");
  }
}

nlohmann::json rope_scaling(const Config& config, const char* key) {
  auto scaling = config.value(key);
  if (scaling.is_null()) return scaling;
  if (!scaling.is_object()) fail("model", "config.json: \"{}\" is {}, not an object; {}", key, shown_json(scaling), kMend);
  const auto before = scaling.size();
  for (auto field = scaling.begin(); field != scaling.end();) field = field->is_null() ? scaling.erase(field) : std::next(field);
  if (scaling.size() != before) config.settle(key, scaling);
  return scaling;
}

namespace {

std::vector<LeftOut> usual_left_out(bool tied) {
  std::vector<LeftOut> rows;
  for (const char* name : {"inv_freq", "cos_cached", "sin_cached"})
    rows.push_back({std::string("*.rotary_emb.") + name, "rotary tables, which follow from config.json"});
  for (const char* pattern : {"position_ids", "*.position_ids"}) rows.push_back({pattern, "numbers of positions, which are counted as the model runs"});
  for (const char* pattern : {"mtp.*", "model.mtp.*"})
    rows.push_back({pattern, kNotRun});
  if (tied)
    for (const char* tensor : {"weight", "scales", "biases"})
      rows.push_back({std::string("lm_head.") + tensor, "a second head, where config.json ties the head to the embedding"});
  return rows;
}

}  // namespace

int rotated_features(const Config& config, int head_dim, std::optional<double> otherwise) {
  const double part = otherwise ? config.number_or("partial_rotary_factor", *otherwise) : config.number("partial_rotary_factor");
  if (!(part > 0 && part <= 1)) fail("model", "config.json: \"partial_rotary_factor\" is {}, not a share above 0 and up to 1; {}", part, kMend);
  return static_cast<int>(head_dim * part);
}

LinearSpec block_linear(int block, const std::string& name, Role role, int out, int in, bool bias) {
  LinearSpec linear;
  linear.path = "model.layers." + std::to_string(block) + "." + name;
  linear.role = role;
  linear.out = out;
  linear.in = in;
  linear.bias = bias;
  linear.block = block;
  return linear;
}

ModelSpec Decoder::build(const std::string& family, const std::optional<RopeSpec>& rope) const {
  ModelSpec spec;
  spec.family = family;
  spec.hidden = hidden;
  spec.vocab = vocab;
  spec.embedding = {.path = "model.embed_tokens", .role = Role::embed, .out = vocab, .in = hidden};
  spec.final_norm = {"model.norm", hidden, eps, norm_offset};
  spec.head_if_present = head_if_present;
  spec.left_out = usual_left_out(tied);
  if (!tied) spec.head = LinearSpec{.path = "lm_head", .role = Role::head, .out = vocab, .in = hidden};
  const int q = heads * head_dim, kv = kv_heads * head_dim;

  for (int i = 0; i < layers; ++i) {
    const auto norm = [&](const std::string& name, int size) {
      return NormSpec{"model.layers." + std::to_string(i) + "." + name, size, eps, norm_offset};
    };
    BlockSpec block;
    block.attention_norm = norm("input_layernorm", hidden);
    block.mlp_norm = norm(sandwich ? "pre_feedforward_layernorm" : "post_attention_layernorm", hidden);
    if (sandwich) {
      block.attention_post_norm = norm("post_attention_layernorm", hidden);
      block.mlp_post_norm = norm("post_feedforward_layernorm", hidden);
    }

    auto& attention = block.attention;
    attention.heads = heads;
    attention.kv_heads = kv_heads;
    attention.head_dim = head_dim;
    attention.scale = scale > 0 ? scale : 1 / std::sqrt(static_cast<float>(head_dim));
    attention.rope = rope;
    if (qk_norm) {
      attention.q_norm = norm("self_attn.q_norm", head_dim);
      attention.k_norm = norm("self_attn.k_norm", head_dim);
    }
    if (fused_attention) {
      attention.inputs = {block_linear(i, "self_attn.qkv_proj", Role::qkv, q + 2 * kv, hidden, qkv_bias)};
    } else {
      attention.inputs = {block_linear(i, "self_attn.q_proj", Role::q, q, hidden, qkv_bias),
                          block_linear(i, "self_attn.k_proj", Role::k, kv, hidden, qkv_bias),
                          block_linear(i, "self_attn.v_proj", Role::v, kv, hidden, qkv_bias)};
    }
    attention.output = block_linear(i, "self_attn.o_proj", Role::o, hidden, q, o_bias);

    DenseMlp mlp;
    mlp.activation = activation;
    if (fused_mlp) {
      mlp.inputs = {block_linear(i, "mlp.gate_up_proj", Role::gate_up, 2 * intermediate, hidden, mlp_bias)};
    } else {
      mlp.inputs = {block_linear(i, "mlp.gate_proj", Role::gate, intermediate, hidden, mlp_bias),
                    block_linear(i, "mlp.up_proj", Role::up, intermediate, hidden, mlp_bias)};
    }
    mlp.down = block_linear(i, "mlp.down_proj", Role::down, hidden, intermediate, mlp_bias);
    block.mlp = std::move(mlp);
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace family
}  // namespace lquant::model
