// What llama.cpp's converter wrote into keys goes back into config.json; what it left out because llama.cpp has it in its code (the
// scale of Gemma's scores, its layers' pattern, Qwen's normalised experts) is written from the same knowledge.
#include "checkpoint/gguf/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "checkpoint/gguf/load.h"

namespace lquant::checkpoint::gguf {

using nlohmann::json;
using Tensors = std::map<std::string, TensorInfo, std::less<>>;

namespace {

class Fields {
 public:
  Fields(const Metadata& metadata, json& config) : metadata_(metadata), config_(config) {}

  int count(const char* field, const char* key) { return put(field, metadata_.needed_count(metadata_.key(key))); }
  int count(const char* field, const char* key, int otherwise) { return put(field, metadata_.count(metadata_.key(key)).value_or(otherwise)); }
  double number(const char* field, const char* key, double otherwise) { return put(field, metadata_.number(metadata_.key(key)).value_or(otherwise)); }
  double number(const char* field, const char* key) {
    const auto value = metadata_.number(metadata_.key(key));
    if (!value) fail("checkpoint", "{}: lacks the metadata {}; convert the original model again", metadata_.file().string(), metadata_.key(key));
    return put(field, *value);
  }
  template <class T>
  T put(const char* field, T value) {
    config_[field] = value;
    return value;
  }

