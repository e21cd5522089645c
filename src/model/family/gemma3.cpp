// Gemma 3 with pictures (arXiv 2503.19786): the text model is gemma3_text, the tower SigLIP. The vocabulary's size stands beside text_config, and the wrapper
// has defaults of its own for the heads.
#include "model/family/wrapper.h"

namespace lquant::model::family {

ModelSpec gemma3(const Config& config) {
  const auto inner = config.child("text_config");
  // mlx_lm takes it from the top alone, where transformers 5 no longer writes it.
  const int vocab = config.has("vocab_size") ? config.count("vocab_size") : inner.count_or("vocab_size", 262208);
  if (!config.has("vocab_size")) config.settle("vocab_size", vocab);
  const auto text = text_of(config, {{"vocab_size", vocab}}, {{"model_type", "gemma3_text"}, {"num_attention_heads", 8}, {"num_key_value_heads", 4}});
  return wrapped(gemma3_text(text), tower_and_projector("vision_model."));
}

}  // namespace lquant::model::family
