#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace lquant::kernels {

namespace mx = mlx::core;

struct HeadLossArgs {
  /// Both distributions are softmax(logits / temperature); the loss is not rescaled by temperature².
  float temperature = 1.0f;
  /// logits become cap·tanh(logits / cap) first (Gemma 2); 0 means off. Likewise for the teacher.
  float softcap = 0.0f, teacher_softcap = 0.0f;
  /// logits are multiplied by these first (some families scale them).
  float multiplier = 1.0f, teacher_multiplier = 1.0f;
  /// Memory for a chunk's logits of all models, met within half; a chunk has 64 tokens at least. 0 is a size that suits the device.
  std::int64_t scratch_bytes = 0;
};

/// What the teacher says: its final hidden states and head, from which exact logits are made chunk by chunk …
struct TeacherHidden {
  mx::array hidden;  ///< [T, Ht]
  mx::array head;    ///< [V, Ht]
  std::optional<mx::array> bias = std::nullopt;
};
/// … or its largest logits, renormalised over the kept ids as mlx_lm does (both sides see those ids alone). They are
/// final: teacher_multiplier and teacher_softcap are not applied, the temperature is. The ids of a row are distinct.
struct TeacherTopK {
  mx::array logits;  ///< [T, k]
  mx::array ids;     ///< int32 [T, k]
};

/// Σ_t mask[t] · KL(teacher_t ‖ student_t) in nats, f32 scalar, never holding logits of more than a chunk of tokens.
/// hidden [T, H], head [V, H], (bias [V]), f32, bf16 or f16; mask f32 [T] (on CPU rows where it is 0 cost nothing). Gradients flow to hidden
/// (in its dtype), head and bias (f32); they are made in the forward pass (the logits are there then), so asking for the value
/// alone is cheaper by `needs_gradient = false`, and `head_gradient = false` spares those of a frozen head and its bias: a
/// product as large as the logits and a tensor f32 [V, H]. Teacher and mask are constants. Throws std::invalid_argument when
/// shapes or dtypes disagree, when a gradient is asked for that was declined, and, on evaluation on CPU, for an id outside the head.
mx::array kl_loss(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const TeacherHidden& teacher,
                  const mx::array& mask, const HeadLossArgs& args, bool needs_gradient = true, bool head_gradient = true);
mx::array kl_loss(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const TeacherTopK& teacher,
                  const mx::array& mask, const HeadLossArgs& args, bool needs_gradient = true, bool head_gradient = true);

/// Per-token figures of one or two models, no gradient: each f32 [T].
struct TokenScores {
  mx::array nll;          ///< −log p_student(target)
  mx::array teacher_nll;  ///< −log p_teacher(target); zeros without a teacher
  mx::array kl;           ///< KL(teacher ‖ student); zeros without a teacher
  mx::array agree;        ///< 1 where both have the same most likely token; zeros without a teacher
};
/// targets int32 [T]; temperature, softcap and multiplier apply as in the losses.
TokenScores score_tokens(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const mx::array& targets,
                         const std::optional<TeacherHidden>& teacher, const HeadLossArgs& args);

/// Cross entropy Σ_t mask[t]·(−log p(target_t)), a sum and not a mean, with gradients as kl_loss. targets int32 [T].
mx::array cross_entropy_loss(const mx::array& hidden, const mx::array& head, const std::optional<mx::array>& bias, const mx::array& targets,
                             const mx::array& mask, const HeadLossArgs& args, bool needs_gradient = true, bool head_gradient = true);

}  // namespace lquant::kernels
