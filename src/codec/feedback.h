#pragma once

#include <vector>

#include "codec/format.h"

// Codes that answer for each other's errors: the inner loops of GPTQ and of coordinate descent (docs/methods/gptq.md). What they make
// small is Σ_rows e · H · eᵀ with e = w − ŵ and H the second moments of the layer's inputs. Weights, factors and moments are f32
// row-major and finite; scales and biases are affine ones [N, K/group] of one float dtype. All but take_columns compute at once and throw
// std::invalid_argument when shapes disagree. On a GPU they run there: on NVIDIA's in kernels of their own, on others by MLX's ops.
namespace lquant::codec {

/// u8 [N, K]: column after column, each weight is rounded to its nearest code after taking up the errors of the columns before it,
///   q_j = round((w_j + Σ_{i<j} e_i · U_ij − b) / s),   H = U · D · Uᵀ,
/// U unit upper triangular [K, K] (what is on and below its diagonal is not read). This is GPTQ (arXiv 2210.17323) in the form
/// of LDLQ, to which it is equal (arXiv 2307.13304, theorem 6). Columns are visited in the order given by w and U; group[j] says
/// whose scale and bias visited column j has.
mx::array round_with_feedback(const mx::array& w, const mx::array& unit_upper, const mx::array& scales, const mx::array& biases,
                              const std::vector<int>& group, const Format& format);

/// x [N, K] (f32 or u8) with its columns in another order: column j of the result is column order[j] of x. Lazy but on a CPU.
mx::array take_columns(const mx::array& x, const std::vector<int>& order);

/// Codes u8 [N, K] with their scales and biases, columns in their natural order.
struct Coded {
  mx::array codes, scales, biases;
};

/// `sweeps` passes of block coordinate descent, group by group: scale and bias to their optimum with H in full, then each code in turn to
/// the best for all other weights as they stand (QuantEase, arXiv 2309.01885), then scale and bias once more. Every single change lowers
/// the sum above (as the stored, rounded values make it), so the result is never worse than `start`.
Coded refine(const mx::array& w, const mx::array& hessian, const Coded& start, const Format& format, int sweeps);

/// What codes stand for, f32 [N, K]: as dequantization rounds.
mx::array values_of(const Coded& coded, const Format& format);

/// Σ_rows (w − ŵ) · H · (w − ŵ)ᵀ, from f32 products, which a CPU adds in double and a GPU in f32.
double feedback_error(const mx::array& w, const mx::array& quantized, const mx::array& hessian);
/// Of several ŵ; on a GPU all at once.
std::vector<double> feedback_errors(const mx::array& w, const std::vector<mx::array>& quantized, const mx::array& hessian);

}  // namespace lquant::codec
