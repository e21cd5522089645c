#pragma once

#include <mlx/array.h>

#include <optional>
#include <variant>
#include <vector>

#include "kernels/head_loss.h"

// What head_loss.cpp hands to the CPU after its checks; contracts as in head_loss.h.
namespace lquant::kernels {

/// One call of any of the losses: the student, and what it is held against.
struct HeadLossCall {
  mx::array hidden, head;
  std::optional<mx::array> bias;
  std::variant<TeacherHidden, TeacherTopK, mx::array> against;  ///< the array: target ids [T]
  mx::array mask;
  HeadLossArgs args;
  bool needs_gradient, head_gradient;
};

namespace cpu {

mx::array head_loss(const HeadLossCall& call);
TokenScores score_tokens(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const mx::array& targets,
                         const std::optional<TeacherHidden>& teacher, const HeadLossArgs& args);

}  // namespace cpu
}  // namespace lquant::kernels
