// SmolLM3: Llama, but some layers (every fourth unless listed) know no positions (NoPE, arXiv 2501.18795).
#include "model/family/family.h"
#include "model/family/gguf.h"

namespace lquant::model::family {

ModelSpec smollm3(const Config& config) {
  const int layers = config.count("num_hidden_layers");
  const int interval = config.count_or("no_rope_layer_interval", 4);
  const auto listed = config.has("no_rope_layers") ? config.counts("no_rope_layers", layers) : std::vector<int>{};
  return llama_like(config, "smollm3", [&](Layer& layer) {
    const int i = layer.index;
    const bool rotates = listed.empty() ? (i + 1) % interval != 0 : listed[i] != 0;  // the list holds 1 where positions are used
    if (!rotates) layer.attention.rope.reset();
  });
}

gguf::Architecture smollm3_gguf() {
  return {.name = "smollm3",
          .model_type = "smollm3",
          .class_name = "SmolLM3ForCausalLM",
          .block = rows::join({rows::kInterleavedAttention, rows::kNorms, rows::kMlp}),
          .complete = [](const auto&, const auto& tensors, auto& config) {
            gguf_biases(tensors, config);
            config["no_rope_layer_interval"] = 4;  // of the one published model; llama.cpp has it in its code
          }};
}

}  // namespace lquant::model::family