 private:
  const Metadata& metadata_;
  json& config_;
};

/// Keys that would change what the model computes and that no supported architecture has.
void refuse_extras(const Metadata& metadata) {
  for (const char* key : {"attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale", "embedding_scale", "residual_scale",
                          "expert_shared_count", "expert_weights_scale"}) {
    const auto value = metadata.number(metadata.key(key));
    if (value && *value != 0 && *value != 1)
      fail("checkpoint",
           "{}: sets {} to {}, which models of this architecture do not do as lquant knows them; it may be a variant that is not supported",
           metadata.file().string(), metadata.key(key), *value);
  }
}

/// 27 thousand million parameters and nothing else have these numbers of layers; llama.cpp tells Gemma's sizes by them too.
bool is_largest_gemma(const std::string& type, int layers) { return (type == "gemma2" && layers == 46) || (type == "gemma3_text" && layers == 62); }

/// Every n-th layer is global; as a number, or as a list that says of each layer whether it is local.
int sliding_pattern(const Metadata& metadata, int layers) {
  const auto key = metadata.key("attention.sliding_window_pattern");
  constexpr int kUsual = 6;  // of all published Gemma 3
  try {
    return metadata.count(key).value_or(kUsual);
  } catch (const Error&) {
    const auto local = metadata.numbers(key).value_or(std::vector<double>{});
    for (int n = 1; n <= layers; ++n) {
      bool fits = static_cast<int>(local.size()) == layers;
      for (int i = 0; fits && i < layers; ++i) fits = (local[static_cast<std::size_t>(i)] != 0) == ((i + 1) % n != 0);
      if (fits) return n;
    }
    fail("checkpoint", "{}: its {} is no regular pattern, which mlx_lm cannot run", metadata.file().string(), key);
  }
}

void add_gemma(Fields& fields, const Metadata& metadata, json& config, int hidden, int layers, int heads, int head_dim) {
  const std::string type = config["model_type"];
  config["hidden_activation"] = "gelu_pytorch_tanh";
  if (type == "gemma") return;
  config["query_pre_attn_scalar"] = is_largest_gemma(type, layers) ? hidden / heads : head_dim;
  if (type == "gemma2") {
    fields.number("attn_logit_softcapping", "attn_logit_softcapping", 50);
    fields.number("final_logit_softcapping", "final_logit_softcapping", 30);
    fields.count("sliding_window", "attention.sliding_window", 4096);
    return;
  }
  fields.number("rope_local_base_freq", "rope.freq_base_swa", 10000);
  const int window = fields.count("sliding_window", "attention.sliding_window", 0);
  config["sliding_window_pattern"] = window == 0 ? 1 : sliding_pattern(metadata, layers);  // 1: every layer is global
}

void add_experts(Fields& fields, const Tensors& tensors, json& config, int layers) {
  const std::string type = config["model_type"];
  if (type == "mixtral") {
    fields.count("num_local_experts", "expert_count");
    fields.count("num_experts_per_tok", "expert_used_count");
  }
  if (type != "qwen3_moe") return;
  fields.count("num_experts", "expert_count");
  fields.count("num_experts_per_tok", "expert_used_count");
  fields.count("moe_intermediate_size", "expert_feed_forward_length");
  config["decoder_sparse_step"] = 1;
  config["norm_topk_prob"] = true;
  config["mlp_only_layers"] = json::array();
  for (int i = 0; i < layers; ++i)
    if (tensors.contains(fmt::format("model.layers.{}.mlp.gate_proj.weight", i))) config["mlp_only_layers"].push_back(i);
}

void add_phi(const Metadata& metadata, json& config, int head_dim, int rotated, int context) {
  config["original_max_position_embeddings"] = metadata.count(metadata.key("rope.scaling.original_context_length")).value_or(context);
  double part = static_cast<double>(rotated) / head_dim;
  if (static_cast<int>(head_dim * part) != rotated) part = std::nextafter(part, 2);  // readers take the product's whole part
  config["partial_rotary_factor"] = part;
  if (const int window = metadata.count(metadata.key("attention.sliding_window")).value_or(0); window > 0) config["sliding_window"] = window;
}

}  // namespace

Tables read_tables(const std::vector<Piece>& pieces) {
  Tables tables;
  for (const auto& piece : pieces)
    for (const auto& tensor : piece.header.tensors) {
      if (!is_table(tensor.name) || tensor.name.starts_with("blk.")) continue;
      constexpr int kMost = 4096;  // half a head's features: no head has as many
      if (tensor.shape.size() != 1 || tensor.shape[0] > kMost || tensor.shape[0] < 1 || !tensor.type->decode || tensor.type->elements != 1)
        fail("checkpoint", "{}: tensor {} is no list of factors; convert the original model again", piece.file.path().string(), tensor.name);
      const auto values = read(piece.file, {&tensor}, mx::float32);
      const auto* data = values.data<float>();
      if (!std::all_of(data, data + values.size(), [](float v) { return std::isfinite(v) && v > 0; }))
        fail("checkpoint", "{}: tensor {} holds a factor that is not positive; the file is damaged: download it again", piece.file.path().string(),
             tensor.name);
      tables[tensor.name.substr(0, tensor.name.rfind('.'))].assign(data, data + values.size());
    }
  return tables;
}

json make_config(const Metadata& metadata, const Architecture& architecture, const Tensors& tensors, const Tables& tables) {
  refuse_extras(metadata);
  json config{{"model_type", architecture.model_type}, {"architectures", {architecture.class_name}}};
  Fields fields(metadata, config);
  const int hidden = fields.count("hidden_size", "embedding_length");
  const int layers = fields.count("num_hidden_layers", "block_count");
  const int heads = fields.count("num_attention_heads", "attention.head_count");
  fields.count("num_key_value_heads", "attention.head_count_kv", heads);
  fields.count("intermediate_size", "feed_forward_length");
  fields.number("rms_norm_eps", "attention.layer_norm_rms_epsilon");
  const int context = fields.count("max_position_embeddings", "context_length");
  const double base = fields.number("rope_theta", "rope.freq_base", 10000);
  if (heads < 1) fail("checkpoint", "{}: its {} is 0; the file is damaged", metadata.file().string(), metadata.key("attention.head_count"));
  const int head_dim = metadata.count(metadata.key("attention.key_length")).value_or(hidden / heads);
  if (head_dim < 1) fail("checkpoint", "{}: its heads have no features; the file is damaged", metadata.file().string());
  if (metadata.count(metadata.key("attention.value_length")).value_or(head_dim) != head_dim)
    fail("checkpoint", "{}: its keys and values have different lengths, which lquant's models do not; such a model cannot be used",
         metadata.file().string());
  const int rotated = metadata.count(metadata.key("rope.dimension_count")).value_or(head_dim);
  const std::string type = architecture.model_type;
  if (type != "phi3" && rotated != head_dim)
    fail("checkpoint", "{}: {} of {} features of a head turn with the position, which models of this architecture do not; it cannot be used",
         metadata.file().string(), rotated, head_dim);
  config["head_dim"] = head_dim;

  const auto embedding = tensors.find("model.embed_tokens.weight");
  if (embedding == tensors.end() || embedding->second.shape.size() != 2)
    fail("checkpoint", "{}: has no matrix token_embd.weight; it is no whole language model: give the first piece of it", metadata.file().string());
  config["vocab_size"] = embedding->second.shape[0];
  config["tie_word_embeddings"] = !tensors.contains("lm_head.weight");
  config["torch_dtype"] = embedding->second.dtype == mx::bfloat16 ? "bfloat16" : embedding->second.dtype == mx::float16 ? "float16" : "float32";
  if (type == "llama" || type == "smollm3") {
    config["attention_bias"] = tensors.contains("model.layers.0.self_attn.q_proj.bias");
    config["mlp_bias"] = tensors.contains("model.layers.0.mlp.gate_proj.bias");
  }
  if (type == "smollm3") config["no_rope_layer_interval"] = 4;
  if (type.starts_with("gemma")) {
    add_gemma(fields, metadata, config, hidden, layers, heads, head_dim);
  } else {
    config["hidden_act"] = "silu";
  }
  add_experts(fields, tensors, config, layers);
  if (type == "phi3") add_phi(metadata, config, head_dim, rotated, context);
  if (auto scaling = make_rope_scaling(metadata, tables, rotated, base, context); !scaling.is_null()) config["rope_scaling"] = std::move(scaling);
  for (const auto& [role, field] : {std::pair("bos", "bos_token_id"), std::pair("eos", "eos_token_id"), std::pair("padding", "pad_token_id")})
    if (const auto id = metadata.number(fmt::format("tokenizer.ggml.{}_token_id", role)); id && *id >= 0 && *id < config["vocab_size"].get<double>())
      config[field] = static_cast<int>(*id);
  return config;
}

}  // namespace lquant::checkpoint::gguf
