#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"
#include "model/ops/entry_choice.h"
#include "model/ops/groups.h"
#include "model/rope.h"

namespace lquant::model {

/// Makes an entry of each group of tokens: Σ softmax(gate) · kv over the group, in f32, normed; then turned to the place of the group's first token
/// and rounded to fp4.
struct Compressor {
  LinearSpec kv;                   ///< [head_dim, H]
  std::optional<LinearSpec> gate;  ///< none where a group is one token
  NormSpec norm;
};

/// What layers give to later ones, as columns of the state that this op sees. With a cache entries and keys are fetched from the layer that made
/// them.
struct CompressedColumns {
  Columns entries, keys, choice, candidates;
};

/// DeepSeek-V4.1's attention: one head of keys, which are the values too, serves all query heads. A query reads the last tokens through a window,
/// and beside them entries that stand for groups of tokens, which this layer or an earlier one has made and chosen. The last features of a head turn,
/// and those of the result are turned back. Keys are rounded to fp8, entries to fp4, as that model's cache has them. The result's heads are taken in
/// groups, each through a matrix of its own.
///
/// Stages: q_a, kv, the compressor's, the indexer's weights; q_b, the indexer's q_b and k; o_a; o_b.
struct CompressedAttention final : Op {
  int heads = 0, head_dim = 0, rotated = 0, window = 0, groups = 1;
  RopeSpec rope;
  LinearSpec q_a, q_b, kv;
  NormSpec q_a_norm, kv_norm;
  ParameterSpec sinks;  ///< [heads]: a logit of each head's softmax that has no value
  LinearSpec o_a, o_b;  ///< a sliced stack [groups, rank, heads · head_dim / groups]; [H, groups · rank]
  int ratio = 0;        ///< tokens that an entry stands for
  std::optional<Compressor> compressor;
  std::optional<EntryIndexer> indexer;
  int entries_of = -1, keys_of = -1;  ///< the blocks that make what is read; −1: nothing is
  bool chosen = true;                 ///< without an indexer those entries are read that an earlier layer has chosen; else all
  CompressedColumns columns;
  bool rounds = true;  ///< keys and entries as that model's cache has them

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 4; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<mx::array> carried(const Flow& at) const override { return at.kept; }
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;
  Traits traits() const override { return {.mixed_by = 2, .window = entries_of < 0 ? window : 0, .branches = false}; }

 private:
  /// Entries beside the window's keys.
  struct Far {
    mx::array entries, seen;  ///< [B, entries, head_dim], bool [B, T, entries]
  };
  std::vector<const LinearSpec*> first_readers() const;
  std::vector<const LinearSpec*> latent_readers() const;
  mx::array turned(const Scope& scope, const mx::array& x, const std::optional<mx::array>& places = std::nullopt, bool back = false) const;
  mx::array row_turned(const Scope& scope, const mx::array& x, const std::optional<mx::array>& places = std::nullopt) const;
  mx::array as_kept(mx::array (*rounding)(const mx::array&), const mx::array& x) const;
  mx::array latent(const Scope& scope, const Groups& own, const mx::array& x) const;
  Flow with_latents(const Scope& scope, const Flow& at) const;
  Flow with_result(const Scope& scope, const Flow& at) const;
  std::optional<Far> far(const Scope& scope, const Flow& at, std::vector<mx::array>& given) const;
  mx::array seen(const Scope& scope, const Groups& own, const Flow& at, const mx::array& keys, std::vector<mx::array>& given) const;
  mx::array attended(const Scope& scope, const mx::array& q, const mx::array& fresh, const std::optional<Far>& far) const;
};

}  // namespace lquant::model
