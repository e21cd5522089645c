// Rows of GGUF's architectures. Each file of a family has its own; none registers itself, for a static library's linker drops what nobody names.
#include "model/family/gguf.h"

#include "model/family/family.h"

namespace lquant::model::family {

const std::vector<gguf::Architecture>& gguf_architectures() {
  // clang-format off: a row a line
  static const std::vector<gguf::Architecture> table = {
      gemma_gguf(),   gemma2_gguf(), gemma3_gguf(), llama_gguf(),
      mixtral_gguf(),  // calls itself llama too; stands behind it (find_architecture)
      phi3_gguf(),    qwen2_gguf(),  qwen3_gguf(),  qwen3_moe_gguf(), smollm3_gguf(),
  };
  // clang-format on
  return table;
}

std::vector<rows::Row> rows::join(std::initializer_list<std::span<const Row>> parts) {
  std::vector<Row> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::vector<rows::Row> rows::changed(gguf::Change change, std::initializer_list<std::span<const Row>> parts) {
  auto all = join(parts);
  for (auto& row : all) row.change = change;
  return all;
}

void gguf_biases(const gguf::Tensors& tensors, nlohmann::json& config) {
  config["attention_bias"] = tensors.contains("model.layers.0.self_attn.q_proj.bias");
  config["mlp_bias"] = tensors.contains("model.layers.0.mlp.gate_proj.bias");
}

}  // namespace lquant::model::family
