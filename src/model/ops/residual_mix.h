#pragma once

#include <vector>

#include "model/op.h"

// Attention over residuals (Kimi K3): every few layers the residual is put on a list and starts anew, and each sub-layer reads a mixture of the
// list's and the one that is being summed. In the state that one comes first, then the list, which grows from block to block; within a sub-layer,
// before them, what the sub-layer reads and makes.
namespace lquant::model {

/// Σ p_i · x_i over the list and the residual, where p is the softmax of the dot products of x_i / rms(x_i) with norm ⊙ projection, in f32. Of an
/// empty list the residual itself.
struct ResidualMix {
  int hidden = 0;
  float eps = 1e-5f;
  ParameterSpec norm, projection;  ///< [hidden], [1, hidden]

  void contents(Contents& all) const;
  /// Of the state's columns from `first` on: the residual, then the list.
  mx::array of(const Scope& scope, const mx::array& state, int first) const;
};

/// Into the first sub-layer of a block. The step replaces the state.
struct ResidualEnter final : Op {
  ResidualMix mix;
  bool starts = false;  ///< the residual is put on the list, and nothing takes its place before the sub-layer has run

  void contents(int, int, Contents& all) const override { mix.contents(all); }
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// From the first sub-layer into the second. The step replaces the state.
struct ResidualTurn final : Op {
  ResidualMix mix;
  bool starts = false;  ///< as the block's ResidualEnter: what the sub-layer has made is the residual

  void contents(int, int, Contents& all) const override { mix.contents(all); }
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// Out of a sub-layer: what it has made is added to the residual. The step replaces the state.
struct ResidualLeave final : Op {
  int hidden = 0;

  void contents(int, int, Contents&) const override {}
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// The mixture alone, [B, T, hidden]. For the tail.
struct ResidualMerge final : Op {
  ResidualMix mix;

  void contents(int, int, Contents& all) const override { mix.contents(all); }
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

}  // namespace lquant::model
