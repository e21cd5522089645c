// Gemma 3 (arXiv 2503.19786) and Gemma 4 with pictures and sound: the text model is gemma3_text or gemma4_text. The vocabulary's size stands beside
// text_config, and the wrappers have defaults of their own for the heads.
#include "model/family/wrapper.h"

namespace lquant::model::family {
namespace {

/// text_config with the vocabulary's size, which mlx_lm takes from the top alone, where transformers 5 no longer writes it.
Config text_with_vocab(const Config& config, int vocab_otherwise, const nlohmann::json& otherwise) {
  const auto inner = config.child("text_config");
  const int vocab = config.has("vocab_size") ? config.count("vocab_size") : inner.count_or("vocab_size", vocab_otherwise);
  if (!config.has("vocab_size")) config.settle("vocab_size", vocab);
  return text_of(config, {{"vocab_size", vocab}}, otherwise);
}

}  // namespace

ModelSpec gemma3(const Config& config) {
  const auto text = text_with_vocab(config, 262208, {{"model_type", "gemma3_text"}, {"num_attention_heads", 8}, {"num_key_value_heads", 4}});
  return wrapped(gemma3_text(text), tower_and_projector("vision_model."));
}

ModelSpec gemma4(const Config& config) {
  const auto text = text_with_vocab(config, 262144, {{"model_type", "gemma4_text"}, {"num_attention_heads", 8}, {"num_key_value_heads", 1}});
  std::vector<Tower> parts;
  for (const auto& [name, what] : {std::pair{"vision_tower.", "the vision tower"},
                                   {"audio_tower.", "the audio tower"},
                                   {"embed_vision.", "the projector of pictures"},
                                   {"embed_audio.", "the projector of sounds"},
                                   {"vision_embedder.", "the embedding of pictures"},
                                   {"multi_modal_projector.", "the projector"}})
    parts.push_back({what, name, {std::string("model.") + name}});
  return wrapped(gemma4_text(text), parts);
}

}  // namespace lquant::model::family
