// What llama.cpp's converter wrote into keys goes back into config.json. What it left out because llama.cpp has it in its code, the architecture
// writes from the same knowledge (Architecture::complete).
#include "checkpoint/gguf/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "checkpoint/gguf/load.h"

namespace lquant::checkpoint::gguf {

using nlohmann::json;

template <class T>
T Fields::put(const char* field, T value) {
  config_[field] = value;
  return value;
}

int Fields::count(const char* field, const char* key) { return put(field, metadata_.needed_count(metadata_.key(key))); }

int Fields::count(const char* field, const char* key, int otherwise) { return put(field, metadata_.count(metadata_.key(key)).value_or(otherwise)); }

double Fields::number(const char* field, const char* key) {
  const auto value = metadata_.number(metadata_.key(key));
  if (!value) fail("checkpoint", "{}: lacks the metadata {}; convert the original model again", metadata_.file().string(), metadata_.key(key));
  return put(field, *value);
}

double Fields::number(const char* field, const char* key, double otherwise) {
  return put(field, metadata_.number(metadata_.key(key)).value_or(otherwise));
}

namespace {

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

/// The share of a head's features that turn. Readers take the whole part of its product with the head's size, which must be all of them.
double partial_factor(int rotated, int head_dim) {
  const double part = static_cast<double>(rotated) / head_dim;
  return static_cast<int>(head_dim * part) == rotated ? part : std::nextafter(part, 2);
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
  if (!architecture.partial_rope && rotated != head_dim)
    fail("checkpoint", "{}: {} of {} features of a head turn with the position, which models of this architecture do not; it cannot be used",
         metadata.file().string(), rotated, head_dim);
  config["head_dim"] = head_dim;
  if (architecture.partial_rope) config["partial_rotary_factor"] = partial_factor(rotated, head_dim);
  config["hidden_act"] = "silu";

  const auto embedding = tensors.find("model.embed_tokens.weight");
  if (embedding == tensors.end() || embedding->second.shape.size() != 2)
    fail("checkpoint", "{}: has no matrix token_embd.weight; it is no whole language model: give the first piece of it", metadata.file().string());
  config["vocab_size"] = embedding->second.shape[0];
  config["tie_word_embeddings"] = !tensors.contains("lm_head.weight");
  config["torch_dtype"] = embedding->second.dtype == mx::bfloat16 ? "bfloat16" : embedding->second.dtype == mx::float16 ? "float16" : "float32";
  if (auto scaling = make_rope_scaling(metadata, tables, rotated, base, context); !scaling.is_null()) config["rope_scaling"] = std::move(scaling);
  for (const auto& [role, field] : {std::pair("bos", "bos_token_id"), std::pair("eos", "eos_token_id"), std::pair("padding", "pad_token_id")})
    if (const auto id = metadata.number(fmt::format("tokenizer.ggml.{}_token_id", role)); id && *id >= 0 && *id < config["vocab_size"].get<double>())
      config[field] = static_cast<int>(*id);
  if (architecture.complete) architecture.complete(metadata, tensors, config);
  return config;
}

}  // namespace lquant::checkpoint::gguf
