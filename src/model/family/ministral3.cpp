// Ministral 3: Llama whose queries grow with their position beyond the trained length (Llama 4's temperature), in every layer. All that concerns
// positions stands in "rope_parameters".
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec ministral3(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, true);
  const auto nested = rope_scaling(config, "rope_parameters");
  if (!nested.is_object()) fail("model", "config.json: \"rope_parameters\" is missing; {}", kMend);
  const Config rope(nested);
  QueryTemperature temperature;
  temperature.beta = static_cast<float>(rope.number("llama_4_scaling_beta"));
  temperature.period = rope.count("original_max_position_embeddings");
  const auto types =
      config.has("layer_types") ? config.texts("layer_types", decoder.layers) : std::vector<std::string>(decoder.layers, "full_attention");
  if (std::find(types.begin(), types.end(), "full_attention") == types.end())
    fail("model", "config.json: \"layer_types\" names no layer of full_attention, without which mlx_lm does not run a Ministral 3");
  return decoder.build("ministral3",
                       make_rope(decoder.head_dim, rope.number("rope_theta"), false, nested, config.count_or_none("max_position_embeddings")),
                       [&](Layer& layer) {
                         layer.attention.temperature = temperature;
                         if (types[layer.index] == "sliding_attention") layer.attention.window = config.count("sliding_window");
                       });
}

}  // namespace lquant::model::family
