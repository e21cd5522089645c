#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"

namespace lquant::model {

/// A gated short convolution (LFM2, arXiv 2511.23404): out(C ⊙ conv(B ⊙ x)), where B, C and x are the three parts of one product and conv is causal,
/// over a few tokens of each channel by itself, without an activation. A cache keeps the last inputs of conv. Stage 0: input; stage 1: output.
struct ShortConv final : Op {
  LinearSpec input;                   ///< parts B, C, x in this order
  ParameterSpec taps;                 ///< [channels, taps, 1]; the last tap is the token's own
  std::optional<ParameterSpec> bias;  ///< [channels], of conv
  LinearSpec output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {input.path}; }
  std::vector<Edge> edges() const override;
  Traits traits() const override { return {.mixed_by = 1}; }
};

}  // namespace lquant::model
