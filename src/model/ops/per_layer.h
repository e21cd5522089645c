#pragma once

#include <string>
#include <vector>

#include "kernels/gated.h"
#include "model/op.h"

// Inputs that each layer has of its own (Gemma 3n and 4): made once beside the embedding for all layers, a part of the state until their layer has
// read them.
namespace lquant::model {

/// Gives the state empty columns at its end, for what blocks will carry to each other. For the front.
struct EmptyColumns final : Op {
  int width = 0;

  void contents(int, int, Contents&) const override {}
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// Appends the inputs of all layers to the state: scale · (norm(factor · projection(x)) + table_factor · table[id]), `layers` times `size` columns;
/// norm is over each layer's. Ids from table.out on count as 0. For the front. Stage 0: projection.
struct PerLayerInputs final : Op {
  int layers = 0, size = 0;
  Columns x;  ///< the embedded tokens
  LinearSpec projection, table;
  NormSpec norm;
  float factor = 1, table_factor = 1, scale = 1;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 1; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// projection(activation(gate(x)) ⊙ the layer's input), which stands in `input`'s columns of the state. Stage 0: gate; stage 1: projection.
struct PerLayerGate final : Op {
  kernels::Activation activation = kernels::Activation::gelu_tanh;
  Columns input;
  LinearSpec gate, projection;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {gate.path}; }
};

}  // namespace lquant::model
