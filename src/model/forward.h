#pragma once

#include <mlx/array.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/spec.h"
#include "model/tensors.h"

// The forward pass as pure functions of (spec, tensors): nothing is kept between calls, so the same code serves training
// (put traced arrays in the tensors), streaming of one block, and decoding with a cache. x is [B, T, H] in the compute
// dtype (bf16, f32; f16 on a GPU); weights of another float dtype are cast to x's. A packed linear is dequantized once per
// call and multiplied as dense; gradients reach its scales and biases.
namespace lquant::model {

/// Whose the rows [R, in] are that the experts of a mixture, or the heads of a sliced stack, read: sorted by expert, each a copy of some token's.
/// Lazy.
struct ExpertRows {
  mx::array offsets;  ///< int32 [E + 1]: rows offsets[e] … offsets[e + 1] are expert e's
  mx::array tokens;   ///< int32 [R]: of each row the token, counted in [B · T]
  /// [B · T, in], where it is there anyway: row r is its row tokens[r].
  std::optional<mx::array> source = std::nullopt;
};

/// Told of each linear's input before the product: [B, T, in], `experts` null, also of a stack that shares one input; of an expert's linear [R, in]
/// and whose rows they are. Padding is among them. Inputs are lazy.
using Observer = std::function<void(const std::string& linear_path, const mx::array& input, const ExpertRows* experts)>;
/// The same for what runs batch after batch, which is named first.
using BatchObserver = std::function<void(std::size_t batch, const std::string& linear_path, const mx::array& input, const ExpertRows* experts)>;
/// What tells `observer` of one batch; null when there is none. `observer` outlives it.
Observer of_batch(const BatchObserver* observer, std::size_t batch);

/// Keys and values of the positions seen so far, of each run of a block [B, capacity, Hkv, D]; memory grows by steps. Beside them what else a block's
/// ops keep from one call to the next, by name. Give one to every block call in Context and call advance(T) after the last block.
class Cache {
 public:
  /// For so many blocks, each counted as often as it runs (ModelSpec::visits).
  explicit Cache(int blocks) : layers_(blocks) {}
  int length() const { return length_; }
  void advance(int positions) { length_ += positions; }
  /// Stores k and v [B, T, Hkv, D] behind the first length() positions; returns all length() + T of them.
  std::pair<mx::array, mx::array> append(int block, const mx::array& k, const mx::array& v);
  /// What append() returned last for this block, which must have been called in this step.
  std::pair<mx::array, mx::array> appended(int block, int positions) const;
  /// An array [B, …] that an op keeps for its next call, in place of the one before: the last inputs of a convolution, a recurrent state.
  void keep(int block, const std::string& name, const mx::array& value);
  /// None before the first call.
  std::optional<mx::array> kept(int block, const std::string& name) const;
  /// Keeps only these rows of the batch, in this order (int32 [B′]).
  void select(const mx::array& rows);
  /// What to evaluate so that no graph grows from step to step.
  std::vector<mx::array> arrays() const;

 private:
  struct Layer {
    std::optional<mx::array> k, v;
    std::map<std::string, mx::array> kept;
  };
  std::vector<Layer> layers_;
  int length_ = 0;
};

/// Of a row of packed texts that have several endings each, the beginning computed once: where its tokens stand. A text is a segment
/// whose number is a multiple of 2^kBits, followed in the row by its endings, numbered from that + 1 on; an ending goes on from the text's
/// last token. Inference alone.
struct Branches {
  static constexpr int kBits = 8;
  mx::array positions;  ///< int32 [B, T]: of each token in its text or, in an ending, behind the text
  int longest = 0;      ///< positions of the longest text with its longest ending; at most the smallest window of the model's layers
};

struct Context {
  /// int32 [B, T]: a token sees only tokens of its own segment (packed texts). Not together with a cache.
  std::optional<mx::array> segments = std::nullopt;
  /// Only with segments.
  std::optional<Branches> branches = std::nullopt;
  /// Position of the first token; with a cache it is the cache's length instead.
  int offset = 0;
  Cache* cache = nullptr;
  const Observer* observer = nullptr;
  const mx::array* ids = nullptr;  ///< of the tokens, int32 [B, T]; embed() gives them to the front
};

/// ids int32 [B, T] → x [B, T, H] of `dtype`; of models with a front the state that it makes, with more columns. The context tells where each token
/// stands, for models with an embedding of positions.
mx::array embed(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype,
                const Context& context = {});

/// One run of a block: x [B, T, H] → [B, T, H]. Stage by stage: block.h.
mx::array block(const ModelSpec& spec, const Visit& visit, const Tensors& tensors, const Formats& formats, const mx::array& x,
                const Context& context = {});

/// The norm before the head, and what stands between it and the head.
mx::array final_norm(const ModelSpec& spec, const Tensors& tensors, const mx::array& x, const Formats& formats = {}, const Context& context = {});

/// Of a state [B, T, width] the columns that are the residual.
mx::array residual_of(const ModelSpec& spec, const mx::array& x);

/// What makes logits of normed hidden states; made for kernels::kl_loss and its like. logits = softcap(multiplier · h · weightᵀ + bias).
struct Head {
  mx::array weight;  ///< [V, H], dense
  std::optional<mx::array> bias;
  float softcap = 0;
  float multiplier = 1;
};
/// The head's own weight or the tied embedding's, dequantized when packed.
Head head(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, mx::Dtype dtype);

/// h [..., H] behind the final norm → [..., V] in h's dtype. The overload with an observer reports the head's input.
mx::array logits(const Head& head, const mx::array& h);
mx::array logits(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& h, const Context& context = {});

/// ids [B, T] → final hidden states [B, T, H], normed; → logits [B, T, V].
mx::array hidden_states(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype,
                        const Context& context = {});
mx::array forward(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, const mx::array& ids, mx::Dtype dtype,
                  const Context& context = {});

/// The weight of a linear (or of the embedding) as a dense array of `dtype`: itself, or dequantized from its codes.
mx::array dense_weight(const Tensors& tensors, const Formats& formats, const std::string& path, mx::Dtype dtype);

/// Replaces every packed linear by a dense one of `dtype` and forgets its format: for loops that read weights often.
void densify(Tensors& tensors, Formats& formats, mx::Dtype dtype);

}  // namespace lquant::model
