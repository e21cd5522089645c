// Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923), Qwen3-VL and Qwen3.5: text models, dense or with experts, behind a tower. Their rotary
// positions have three axes, which agree for text. Qwen2's fields stand at the top of config.json in most files and, since transformers 5, in
// text_config.
#include "base/error.h"
#include "model/family/mixture.h"
#include "model/family/wrapper.h"

namespace lquant::model::family {
namespace {

std::vector<Tower> tower() { return {{"the vision tower", "vision_tower.", {"visual.", "model.visual.", "model.vision_tower."}}}; }

/// text_config, with the tie that transformers 5 writes beside it. Where neither says it the checkpoint tells.
Config tied_as_told(const Config& config, nlohmann::json otherwise = nlohmann::json::object()) {
  auto given = nlohmann::json::object();
  if (!config.child("text_config").has("tie_word_embeddings")) given["tie_word_embeddings"] = config.value("tie_word_embeddings");
  otherwise["model_type"] = config.text("model_type") + "_text";
  return text_of(config, given, otherwise);
}

/// "rope_scaling" in the words of transformers 4, which mlx-vlm asks for, of the "rope_parameters" of transformers 5.
void settle_sections(const Config& text) {
  const auto nested = text.value("rope_parameters");
  if (text.has("rope_scaling") || !nested.is_object() || !nested.contains("mrope_section")) return;
  text.settle("rope_scaling", {{"type", "mrope"}, {"mrope_section", nested.at("mrope_section")}});
}

/// transformers 5 gives the tower's type an ending that mlx-vlm does not know.
void settle_tower(const Config& config) {
  if (!config.has("vision_config")) return;
  const auto vision = config.child("vision_config");
  const auto type = config.text("model_type");
  if (vision.value("model_type") == type + "_vision") vision.settle("model_type", type);
}

}  // namespace

ModelSpec qwen2_vl(const Config& config) {
  settle_tower(config);
  if (!config.has("text_config")) {
    auto spec = wrapped(qwen2(config.under(kTextPrefix)), tower());
    spec.text_config.clear();
    return spec;
  }
  const auto text = tied_as_told(config);
  auto spec = wrapped(qwen2(text), tower());
  settle_sections(text);
  // mlx-vlm reads these fields at the top alone, and mlx_lm there when there is no text_config.
  const auto fields = text.written();
  for (const auto& [key, value] : fields.items())
    if (key != "model_type" && key != "architectures") config.settle(key.c_str(), value);
  config.remove("text_config");
  spec.text_config.clear();
  return spec;
}

ModelSpec qwen3_vl(const Config& config) {
  settle_tower(config);
  const auto text = tied_as_told(config);
  auto spec = wrapped(qwen3(text), tower());
  // Nested they mean the same to mlx_lm; mlx-vlm reads them at the top of text_config alone.
  const auto nested = text.value("rope_parameters");
  if (!text.has("rope_theta") && nested.is_object()) text.settle("rope_theta", nested.at("rope_theta"));
  settle_sections(text);
  return spec;
}

ModelSpec qwen3_vl_moe(const Config& config) {
  settle_tower(config);
  // transformers 5 always divides the kept probabilities by their sum, and does not write that.
  const auto text = with_flat_positions(tied_as_told(config, {{"norm_topk_prob", true}}));
  auto spec = wrapped(qwen3_moe(text), tower());
  if (spec.tied())
    fail("model", "config.json: \"tie_word_embeddings\" is true, and mlx_lm loads no qwen3_vl_moe without a head of its own; give an untied model");
  spec.head_if_present = false;
  settle_sections(text);
  // Hugging Face has an expert's gate and up in one tensor [experts, in, out], and the other way round than mlx_lm.
  for (const auto& block : spec.blocks) {
    const auto* mlp = find_op<Experts>(block);
    if (!mlp) continue;
    const auto stacks = mlp->down.path.substr(0, mlp->down.path.rfind("switch_mlp.")) + "experts.";
    fused_experts(*mlp, stacks + "gate_up_proj", stacks + "down_proj", /*transposed=*/true, spec.imports);
  }
  return spec;
}

/// Without text_config the file is the text model's; its tensors' names and its outputs are the same.
ModelSpec qwen3_5(const Config& config) {
  settle_tower(config);
  if (config.has("text_config")) return wrapped(qwen3_5_text(tied_as_told(config)), tower());
  auto spec = wrapped(qwen3_5_text(config.under(kTextPrefix)), tower());
  spec.text_config.clear();
  return spec;
}

}  // namespace lquant::model::family
