#pragma once

#include <cstdint>

// The vector loops of the head loss: one row of logits (or a student's and a teacher's) at a time, on the calling thread.
namespace lquant::kernels {

/// z becomes cap·tanh(z·multiplier / cap) / temperature (cap 0: z·multiplier / temperature). Returns the largest.
float finish_logits(float* z, std::int64_t n, float multiplier, float softcap, float temperature);

/// log Σ exp(z), given the largest z.
double log_sum_exp(const float* z, std::int64_t n, float largest);

/// KL(softmax(t) ‖ softmax(s)) with both log-sum-exps, given the largest of each. Good to f32 rounding of the logits.
struct KlRow {
  double kl, student_lse, teacher_lse;
};
KlRow kl_row(const float* s, const float* t, std::int64_t n, float largest_s, float largest_t);

/// s becomes factor · d/dlogit of KL, softmax(s) − softmax(t), through the softcap: `slope_cap` is softcap / temperature, the
/// bound of s, and 0 means none. Without t: factor · softmax(s), likewise.
void loss_gradient_row(float* s, const float* t, std::int64_t n, double student_lse, double teacher_lse, float factor, float slope_cap);

}  // namespace lquant::kernels
