// Mistral Small 3.1 and its kin, Pixtral 12B (arXiv 2410.07073), LLaVA (arXiv 2304.08485): a tower and a projector before a Llama, or before the text
// model that text_config names.
#include "model/family/wrapper.h"

namespace lquant::model::family {
namespace {

/// What transformers' classes mean where text_config leaves a field out, as it does with all that equals a default. mlx_lm has no such defaults.
nlohmann::json defaults_of(const std::string& type) {
  nlohmann::json fields = {{"hidden_size", 4096}, {"num_hidden_layers", 32},      {"num_attention_heads", 32}, {"rms_norm_eps", 1e-6},
                           {"vocab_size", 32000}, {"tie_word_embeddings", false}, {"intermediate_size", 11008}};
  if (type == "mistral") fields.update({{"intermediate_size", 14336}, {"num_key_value_heads", 8}});
  return fields;
}

std::string text_type(const Config& config) { return config.child("text_config").text("model_type"); }

/// The text model, by the class that mlx_lm has for it: ministral3 and mistral4 by name, Llama for everything else.
ModelSpec text_model(const Config& config, const nlohmann::json& given = nlohmann::json::object()) {
  const auto type = text_type(config);
  const bool own = type == "ministral3" || type == "mistral4";
  const auto text = text_of(config, given, own ? nlohmann::json{{"tie_word_embeddings", false}} : defaults_of(type));
  return own ? spec_of_type(type, text) : llama(text);
}

}  // namespace

ModelSpec mistral3(const Config& config) { return wrapped(text_model(config), tower_and_projector()); }

ModelSpec pixtral(const Config& config) {
  // mlx_lm never ties this one.
  const auto text = text_of(config, {{"tie_word_embeddings", false}}, defaults_of(text_type(config)));
  return wrapped(llama(text), tower_and_projector());
}

ModelSpec llava(const Config& config) {
  // Pixtral 12B calls itself llava; mlx-vlm has its tower under its own name alone, and mlx_lm runs both names.
  const bool has_pixtral = config.has("vision_config") && config.child("vision_config").value("model_type") == "pixtral";
  if (has_pixtral && config.child("text_config").value("tie_word_embeddings") != true) {
    config.settle("model_type", "pixtral");
    return pixtral(config);
  }
  return wrapped(text_model(config), tower_and_projector(has_pixtral ? "" : "vision_model."));
}

}  // namespace lquant::model::family
