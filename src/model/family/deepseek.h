#pragma once

#include <optional>

#include "model/family/family.h"
#include "model/family/latent.h"
#include "model/family/mixture.h"

// What DeepSeek's models and their relatives have in common: dense layers first, then mixtures beside experts that every token meets.
namespace lquant::model::family {

struct Mixtures {
  Mixture sizes;
  int shared = 0;  ///< width of the experts that every token meets; 0: there are none
  int first = 0, every = 1;
  Router router;     ///< its linear says its fixed format alone, and its correction is named below the layer's prefix
  bool bare = true;  ///< the router's weight is no linear in mlx_lm
  bool shared_bias = false;

  /// n_routed_experts (null: there are none) and what belongs to it. The router has no score yet. `experts`: mlx_lm's default of n_routed_experts, 0
  /// where that is none.
  static std::optional<Mixtures> read(const Config& config, int experts = 0);
  /// Where mlx_lm demands these fields, and DeepSeek-V3's router with them.
  static Mixtures demanded(const Config& config);
  bool at(int layer) const { return layer >= first && layer % every == 0; }
  void put(Layer& layer, int hidden, Imports& imports) const;
};

/// The router of DeepSeek-V3: sigmoid, a correction of the choice; the weights are divided by their sum plus epsilon.
void choose_by_sigmoid(const Config& config, float epsilon, Mixtures& mixtures);

/// The square of YaRN's gain of the scores: 1 where the object under `key` asks for none.
double yarn_gain(const Config& config, const char* key = "rope_scaling");

/// Layers behind the last are those of MTP, which are left out.
void leave_out_next_layers(const Config& config, const Decoder& decoder, ModelSpec& spec);

}  // namespace lquant::model::family
