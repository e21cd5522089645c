#pragma once

#include <vector>

#include "codec/feedback.h"

// The CPU side of feedback.h.
namespace lquant::codec::cpu {

#ifdef LQUANT_ONEDNN
inline constexpr bool built = true;
#else
inline constexpr bool built = false;
#endif

mx::array round_with_feedback(const mx::array& w, const mx::array& unit_upper, const mx::array& scales, const mx::array& biases,
                              const std::vector<int>& group, const Format& format);
Coded refine(const mx::array& w, const mx::array& hessian, const Coded& start, const Format& format, int sweeps);
mx::array take_columns(const mx::array& x, const std::vector<int>& order);
double feedback_error(const mx::array& w, const mx::array& quantized, const mx::array& hessian);

}  // namespace lquant::codec::cpu
