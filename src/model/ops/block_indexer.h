#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "kernels/attention.h"
#include "model/op.h"
#include "model/rope.h"

namespace lquant::model {

/// Which keys the queries of an attention read where there are more than top_k blocks of them (MiniMax-M3): all of the blocks with the largest
/// scores. A block's score is the largest q · k of its keys that the query may see, of small heads of the indexer's own; each chooses for as many
/// neighbouring query heads. Blocks are counted from a text's first token. The choice has no gradient.
struct BlockIndexer {
  int heads = 0, dim = 0;
  int block = 0, top_k = 0;  ///< keys of a block, and blocks that a query reads
  int local = 0;             ///< the query's own block and those before it that are always among them
  RopeSpec rope;             ///< of a head's first features
  LinearSpec q;              ///< [heads · dim, H]
  LinearSpec k;              ///< [dim, H]; its key serves all heads
  NormSpec q_norm, k_norm;   ///< over each head

  std::vector<const LinearSpec*> linears() const { return {&q, &k}; }
  std::vector<const NormSpec*> norms() const { return {&q_norm, &k_norm}; }

  /// From attention's own input h [B, T, H]: bool [B, query_heads, T, S], S keys with those that the cache holds, of which it keeps the indexer's
  /// own; none where there are few enough. `args` are the attention's: what a query may see.
  std::optional<mx::array> chosen_keys(const Scope& scope, const mx::array& h, int query_heads, const kernels::AttentionArgs& args) const;
};

}  // namespace lquant::model
