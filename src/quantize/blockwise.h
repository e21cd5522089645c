#pragma once

#include <mlx/array.h>

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "model/forward.h"
#include "quantize/student.h"

// Block-wise training of rounding and ranges: a quantized block learns to give what the full-precision model's gives (the first phase of
// EfficientQAT, Chen et al., arXiv 2407.11062; SignRound, Cheng et al., arXiv 2309.05516). docs/methods/gptq.md holds the formulas and what each
// choice brought.
namespace lquant::quantize {

struct BlockwiseOptions {
  int epochs = 0;            ///< passes over the training rows; 0: nothing is trained
  int batch_rows = 8;        ///< of a step; fewer when there are not rows for four such steps
  float scale_rate = 5e-3f;  ///< peak of Adam's relative step for scales and biases
  float code_rate = 8e-3f;   ///< peak step of the latents of 4-bit codes, in codes; others as StepRates says
  float warmup = 0.05f;      ///< share of the steps in which the rates rise; then they fall by a cosine to 0
  double least_loss = 0;     ///< a start whose mean loss a held-out token is no larger is left as it is: what could be seen of it is rounding
  int micro_tokens = 2048;   ///< tokens in memory at once: a batch is worked through in parts of whole rows
};

/// Some rows at the block's two ends.
struct BlockRows {
  mx::array inputs;                   ///< [B, T, H], the quantized model's, in the compute dtype
  mx::array targets;                  ///< [B, T, H], what the block shall give for them
  std::optional<mx::array> segments;  ///< int32 [B, T] as model::Context has them; negative ones are padding and do not count
  int pass = 0;                       ///< which of the block's runs it is (model::Visit)
};

/// What a block's outputs [B, T, H] for some rows are worth: f32 scalar, a sum over the tokens that count, 0 when they are the targets.
using OutputLoss = std::function<mx::array(const mx::array& outputs, const BlockRows& rows)>;

/// Σ δᵀ F δ with δ = output − target in f32; F is `fisher` f32 [H, H] (calibration::block_sensitivities) divided by the mean of its diagonal, plus a
/// tenth of the identity. Without one, or with one that is not finite or not above zero, Σ δᵀ δ.
/// `columns` of the outputs count, the first ones; 0: all.
OutputLoss weighted_squares(const std::optional<mx::array>& fisher, int columns = 0);

/// Behind the last block nothing need be guessed: Σ KL(softmax of the target's logits ‖ softmax of the output's) in nats, temperature 1.
/// `outer` holds the final norm and the head, dense.
OutputLoss divergence(const model::ModelSpec& spec, const model::Tensors& outer, mx::Dtype dtype);

/// The loss of a block whose trained linears have these dense weights (as Student::weights() gives them), and its gradient for each of them.
std::pair<double, std::vector<mx::array>> block_gradients(const model::ModelSpec& spec, int block, const Student& student,
                                                          const std::vector<mx::array>& weights, const BlockRows& rows, const OutputLoss& loss);

/// Losses are of the rows held out, by that of the start.
struct BlockwiseResult {
  double loss = 1;  ///< of what was kept; never above 1
  int steps = 0, best_step = 0;
};

/// Trains the affine linears with fewer than 8 bits of `block` in `packed` (the block's tensors as they are stored, its linears packed as `formats`
/// says) in place: codes, scales and biases. `teacher` has the dense weights that the codes stand for. One batch in sixteen, at least one, is held
/// out and judged after each epoch; the state with the least loss there is kept, the start itself included, whose bytes then do not change. With a
/// single row nothing can be judged and nothing is trained. All sums have a fixed order: same inputs, same bytes. `stop` is asked after every step;
/// when it says true, the function returns at once and `packed` is as it was.
BlockwiseResult train_block(const model::ModelSpec& spec, int block, model::Tensors& packed, const model::Formats& formats,
                            const model::Tensors& teacher, const std::vector<BlockRows>& rows, const OutputLoss& loss,
                            const BlockwiseOptions& options, const std::function<bool()>& stop = nullptr);

}  // namespace lquant::quantize
