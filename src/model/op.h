#pragma once

#include <mlx/array.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/linear.h"
#include "kernels/moe.h"
#include "model/forward.h"
#include "model/spec.h"
#include "model/tensors.h"

// What turns hidden states into hidden states: attention, an MLP, a mixture of experts. An op is one header and one .cpp in ops/; blocks, methods and
// files know it by this interface alone. A spec holds ops as data: their fields say sizes, names and variants, and never change once a block has
// them.
namespace lquant::model {

/// What every part of a block reads.
struct Scope {
  const Tensors& tensors;
  const Formats& formats;
  const Context& context;
  mx::Dtype dtype;                   ///< of the residual: the compute dtype
  int block;                         ///< counted over all passes: the place of what the cache keeps for this run
  const mx::array* state = nullptr;  ///< all columns of the state, as the step found them
  int pass = 0;                      ///< which of the block's runs this is

  mx::array columns(const Columns& columns) const;
  /// Rows of a table, an embedding of its own: ids int32 [...] → [..., in], times the multiplier.
  mx::array lookup(const LinearSpec& table, const mx::array& ids, float multiplier = 1) const;

  bool has(const std::string& name) const { return tensors.contains(name); }
  const mx::array& tensor(const std::string& name) const;
  /// The weight (made dense) and bias of a linear; of one part alone when it stands in one piece.
  kernels::LinearWeight weight(const LinearSpec& linear) const;
  kernels::LinearWeight weight(const LinearSpec& linear, const Part& part) const;
  bool observed() const { return context.observer && *context.observer; }
  void observe(const LinearSpec& linear, const mx::array& input) const;
  /// Of a stack whose matrices read a slice each: input [B, T, matrices, in].
  void observe_slices(const LinearSpec& linear, const mx::array& input) const;
  /// Their input [R, in]; `source` as ExpertRows has it.
  void observe_experts(const std::vector<const LinearSpec*>& linears, const mx::array& input, const kernels::Routing& routing, int top_k,
                       const std::optional<mx::array>& source = std::nullopt) const;
};

/// An op between two of its stages.
struct Flow {
  std::vector<mx::array> inputs;  ///< what the linears of the coming stage read
  std::vector<mx::array> kept;    ///< what else the op needs further on
};

/// What methods that run parts of sequences must know of an op.
struct Traits {
  /// The stage from which on no token looks at another: attention's 1. 0: tokens never meet.
  int mixed_by = 0;
  int window = 0;        ///< keys a query sees at most, itself included; 0: all before it
  bool branches = true;  ///< endings can go on from a text computed once (Branches)
};

class Op {
 public:
  virtual ~Op() = default;

  /// Linears with their stage, norms, parameters, in the order of use.
  virtual void contents(int op, int first_stage, Contents& all) const = 0;
  /// Groups of linears whose inputs are known before any of them is applied.
  virtual int stages() const = 0;

  /// From the branch's input, normed and as it came, to the first stage. The observer is told of the linears that come next, here and in advance().
  virtual Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const = 0;
  /// Applies the linears of stage − 1 and what stands behind them.
  virtual Flow advance(const Scope&, int, const Flow& at) const { return at; }
  /// Applies the last stage's: [B, T, H]; with `residual` their sum, for which the product has room.
  virtual mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const = 0;

  /// What later blocks read, [B, T, n] each, side by side in the state; called once the last stage is reached. Nothing where a run has nothing new.
  virtual std::vector<mx::array> carried(const Flow&) const { return {}; }

  /// The linears that read the normed input; none when it is used otherwise too, so that no scale can be moved into the norm.
  virtual std::vector<std::string> readers() const { return {}; }
  /// Edges inside the op, without block and step.
  virtual std::vector<Edge> edges() const { return {}; }
  virtual Traits traits() const { return {}; }
};

/// The first op of this type in a block, in the order of the forward pass; null when it has none.
template <class T>
const T* find_op(const BlockSpec& block) {
  for (const auto& step : block.steps)
    for (const auto& branch : step.branches)
      if (const auto* op = dynamic_cast<const T*>(branch.op.get())) return op;
  return nullptr;
}

}  // namespace lquant::model
