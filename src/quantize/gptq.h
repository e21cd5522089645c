#pragma once

#include <mlx/array.h>

#include <optional>
#include <string>
#include <vector>

#include "calibration/hessian.h"
#include "codec/format.h"
#include "kernels/cholesky.h"

// GPTQ: codes that answer for each other's errors, by the second moments of the layer's inputs. docs/methods/gptq.md holds the formulas,
// the sources and what each choice brought.
namespace lquant::quantize {

namespace mx = mlx::core;

/// The order in which columns are rounded. Scales and biases are fixed before, so any order leaves them where MLX expects them.
/// `fixed`: columns by falling second moment (the act-order of GPTQ's authors, with groups fixed beforehand). `gar`, group-aware: groups by
/// their largest moment, inside a group columns by theirs.
enum class ActOrder { off, fixed, gar };

struct GptqOptions {
  ActOrder act_order = ActOrder::gar;
  double damp = 0.01;        ///< share of the mean of H's diagonal that is added to it; grows tenfold until H factors
  bool range_search = true;  ///< scales and biases by range search with H's diagonal; else each group's minimum and maximum
  int sweeps = 4;            ///< of coordinate descent behind the solve (codec::refine)
  double correction = 0;     ///< share of the step towards the full-precision model's outputs (needs Hessian::shift)
};

/// Squared output errors are Σ over tokens and outputs divided by the tokens.
struct GptqResult {
  codec::Packed packed;
  double plain_error = 0;  ///< of plain rounding
  double error = 0;        ///< of `packed`; never larger
  double damp = 0;         ///< that was needed
  /// Seconds.
  double search_time = 0, factor_time = 0, solve_time = 0;
};

/// The Hessian of inputs, made ready for all matrices that read them: damped until it factors, with columns in the order of the visits.
struct FactoredHessian {
  /// For groups of so many columns. Throws Error naming `path` when moments are not finite or cannot be factored whatever the damping.
  FactoredHessian(const std::string& path, const calibration::Hessian& source, int group_size, const GptqOptions& options);

  calibration::Hessian source;
  double damp;                          ///< that was needed
  mx::array damped;                     ///< H / tokens + λI, f32 [K, K]
  std::vector<int> order;               ///< of visits: order[j] is the column that is visited as the j-th
  std::optional<mx::array> importance;  ///< H's diagonal f32 [K]; absent when it is all zeros
  kernels::PositiveSolver factor;       ///< of `damped`, rows and columns in that order

 private:
  FactoredHessian(const std::string& path, const calibration::Hessian& source, const std::vector<float>& diagonal, int group_size,
                  const GptqOptions& options);
};

/// Quantizes one matrix [N, K] (f32, bf16, f16) to an affine format with the group size of `hessian`; scales and biases have its dtype. With
/// `correction` c the aim is not w but w* = w + c · w · S · (H + λI)⁻¹, the least-squares weight for which the quantized model's inputs give the
/// full-precision outputs (the closed form behind GPTAQ, arXiv 2504.02692, and Qronos, arXiv 2505.11695). A Hessian of nothing but zeros gives
/// range-searched or plain rounding. Throws Error naming `path` when weights are not finite.
GptqResult gptq(const std::string& path, const mx::array& weight, const FactoredHessian& hessian, const codec::Format& format,
                const GptqOptions& options);

/// How much of the correction to take: it is fitted on `train` and this is the share in [0, 1] with the least output error on `held`. 0 when either
/// has no shift.
double correction_share(const mx::array& weight, const FactoredHessian& train, const calibration::Hessian& held);

/// Σ over `h`'s tokens and outputs of (w·x − ŵ·x̂)², divided by the tokens, less the part that does not depend on ŵ (w·(x − x̂) alone): what is left to
/// lower.
double output_error(const mx::array& weight, const codec::Packed& packed, const codec::Format& format, const calibration::Hessian& h);

}  // namespace lquant::quantize
