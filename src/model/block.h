#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "model/forward.h"
#include "model/op.h"
#include "model/spec.h"

// A block as steps of branches (spec.h), run stage by stage. The stages of a block are those of its steps in order; a step has as many as the branch
// with the most. Methods that quantize linears in the order of use stop at each, for then the linears that come next, and their inputs, are known.
namespace lquant::model {

/// A block stopped before the linears of one of its stages.
struct Halted {
  mx::array residual;                             ///< what the step's result is added to; between blocks: the whole state
  std::vector<Flow> flows = {};                   ///< of each branch of the step
  std::optional<mx::array> state = std::nullopt;  ///< all columns, when the residual is some of them
  std::optional<mx::array> late = std::nullopt;   ///< of a step before this one: what is added at the end of the block

  /// Everything that goes on from here: to be evaluated together.
  std::vector<mx::array> arrays() const;
};

/// How many stages a block has.
int stages(const BlockSpec& block);
/// The step that a stage is part of.
int step_of(const BlockSpec& block, int stage);
/// The first stage of a step; of the step behind the last one stages().
int first_stage(const BlockSpec& block, int step);
/// The linears that advance() to this stage applies; to stages(): leave().
std::vector<const LinearSpec*> applied(const BlockSpec& block, int stage);
/// The stage of the block from which on no token looks at another.
int mixed_by(const BlockSpec& block);

/// Keeps the tokens at the places `at`, int32 [M], alone: [B, M, …]. False, and nothing is changed, where something that is on its way is not a row a
/// token.
bool narrow(Halted& halted, const mx::array& at);

/// Brings a block (−1: the front; behind the last one: the tail) from stage − 1 (for stage 0: from the state before it, which is `at.residual`) to
/// `stage`. The observer is told of the linears that come next.
Halted advance(const ModelSpec& spec, const Visit& visit, int stage, const Tensors& tensors, const Formats& formats, const Halted& at,
               const Context& context = {});

/// From the last stage out of the block: the state, [B, T, H] in most models. A block without stages gives what it got.
mx::array leave(const ModelSpec& spec, const Visit& visit, const Tensors& tensors, const Formats& formats, const Halted& at,
                const Context& context = {});

}  // namespace lquant::model
