#include "oracle/model_random.h"

#include <mlx/mlx.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>

namespace lquant::oracle {

namespace mx = mlx::core;
using nlohmann::json;

json tiny_config(const std::string& model_type) {
  if (const auto target = model::run_as(model_type); target != model_type && model_type != "mistral") {
    auto config = tiny_config(target);
    config["model_type"] = model_type;
    return config;
  }
  json config = {{"model_type", model_type}, {"hidden_size", 64},
                 {"num_hidden_layers", 2},   {"intermediate_size", 96},
                 {"num_attention_heads", 4}, {"num_key_value_heads", 2},
                 {"head_dim", 16},           {"rms_norm_eps", 1e-5},
                 {"vocab_size", 48},         {"max_position_embeddings", 128},
                 {"rope_theta", 10000.0},    {"tie_word_embeddings", true}};
  if (model_type == "llama") config["layer_types"] = {"sliding_attention", "full_attention"}, config["sliding_window"] = 5;
  if (model_type == "mistral") config["tie_word_embeddings"] = false, config["sliding_window"] = nullptr, config["head_dim"] = nullptr;
  if (model_type == "smollm3") config["no_rope_layers"] = {1, 0}, config["attention_bias"] = true;
  if (model_type == "phi3") config["partial_rotary_factor"] = 0.75, config["tie_word_embeddings"] = false;
  if (model_type == "ernie4_5") config["use_bias"] = true;
  if (model_type == "internlm3") config["qkv_bias"] = true;
  for (const char* untied : {"seed_oss", "helium", "glm4"})
    if (model_type == untied) config.update({{"tie_word_embeddings", false}, {"attention_bias", true}});
  if (model_type == "helium") config["mlp_bias"] = true;
  if (model_type == "glm4") config["partial_rotary_factor"] = 0.5;
  if (model_type == "gemma") config["num_key_value_heads"] = 1;
  if (model_type == "glm") config["attention_bias"] = true;
  if (model_type == "exaone") config.update({{"num_layers", 2}, {"layer_norm_epsilon", 1e-5}, {"mlp_bias", true}});
  if (model_type == "exaone4") config.update({{"rope_scaling", nullptr}, {"sliding_window", 5}, {"sliding_window_pattern", "LG"}});
  if (model_type == "minicpm")
    config.update({{"tie_word_embeddings", false}, {"dim_model_base", 24}, {"scale_depth", 1.4}, {"scale_emb", 3.0}});
  if (model_type == "hunyuan_v1_dense") config["rope_scaling"] = {{"type", "dynamic"}, {"alpha", 50.0}, {"factor", 1.0}};
  if (model_type == "qwen") config.update({{"intermediate_size", 192}, {"kv_channels", 16}, {"layer_norm_epsilon", 1e-5}, {"no_bias", false}});
  if (model_type == "lille-130m")
    config.update({{"block_size", 128}, {"layer_norm_eps", 1e-5}, {"n_embd", 64}, {"n_head", 4}, {"n_kv_heads", 2}, {"n_layer", 2}});
  if (model_type == "openelm") {
    config.update({{"model_dim", 64}, {"num_transformer_layers", 2}, {"ffn_dim_divisor", 16}});
    config.update({{"num_query_heads", {4, 6}}, {"num_kv_heads", {2, 3}}, {"ffn_multipliers", {0.5, 1.5}}});
  }
  if (model_type == "plamo") config["n_shared_head"] = 2;
  if (model_type == "gemma2") config["query_pre_attn_scalar"] = 24, config["attn_logit_softcapping"] = 5.0, config["final_logit_softcapping"] = 8.0;
  if (model_type == "gemma3_text") config["sliding_window"] = 5, config["sliding_window_pattern"] = 2, config["query_pre_attn_scalar"] = 24;
  if (model_type == "gemma4_text")
    config.update({{"num_hidden_layers", 4}, {"num_kv_shared_layers", 2}, {"sliding_window", 5}, {"sliding_window_pattern", 2}, {"global_head_dim", 24},
                   {"hidden_size_per_layer_input", 32}, {"vocab_size_per_layer_input", 40}});
  if (model_type == "qwen3_moe") {
    config.update({{"num_experts", 5}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 32}, {"decoder_sparse_step", 1}});
    config.update({{"mlp_only_layers", json::array()}, {"norm_topk_prob", true}});
  }
  // Sizes, norms and positions of models that name them otherwise.
  config.update({{"layer_norm_eps", 1e-5}, {"norm_epsilon", 1e-5}, {"norm_eps", 1e-5}, {"layer_norm_epsilon", 1e-5}});
  config.update({{"n_embd", 64}, {"n_layer", 2}, {"n_head", 4}, {"n_positions", 32}, {"n_ctx", 32}, {"n_inner", 96}});
  if (model_type == "cohere") config.update({{"use_qk_norm", true}, {"layer_norm_bias", true}, {"attention_bias", true}, {"logit_scale", 0.25}});
  if (model_type == "cohere2") config.update({{"sliding_window", 5}, {"sliding_window_pattern", 2}, {"logit_scale", 0.25}});
  if (model_type == "olmo2") config.update({{"attention_bias", true}, {"mlp_bias", true}, {"tie_word_embeddings", false}});
  if (model_type == "olmo3") config.update({{"sliding_window", 5}, {"layer_types", {"sliding_attention", "full_attention"}}});
  if (model_type == "phi") config["partial_rotary_factor"] = 0.5;
  if (model_type == "stablelm") config.update({{"partial_rotary_factor", 0.25}, {"use_qkv_bias", true}, {"qk_layernorm", true}});
  if (model_type == "granite") {
    config.update({{"attention_bias", true}, {"mlp_bias", false}, {"tie_word_embeddings", false}, {"logits_scaling", 3.0}});
    config.update({{"attention_multiplier", 0.2}, {"embedding_multiplier", 1.5}, {"residual_multiplier", 0.7}});
  }
  if (model_type == "gpt_neox") config.update({{"rotary_emb_base", 10000}, {"rotary_pct", 0.5}});
  if (model_type == "nemotron") config.update({{"hidden_act", "relu2"}, {"attention_bias", true}, {"mlp_bias", true}});
  return config;
}

