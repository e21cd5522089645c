#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/gated.h"
#include "model/op.h"

namespace lquant::model {

/// down(activation(up(x))). Stage 0: up; stage 1: down.
struct PlainMlp final : Op {
  kernels::Activation activation = kernels::Activation::gelu_tanh;
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
