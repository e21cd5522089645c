#pragma once

#include "codec/format.h"

// Better scales and biases than a group's minimum and maximum give, for the same format (docs/methods/rtn.md).
//
// These functions compute at once. On NVIDIA's GPUs they run there, in kernels of their own, and results stay there; else on the CPU whatever
// the default device is, threaded and vectorised, with results in host memory: 2 to 14 s for 10^8 weights on two AVX-512 cores
// (docs/methods/rtn.md). Sums are made in another order on a GPU, so that of candidates that are alike to rounding it may take another.
//
// importance: h_j ≥ 0, f32, bf16 or f16. [K], or [..., K] with the leading dimensions of w but its rows (one for each expert of
// [E, N, K]): the mean square of the inputs that meet column j. Or one for each weight, of w's own shape: how much the loss bends along it.
// All ones when absent.
// All throw Error for weights and formats that codec::quantize refuses, and std::invalid_argument for other shapes that disagree and
// for an importance that is negative or not finite.
namespace lquant::codec {

struct RangeSearchResult {
  Packed packed;
  double plain_error;  ///< Σ h_j (w_j − ŵ_j)² of the plain min/max rule
  double error;        ///< … of `packed`; never larger
};

/// For each group the scale and bias, rounded to `scale_dtype` (that of w by default), that make Σ h_j (w_j − ŵ_j)² least, ŵ being what
/// dequantization makes of them; MLX's own rule is the first candidate. Weights that are NaN or infinite, and groups whose importance is
/// all zero, keep that rule. The mx and nv modes have no bias and a scale of 8 bits: for them this is codec::quantize.
RangeSearchResult range_search(const mx::array& w, const Format& format, const std::optional<mx::array>& importance = std::nullopt,
                               std::optional<mx::Dtype> scale_dtype = std::nullopt);

/// The nearest codes, u32 [..., N, K·bits/32], for given affine scales and biases [..., N, K/group] (both of one float dtype); of two
/// values equally near, the one that dividing and rounding gives. A NaN becomes code 0.
mx::array requantize_codes(const mx::array& w, const mx::array& scales, const mx::array& biases, const Format& format);

struct QuantizationError {
  double weighted;     ///< Σ h_j (w_j − ŵ_j)²
  double mean_square;  ///< mean of (w_j − ŵ_j)², without importance
  double max_abs;      ///< largest |w_j − ŵ_j|
};

/// How far `packed` is from w, in double precision. NaN where either holds one.
QuantizationError measure_error(const mx::array& w, const Packed& packed, const Format& format,
                                const std::optional<mx::array>& importance = std::nullopt);

/// measure_error(…).weighted.
double weighted_error(const mx::array& w, const Packed& packed, const Format& format, const std::optional<mx::array>& importance = std::nullopt);

}  // namespace lquant::codec
