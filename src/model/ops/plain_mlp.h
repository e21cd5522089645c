#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/gated.h"
#include "model/op.h"

namespace lquant::model {

/// xIELU (arXiv 2411.13010), an activation with numbers of its own in the checkpoint: p·x² + beta·x for x > 0, else n·(expm1(min(x, eps)) − x) +
/// beta·x, with p = softplus(alpha_p) and n = beta + softplus(alpha_n). Each is of shape [].
struct Xielu {
  ParameterSpec alpha_p, alpha_n, beta, eps;
};

/// down(activation(up(x))). Stage 0: up; stage 1: down.
struct PlainMlp final : Op {
  kernels::Activation activation = kernels::Activation::gelu_tanh;
  std::optional<Xielu> xielu;  ///< in place of the activation
  LinearSpec up, down;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {up.path}; }
  std::vector<Edge> edges() const override;
};

}  // namespace lquant::model
