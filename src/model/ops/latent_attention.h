#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"
#include "model/ops/attention.h"
#include "model/rope.h"

namespace lquant::model {

/// Which keys a query reads where there are more than top_k (DeepSeek-V3.2): those with the largest Σ over heads of weight · relu(q · k), of small
/// heads of the indexer's own. The choice has no gradient.
struct Indexer {
  int heads = 0, dim = 0, top_k = 0;
  RopeSpec rope;    ///< of a head's first features
  LinearSpec wq_b;  ///< [heads · dim, …] reads what q does
  LinearSpec wk;    ///< [dim, H]; its key serves all heads
  NormSpec k_norm;
  LinearSpec weights;  ///< [heads, H]
};

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads are made of one normed latent a token, and a rotated key
/// that all heads share goes beside each head's own. A query head is nope features, then `rotated` ones that turn.
///
/// kv_b makes keys and values of the latent (plain), or two stacks do (absorbed): embed_q takes a query head's nope features into the latent's space,
/// its transpose makes keys of latents; unembed_out makes values. A cache keeps keys and values of the plain form, the latent and the shared key of
/// the other, in whose space single tokens are then computed; of an indexer its keys.
///
/// Stages: q_a, kv_a, the gate, the indexer's wk and weights; q and wq_b; kv_b, or embed_q, then unembed_out; o. Without q_a, q is of the first.
struct LatentAttention final : Op {
  int heads = 0, nope = 0, rotated = 0, value = 0, rank = 0;  ///< features of a head's parts and of the latent
  float scale = 1;
  float query_factor = 1, latent_factor = 1;    ///< of queries, of the normed latent (LongCat-Flash); rounded to the compute dtype when used
  std::optional<RopeSpec> rope;                 ///< none: nothing turns (Kimi Linear)
  std::optional<QueryTemperature> temperature;  ///< behind rope
  std::optional<LinearSpec> q_a;                ///< none: q reads the branch's input
  std::optional<NormSpec> q_a_norm;
  LinearSpec q;     ///< [heads · (nope + rotated), …], by head
  LinearSpec kv_a;  ///< parts: the latent, the shared key
  NormSpec kv_a_norm;
  std::optional<LinearSpec> kv_b;         ///< [heads · (nope + value), rank], by head, with parts: keys, values
  std::optional<LinearSpec> embed_q;      ///< a sliced stack [heads, rank, nope]
  std::optional<LinearSpec> unembed_out;  ///< a shared stack [heads, value, rank]
  std::optional<LinearSpec> gate;         ///< [heads, H] or [heads · value, H]: σ of it is a factor of the results (arXiv 2505.06708)
  LinearSpec o;
  std::optional<Indexer> indexer;  ///< of the absorbed form, with q_a

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return (q_a ? 3 : 2) + (kv_b ? 1 : 2); }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;
  Traits traits() const override { return {.mixed_by = stages() - 1}; }

 private:
  std::vector<const LinearSpec*> first_readers() const;
  std::vector<const LinearSpec*> query_readers() const;
  Flow ungated(const Scope& scope, int stage, const Flow& at) const;
  Flow with_latent(const Scope& scope, const Flow& at) const;
  Flow with_queries(const Scope& scope, const Flow& at) const;
  std::optional<mx::array> chosen_keys(const Scope& scope, const std::vector<mx::array>& index, int keys) const;
  mx::array attended(const Scope& scope, const mx::array& queries, const mx::array& keys, const mx::array& values,
                     const std::vector<mx::array>& index = {}) const;
};

/// The parts of kv_a and of kv_b.
std::vector<Part> latent_parts(int rank, int rotated);
std::vector<Part> key_value_parts(int heads, int nope, int value);

}  // namespace lquant::model
