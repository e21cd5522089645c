#pragma once

#include <functional>
#include <string>

#include "model/family/decoder.h"
#include "model/imports.h"
#include "model/ops/experts.h"
#include "model/ops/gated_mlp.h"

// What mixtures of experts have in common: stacks of experts, which published checkpoints keep one by one, a router, and experts that every token
// meets.
namespace lquant::model::family {

/// What mlx_lm packs a router in, whatever the user asked for, in families that say so.
inline constexpr codec::Format kRouterFormat{codec::Mode::affine, 8, 64};

/// Why a router stays dense in families that keep its weight outside a linear.
inline constexpr const char* kBareRouter = "mlx_lm has this router's weight as a plain array, which it never packs";

/// Sizes of a layer's experts and their names below the layer's prefix.
struct Mixture {
  int experts = 0, top_k = 0;
  int width = 0;  ///< of an expert
  bool bias = false;
  std::string stacks = "mlp.switch_mlp.";                              ///< in mlx_lm's files, [experts, out, in]
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj";  ///< gate empty: there is none
  std::string singles = "mlp.experts.";                                ///< in Hugging Face's files: + "3." + the name; empty: not one by one
  std::string single_gate, single_up, single_down;                     ///< empty: as in the stacks
  bool apart = false;                                                  ///< mlx_lm has them one by one too

  /// The names that Mixtral gave them: block_sparse_moe, single experts with w1 (gate), w2 (down) and w3 (up).
  void name_as_mixtral();
  /// Reads the fields of these names (width null: there is none); fails when a token meets more experts than there are.
  static Mixture read(const Config& config, const char* experts, const char* top_k, const char* width);
};

/// Which layers have experts, as Qwen's configs say it: every decoder_sparse_step-th but those of mlp_only_layers.
std::function<bool(int layer)> layers_with_experts(const Config& config);

/// The op without its router's score; its router is `router` below the layer's prefix. Adds the rows that make stacks of single experts.
Experts experts_of(const Layer& layer, int hidden, const Mixture& mixture, const std::string& router, Imports& imports);

/// The correction of a router's scores, which mlx_lm leaves in the dtype that it is stored in. Its whole name.
ParameterSpec correction_at(const std::string& path, int experts);

/// "n_group" and "topk_group" (1 where there is none): the groups that a choice is made in; fails where experts and groups do not fit.
/// `by_two`: a group is as good as its best two experts, else as its best.
Router::Groups read_groups(const Config& config, int experts, bool by_two = true);

/// The router of DeepSeek-V3 (arXiv 2412.19437) and those that followed it: sigmoids in f32; the choice is corrected by the tensor of this whole
/// name, which keeps its dtype, and made in topk_group of n_group groups; routed_scaling_factor, and norm_topk_prob where a token meets several
/// experts.
void read_corrected_sigmoids(const Config& config, const std::string& correction, Router& router);

/// Fails where "topk_method" names another choice, which mlx_lm refuses too.
void require_noaux(const Config& config);

/// Layers behind those of the model, which predict further tokens, are left out.
void leave_out_layers(ModelSpec& spec, const Decoder& decoder, int count);

/// Rows for experts whose gate and up stand in one tensor, [experts, 2·width, hidden] (gate first), or, `transposed`, [experts, hidden, 2·width];
/// those of down are [experts, hidden, width] or its transpose. Whole names.
void fused_experts(const Experts& op, const std::string& gate_up, const std::string& down, bool transposed, Imports& imports);

/// A gated MLP at this path below the layer's prefix ("mlp.shared_experts."), with gate_proj, up_proj and down_proj.
GatedMlp gated_mlp(const Layer& layer, const std::string& path, int hidden, int width, bool bias = false);

}  // namespace lquant::model::family