model::Tensors random_tensors(const model::ModelSpec& spec, std::uint64_t seed) {
  model::Tensors tensors;
  const auto normal = [&](const mx::Shape& shape, float mean, float deviation) {
    return mx::random::normal(shape, mx::float32, mean, deviation, mx::random::key(seed++));
  };
  for (const auto* linear : spec.linears()) {
    mx::Shape shape = {linear->out, linear->in}, bias = {linear->out};
    if (linear->experts > 0) shape.insert(shape.begin(), linear->experts), bias.insert(bias.begin(), linear->experts);
    const float deviation = linear->role == model::Role::embed ? 1.0f : 1.2f / std::sqrt(static_cast<float>(linear->in));
    tensors.emplace(linear->path + ".weight", normal(shape, 0, deviation));
    if (linear->bias) tensors.emplace(linear->path + ".bias", normal(bias, 0, 0.3f));
  }
  const auto add_norm = [&](const model::NormSpec& norm) {
    if (norm.weight)
      for (int piece = 0; piece < std::max(1, norm.pieces); ++piece)
        tensors.emplace(norm.weight_name(piece), normal(norm.rows > 0 ? mx::Shape{norm.rows, norm.size} : mx::Shape{norm.size}, 1 - norm.offset, 0.3f));
    if (norm.bias) tensors.emplace(norm.bias_name(), normal({norm.size}, 0, 0.3f));
  };
  for (const auto& block : spec.blocks) {
    const auto contents = block.contents();
    for (const auto* norm : contents.norms) add_norm(*norm);
    // A factor of a whole layer is near 1: near 0 the layers before it would not count.
    for (const auto* parameter : contents.parameters) tensors.emplace(parameter->path, normal(parameter->shape, parameter->shape == mx::Shape{1} ? 1 : 0, 0.1f));
  }
  for (const auto* norm : spec.outer_norms()) add_norm(*norm);
  for (auto& [name, value] : tensors) value.eval();
  return tensors;
}

std::string name_of(const std::string& model_type) {
  auto name = model_type;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

std::string name_of(mx::Dtype dtype) { return dtype == mx::float32 ? "f32" : dtype == mx::bfloat16 ? "bf16" : "f16"; }

double unit_of(mx::Dtype dtype) { return dtype == mx::float32 ? 0x1p-24 : dtype == mx::bfloat16 ? 0x1p-8 : 0x1p-11; }

double rounding_of(int blocks, mx::Dtype dtype) { return 2 * std::sqrt(10.0 * blocks) * unit_of(dtype) + 100 * 0x1p-24; }

double distance_between(const mx::array& a, const mx::array& b) {
  const auto f32 = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  const auto norm = [](const mx::array& x) { return std::sqrt(mx::sum(mx::square(x)).item<float>()); };
  return norm(mx::subtract(f32(a), f32(b))) / norm(f32(b));
}

void pack(model::Tensors& tensors, model::Formats& formats, const std::string& path, codec::Format format) {
  const auto parts = mx::quantize(tensors.at(path + ".weight"), format.group_size, format.bits, codec::to_string(format.mode));
  tensors.insert_or_assign(path + ".weight", parts[0]);
  tensors.insert_or_assign(path + ".scales", parts[1]);
  if (parts.size() > 2) tensors.insert_or_assign(path + ".biases", parts[2]);
  formats.insert_or_assign(path, format);
}

Folder::Folder(const json& config, const model::Tensors& tensors) {
  static std::atomic<int> count = 0;
  path_ = std::filesystem::temp_directory_path() / ("lquant-model-test-" + std::to_string(getpid()) + "-" + std::to_string(count++));
  std::filesystem::create_directories(path_);
  std::ofstream(path_ / "config.json") << config.dump();
  mx::save_safetensors((path_ / "model.safetensors").string(), tensors, {{"format", "mlx"}});
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace lquant::oracle
