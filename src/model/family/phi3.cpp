// Phi-3, 3.5 and 4-mini (arXiv 2404.14219): q, k, v in one linear, gate and up in another; part of a head's features may turn;
// long contexts by LongRoPE, also called su. A scaling of another kind than these and linear is ignored, as by mlx_lm, which wants "type" and
// "long_factor" in every one: what lacks them is written so that it is read there as it was here.
#include "base/error.h"
#include "model/family/family.h"
#include "model/family/gguf.h"

namespace lquant::model::family {
namespace {

/// What make_rope is to know of "rope_scaling".
nlohmann::json phi3_scaling(const Config& config) {
  auto scaling = rope_scaling(config);
  if (!scaling.is_object() || scaling.empty()) return nullptr;
  const JsonView view("model", "config.json: rope_scaling", scaling, kMend);
  auto type = scaling.contains("type") ? view.at("type").text() : "";
  if (type.empty()) type = scaling.contains("rope_type") ? view.at("rope_type").text() : "default";
  if (type != "longrope" && type != "su" && type != "linear") {
    config.settle("rope_scaling", nullptr);
    return nullptr;
  }
  auto written = scaling;
  written["type"] = type;
  if (type == "linear") {
    if (!scaling.contains("long_factor"))
      fail("model",
           "config.json: rope_scaling of type linear has no \"long_factor\", without which mlx_lm does not open a Phi-3 model; add an empty list");
    written["factor"] = Config(scaling).number("factor");  // 2 for 2.0 is refused there
  } else {
    scaling["original_max_position_embeddings"] = config.count_or("original_max_position_embeddings", 4096);
    type = "longrope";
  }
  if (written != config.value("rope_scaling") || (type == "linear" && !scaling["factor"].is_number_float())) config.settle("rope_scaling", written);
  scaling["type"] = type;
  return scaling;
}

}  // namespace

ModelSpec phi3(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  decoder.read_tie(config, false);
  decoder.fused_attention = Decoder::Fused::in_order;
  decoder.fused_mlp = true;
  const int turning = rotated_features(config, decoder.head_dim, 1);

  const auto scaling = phi3_scaling(config);
  const bool interleaved = scaling.is_object() && scaling.at("type") != "linear" ? false : config.flag_or("rope_traditional", false);
  return decoder.build(
      "phi3", make_rope(turning, config.number_or("rope_theta", 10000), interleaved, scaling, config.count_or("max_position_embeddings", 131072)));
}

/// Special tokens take the blanks behind them, but for those that stand between documents; nothing in the file says so.
gguf::Architecture phi3_gguf() {
  return {.name = "phi3",
          .model_type = "phi3",
          .class_name = "Phi3ForCausalLM",
          .block = rows::join({rows::kFusedAttention, rows::kNorms, rows::kFusedMlp}),
          .partial_rope = true,
          .complete =
              [](const auto& metadata, const auto&, auto& config) {
                gguf::Fields fields(metadata, config);
                fields.count("original_max_position_embeddings", "rope.scaling.original_context_length", config["max_position_embeddings"]);
                if (metadata.count(metadata.key("attention.sliding_window")).value_or(0) > 0)
                  fields.count("sliding_window", "attention.sliding_window");
              },
          .takes_blanks = [](std::string_view token) { return token != "<unk>" && token != "<s>" && token != "<|endoftext|>"; }};
}

}  // namespace lquant::model::family
