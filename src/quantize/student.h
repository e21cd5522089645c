#pragma once

#include <mlx/array.h>

#include <map>
#include <string>
#include <vector>

#include "codec/format.h"
#include "kernels/descent.h"
#include "model/spec.h"
#include "model/tensors.h"

// The trainable part of a quantized model: for each affine linear its scales, biases and, when codes may move, its latents.
namespace lquant::quantize {

namespace mx = mlx::core;

struct StepRates {
  float scales = 0;  ///< Adam's step for the relative scales and biases
  float codes = 0;   ///< step of the latents of 4-bit codes, in codes; others follow by 2^((4 − bits)/3)
  int step = 1;      ///< counted from 1, for the bias corrections
};

/// Scales and biases are trained as s = s0·(1 + a/r), b = b0 + s0·(c − p·a/r) with p the group's mean code and r the matrix's
/// root mean square of q − p: a changes the group's spread about its mean and c shifts it, so the two hardly disturb each
/// other and one learning rate suits every tensor and bit width. All in f32; the forward pass sees them rounded to the
/// dtype in which they will be stored.
class TrainedLinear {
 public:
  /// From a packed affine matrix (codes u32, scales, biases); `teacher` (float, same shape, optional) places the latents.
  TrainedLinear(const codec::Packed& packed, const codec::Format& format, const mx::array* teacher, bool move_codes);

  /// The dense weight that the forward pass sees, [..., N, K] in the stored dtype.
  mx::array weight() const;
  /// Takes in the gradient of the loss with respect to weight() of one part of a batch; parts add up. Where the CPU's kernels serve, dw is
  /// evaluated and so is what is kept of it; elsewhere all is lazy.
  void accumulate(const mx::array& dw);
  /// The accumulated gradient {scales, biases[, weights]}, or {weights} alone where a kernel takes the sums in its step (zeros if there is none):
  /// to be summed over ranks in place before step(), or to be evaluated.
  std::vector<mx::array*> gradient();
  /// One optimizer step; forgets the gradient. Evaluated as accumulate() is.
  void step(const StepRates& rates);
  /// What a step changes, to be evaluated.
  std::vector<mx::array> stepped() const;
  /// The present codes, scales and biases as MLX stores them.
  codec::Packed pack() const;
  const codec::Format& format() const { return format_; }
  /// Everything that changes in training, by name, to save and to restore bit for bit.
  std::map<std::string, mx::array> state() const;
  void restore(const std::map<std::string, mx::array>& state);

 private:
  bool fused() const;
  bool holds_unreduced() const;
  void reduce_to_sums();
  kernels::TrainedMatrix matrix() const;
  float code_rate(const StepRates& rates) const;
  void step_fused(const StepRates& rates);
  mx::array stored_scales() const;
  mx::array stored_biases() const;
  mx::array scales_f32() const;

  codec::Format format_;
  mx::Dtype dtype_;
  bool move_codes_;
  mx::array latents_;          // u16 [..., K]; without moving codes they never change
  mx::array s0_, b0_, pivot_;  // f32 [..., K/group]
  float spread_;               // r above
  mx::array a_, c_, ma_, va_, mc_, vc_, v_;
  // Σ dW·q, Σ dW by group, and dW itself when codes move. For kernels that sum as they step, dW alone: always when codes move, else as long as
  // there is one part and nobody has asked for the sums.
  std::vector<mx::array> gradient_;
};

/// All trained linears of a model in the order of its forward pass, and the dense tensors around them.
class Student {
 public:
  /// `tensors` holds the packed model in full; every affine linear of `formats` with fewer than 8 bits is trained (8-bit ones
  /// are as good as exact) and so is every other one left as it is. `teacher` may hold dense weights by the same names.
  Student(const model::ModelSpec& spec, const model::Formats& formats, model::Tensors tensors, const model::Tensors& teacher, bool move_codes);

  const std::vector<std::string>& paths() const { return paths_; }
  TrainedLinear& linear(std::size_t i) { return linears_[i]; }
  std::size_t size() const { return linears_.size(); }
  std::int64_t trained_parameters() const;
  /// Dense weights in the order of paths(), lazy.
  std::vector<mx::array> weights() const;
  /// Takes in the gradients of the dense weights of one part of a batch, from the last linear to the first, each dropped when it has been reduced.
  void accumulate(std::vector<mx::array> gradients);
  /// All that accumulate() or step() left to be evaluated where no CPU kernels serve; empty elsewhere.
  std::vector<mx::array> accumulated();
  std::vector<mx::array> stepped() const;
  void step(const StepRates& rates);
  /// The model's tensors with `weights` in the places of the trained linears.
  model::Tensors with(const std::vector<mx::array>& weights) const;
  const model::Formats& fixed_formats() const { return fixed_formats_; }
  /// The whole packed model.
  model::Tensors pack() const;
  model::Tensors state() const;
  void restore(const model::Tensors& state);

 private:
  std::vector<std::string> paths_;
  std::vector<TrainedLinear> linears_;
  model::Tensors fixed_;
  model::Formats fixed_formats_;
};

}  // namespace lquant::quantize
