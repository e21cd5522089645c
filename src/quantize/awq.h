#pragma once

#include <mlx/array.h>

#include <functional>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "calibration/hessian.h"
#include "codec/format.h"
#include "model/spec.h"

// AWQ (arXiv 2306.00978): channels are scaled up before quantization where activations are large, and the scales are taken back in what
// comes before. docs/methods/awq.md holds the formulas, the sources and what each choice brought.
namespace lquant::quantize {

namespace mx = mlx::core;

struct AwqOptions {
  int grid = 10;      ///< values of r
  bool duo = true;    ///< try x̄^r / w̄^(1−r) beside x̄^r
  bool clip = true;   ///< judge candidates with searched ranges, as the weights will be quantized; else with each group's minimum and maximum
  int shortlist = 3;  ///< how many candidates search_scales returns
};

/// The Hessians of a reader's matrices: those that are given, or as they are made, for those of all experts may be larger than the model's block.
/// Readers that have copies of one are taken together, so that each Hessian is made once.
class Hessians {
 public:
  using Visit = std::function<void(int e, const calibration::Hessian& hessian)>;
  using Each = std::function<void(const Visit& visit)>;
  Hessians(std::initializer_list<calibration::Hessian> all) : Hessians(std::vector(all)) {}
  Hessians(const std::vector<calibration::Hessian>& all);
  /// `each` visits every matrix once, in any order; `tokens`: of each matrix those that its Hessian will have.
  Hessians(std::vector<double> tokens, Each each) : tokens_(std::move(tokens)), each_(std::make_shared<const Each>(std::move(each))) {}
  const std::vector<double>& tokens() const { return tokens_; }
  void each(const Visit& visit) const { (*each_)(visit); }
  bool same(const Hessians& other) const { return each_ == other.each_; }

 private:
  std::vector<double> tokens_;
  std::shared_ptr<const Each> each_;
};

/// A linear that reads an edge and will be quantized: its weight f32 [N, K], or [E, N, K] with a Hessian for each expert. judging_rows() of it will
/// do.
struct Reader {
  mx::array weight;
  codec::Format format;
  Hessians hessians;
};

/// Of each matrix of w [..., N, K] the rows that judge candidates: evenly spaced, at most 255. Evaluated.
mx::array judging_rows(const mx::array& w);

/// Scales of one edge.
struct ScaleCandidate {
  mx::array scales;  ///< f32 [channels], or [E, channels] for an edge inside experts, each of which has its own best
  double r = 0;      ///< of the first expert
  bool duo = false;
  double error = 0;  ///< Σ over tokens and outputs of the readers' squared output errors, on a share of the output rows
};

struct ScaleSearch {
  double unscaled = 0;                     ///< the error with all scales 1
  std::vector<ScaleCandidate> candidates;  ///< those below it, best first, at most `shortlist`
};

/// Searches the scales of one edge on a grid: s_c = x̄_c^r, and with duo x̄_c^r / w̄_c^(1−r), r = 0, 1/grid, …, normalised to
/// √(max · min) = 1. x̄ is the root mean square of a channel's activations, w̄ the mean of its weights' magnitudes relative to
/// their groups' largest. Each candidate is judged by the readers' exact output errors Σ e · H · eᵀ, e = W − Q(W · s)/s, on at most
/// 255 evenly spaced rows of each weight (judging_rows), so that a candidate costs a product or two and no forward pass. `scale_dtype` is the storage
/// of the readers' scales and biases. Throws std::invalid_argument when shapes disagree, Error when moments are not finite.
ScaleSearch search_scales(const model::Edge& edge, const std::vector<Reader>& readers, const AwqOptions& options, mx::Dtype scale_dtype);

}  // namespace lquant::quantize
