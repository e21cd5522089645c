#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "model/ops/groups.h"
#include "model/spec.h"

namespace lquant::model {

/// Chooses the entries that a query reads (DeepSeek-V4.1): the top_k with the largest Σ over heads of weight · relu(q · k), of small heads of its
/// own. The choice has no gradient.
struct EntryIndexer {
  int heads = 0, dim = 0, top_k = 0;
  LinearSpec q_b;               ///< [heads · dim, …] reads what the queries' linear does
  LinearSpec weights;           ///< [heads, H]
  std::optional<LinearSpec> k;  ///< [dim, head_dim], of an entry before it is turned; none: keys are an earlier layer's
  std::optional<NormSpec> k_norm;
  int block = 8;          ///< neighbouring entries that are candidates together
  int top_blocks = 0;     ///< above 0: it finds the blocks that later indexers choose among, so many with the largest scores, the last one among them
  bool narrowed = false;  ///< it chooses among the candidates that an earlier layer has found
  bool gives = false;     ///< later layers read its choice
};

/// Scores f32 [B, T, entries] of queries [B, T, heads, dim], keys [B, entries, dim] and weights [B, T, heads].
mx::array entry_scores(const EntryIndexer& indexer, const mx::array& queries, const mx::array& keys, const mx::array& weights);

struct EntryChoice {
  mx::array mask;                 ///< bool [B, T, entries]
  std::vector<mx::array> passed;  ///< columns for later layers, as the indexer says: the choice, then the candidates
};

/// By these scores; `candidates` are the columns of an earlier layer's.
EntryChoice choose_entries(const EntryIndexer& indexer, const Groups& groups, const mx::array& scores, const std::optional<mx::array>& candidates,
                           mx::Dtype dtype);

/// bool [B, T, entries]: what an earlier layer has chosen, by its columns.
mx::array entries_chosen(const Groups& groups, const mx::array& choice);

/// How many columns a choice takes, and candidates.
int choice_columns(int top_k);
int candidate_columns(int top_blocks);

}  // namespace lquant::model
