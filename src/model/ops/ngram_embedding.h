#pragma once

#include <vector>

#include "model/op.h"

namespace lquant::model {

/// What a token's last tokens add to its embedding (LongCat-Flash-Lite): (x + Σ_i projection_i(table_i[id_i])) / (1 + tables). Tables are for n-grams
/// of 2, then of 3 … tokens, `per_length` each; of an n-gram id_i = Σ_m token_(t − m) · (vocab^m mod R) mod R, where R are the table's rows and
/// tokens before the text's first count 0. For the front. Stage 0: projections, each of an input of its own.
struct NgramEmbedding final : Op {
  int vocab = 0, per_length = 1;
  std::vector<LinearSpec> tables, projections;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 1; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
};

}  // namespace lquant::model
