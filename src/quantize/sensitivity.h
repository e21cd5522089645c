#pragma once

#include <mlx/array.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "codec/format.h"
#include "kernels/linear.h"
#include "model/forward.h"
#include "model/spec.h"

// What a model's outputs owe to each linear's quantization error. docs/methods/dynamic.md holds the formulas and what they were measured against.
//
// The divergence of a quantized model from its teacher, KL(p ‖ p'), is 0 at the teacher's own weights, and so is its gradient: to second order
// it is ½ eᵀ F e for errors e, F being the Fisher information, the mean of g gᵀ over the gradients g of log p(token) for tokens drawn from the model
// (Martens, arXiv 1412.1193). Rounding errors of different weights are as good as independent, so F's diagonal is what counts (SqueezeLLM, arXiv
// 2306.07629): one backward pass gives it for every weight, and with it the cost of every format.
namespace lquant::quantize {

namespace mx = mlx::core;

/// Diagonals of the Fisher information, summed over parts of a calibration set.
class FisherStore {
 public:
  /// The gradient of one part's Σ log p(next token) for a linear's weight, f32, bf16 or f16, of the weight's shape. Evaluated as it comes.
  void add(const std::string& path, const mx::array& gradient);
  /// The same for a stack of experts, of which no array of the weight's size in f32 is made: stack() has what expected_kl needs.
  void add(const std::string& path, const kernels::GroupedGradient& gradient);
  /// Whether expected_kl can do with that much of a stack [E, N, in].
  static bool can_sum(int in) { return in % kGroup == 0; }
  /// The same for rows of an embedding that were looked up: ids int32 [...], gradient [..., H] of what they gave. Equal ids within a part add up
  /// first.
  void add_lookups(const std::string& path, int rows, const mx::array& ids, const mx::array& gradient);
  /// A sum made elsewhere, in the place of what is there.
  void put(const std::string& path, const mx::array& sum) { sums_.insert_or_assign(path, sum); }
  bool has(const std::string& path) const { return sums_.count(path) > 0; }
  /// Null for what was added in another way.
  const kernels::SquareSums* stack(const std::string& path) const;
  /// f32, of the weight's shape. Throws std::invalid_argument for a path that was never seen.
  const mx::array& of(const std::string& path) const;
  void clear() {
    sums_.clear();
    stacks_.clear();
  }

 private:
  static constexpr int kGroup = 32;  // of the finest format: within a group errors are alike
  std::map<std::string, mx::array> sums_;
  std::map<std::string, kernels::SquareSums> stacks_;
};

/// The gradients of a loss for one block's linears, by path (f32, or the dtype of the block's input), and for its input: in its dtype, or f32 where
/// that is f16, whose range gradients leave (kernels/scaled_vjp.h).
struct BlockGradients {
  std::map<std::string, mx::array> weights;
  mx::array input;
};

/// x [B, T, H] through a run of a block (dense tensors of x's dtype), computed again, and the loss's gradient `cotangent` [B, T, H] taken back
/// through it. Lazy, but for f16.
BlockGradients through_block(const model::ModelSpec& spec, const model::Visit& visit, const model::Tensors& tensors, const mx::array& x,
                             const mx::array& cotangent, const model::Context& context);

/// Of Σ mask · −log p(target) behind the last block: for the head's weight (f32 [V, H]) and for the block's output x [B, T, H]. `tensors` are those
/// of Model::load_final, dense; targets int32 and mask f32 [B, T]. Dtypes as above. Lazy, but for f16.
struct HeadGradients {
  mx::array weight, input, loss;
};
HeadGradients head_gradients(const model::ModelSpec& spec, const model::Tensors& tensors, const mx::array& x, const mx::array& targets,
                             const mx::array& mask);

/// The KL divergence per token that quantizing this weight alone is expected to cost, for each format in turn: ½ Σ F e² / tokens, e being what
/// the ranges that codec::range_search finds leave. weight [..., N, K]; fisher f32 of its shape, summed over `tokens` tokens. Of long matrices ranges
/// are searched in evenly spaced rows, and plain rounding of all rows says what these stand for. Throws Error naming `path` when weights or Fisher
/// are not finite.
std::vector<double> expected_kl(const std::string& path, const mx::array& weight, const mx::array& fisher, double tokens,
                                const std::vector<codec::Format>& formats);

/// The same of a stack, with its Fisher diagonal as FisherStore::stack gives it. What is not known weight by weight is taken to be even in each
/// group.
std::vector<double> expected_kl(const std::string& path, const mx::array& weight, const kernels::SquareSums& fisher, double tokens,
                                const std::vector<codec::Format>& formats);

/// What errors of a format cost beside what second order says, measured on whole models (docs/methods/dynamic.md): 1 from 4 bits on; at 2 bits,
/// where a linear gives another function rather than a noisy one, twice as much.
double beyond_second_order(const codec::Format& format);

}  // namespace lquant::quantize
