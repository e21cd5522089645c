#pragma once

#include <string>
#include <vector>

#include "kernels/gated.h"
#include "model/op.h"

// Alternating updates (arXiv 2301.13310) as Gemma 3n has them: the residual is several streams side by side. A block predicts all of them from what
// it gets, runs attention and MLP on the active one, and corrects all of them by what came out.
namespace lquant::model {

/// What prediction and correction share: tanh of a router's product, in f32, and coefficients made of it, clipped in f32.
struct AltUp {
  int streams = 4, active = 0, hidden = 0;
  float clip = 0;  ///< of the coefficients' weights; 0: none
  NormSpec router_norm;
  LinearSpec router;      ///< [streams, hidden]; it is read twice in a block
  ParameterSpec weights;  ///< of the coefficients: [streams², streams] to predict, [streams, streams] to correct

  /// f32 [B, T, entries].
  mx::array coefficients(const Scope& scope, const mx::array& router_input) const;
  mx::array router_input(const Scope& scope, const mx::array& x) const;
  Columns stream(int i) const { return {i * hidden, hidden}; }
};

/// From streams and what follows them in the state to: the active stream's prediction, all predictions, what follows. The step replaces the state.
struct AltUpPredict final : Op {
  AltUp altup;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 1; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// From what attention and MLP made of the active prediction, all predictions, and what follows, back to streams and what follows. The step replaces
/// the state. The router and its norm are the prediction's and are not told again.
struct AltUpCorrect final : Op {
  AltUp altup;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 1; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// norm(projection(activation(gate(scale ⊙ active stream)) ⊙ the layer's input)), for every stream but the first; the step's columns are these
/// streams. Stage 0: gate; stage 1: projection.
struct AltUpInputs final : Op {
  int streams = 4;
  Columns active, input;
  ParameterSpec scale;  ///< [hidden]
  bool scales = true;   ///< whether `scale` is used; mlx_lm wants it to be there in any case
  LinearSpec gate, projection;
  NormSpec norm;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// x + norm(right(left(x))) of the normed input x (a learned residual layer of low rank), which it adds itself: so no scale can be moved into the
/// norm before it. Stage 0: left; stage 1: right.
struct Laurel final : Op {
  LinearSpec left, right;
  NormSpec norm;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<Edge> edges() const override;
};

/// Streams of the embedded tokens: x, and its products, each as large as x. For the front. Stage 0: the projections.
struct AltUpSplit final : Op {
  std::vector<LinearSpec> projections;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 1; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

/// The mean of the first stream and of the others' products, each as large as the first. For the tail. Stage 0: the projections.
struct AltUpMerge final : Op {
  int hidden = 0;
  std::vector<LinearSpec> projections;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 1; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

}  // namespace lquant::model
