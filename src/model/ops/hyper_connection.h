#pragma once

#include <vector>

#include "model/op.h"

// Hyper-connections (arXiv 2409.19606) as DeepSeek-V4.1 has them: the residual is several streams side by side. A sub-layer reads one weighed sum of
// them; what it makes is added to each with a weight, and the streams are mixed by a matrix that keeps their sum (arXiv 2512.24880). All weights are
// made of the streams, in f32.
namespace lquant::model {

/// Where the parts of the state stand. Between sub-layers: streams, the next sum's weights (exact.h), what else is carried. Within one: what the
/// sub-layer reads and makes, then these, then how the streams will be mixed.
struct HyperColumns {
  int streams = 4, hidden = 0;

  Columns stream(int i) const { return {i * hidden, hidden}; }
  int weights() const { return streams * hidden; }
  /// The first column that is the family's own.
  int others() const;
};

/// The mixing weights of one sub-layer: of each token a = (streams / rms(streams)) · fnᵀ, times the scale of its kind, plus base. The next sum's are
/// σ(a) + eps, those of what is added 2 σ(a), and the matrix is softmax(a) + eps by rows, whose columns and rows are then divided by their sums, plus
/// eps, in turn: columns `rounds` times (Sinkhorn).
struct HyperConnection {
  HyperColumns columns;
  int rounds = 20;
  float eps = 1e-6f, norm_eps = 1e-6f;
  ParameterSpec fn, base, scale;  ///< [(2 + n) n, n · hidden], [(2 + n) n], [3]: of the sum, what is added, the matrix
};

/// x → x in each stream, the first as the next sum, and empty columns for what blocks carry. For the front.
struct HyperSplit final : Op {
  HyperColumns columns;
  int room = 0;

  void contents(int, int, Contents&) const override {}
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// From between sub-layers into one. The step replaces the state.
struct HyperEnter final : Op {
  HyperConnection connection;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// From within a sub-layer to behind it. The step replaces the state.
struct HyperLeave final : Op {
  HyperColumns columns;

  void contents(int, int, Contents&) const override {}
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// The weighed sum of the streams, [B, T, hidden]. For the tail.
struct HyperMerge final : Op {
  HyperColumns columns;

  void contents(int, int, Contents&) const override {}
  int stages() const override { return 1; }
  Flow start(const Scope&, const mx::array&, const mx::array& raw) const override { return {{raw}, {}}; }
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

}  // namespace lquant::model
