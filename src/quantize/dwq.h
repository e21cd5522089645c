#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/figures.h"
#include "calibration/batches.h"
#include "calibration/targets.h"
#include "kernels/scaled_vjp.h"
#include "quantize/student.h"

// Distilled weight quantization: the quantized student learns the teacher's distribution over the next token.
// docs/methods/dwq.md holds the formulas, the sources and what each choice brought.
namespace lquant::quantize {

struct DwqOptions {
  float temperature = 2;
  float scale_rate = 5e-3f;      ///< peak of Adam's relative step for scales and biases
  float code_rate = 3e-3f;       ///< peak step of the latents of 4-bit codes, in codes
  float warmup = 0.05f;          ///< share of the steps in which the rates rise; then they fall by a cosine to 0
  int micro_tokens = 1024;       ///< tokens in memory at once: a batch is worked through in parts of whole rows
  bool grad_checkpoint = false;  ///< keep block boundaries alone and compute each block again in the backward pass
  int validations = 8;           ///< at most so many during training, besides the first and the last
  /// Whether MLX compiles the pass, which saves a device's host most of its time; f16, whose passes are tried more than once, is never compiled.
  bool compile = false;
};

/// What the trainer tells its caller, who prints and saves.
struct DwqReport {
  int step = 0, steps = 0;
  double loss = 0;                   ///< mean KL per token of this step at the training temperature
  double tokens = 0;                 ///< tokens of this step, all ranks
  double seconds = 0;                ///< its time, validation not counted
  std::optional<double> validation;  ///< when this step ended with one
  bool best = false;                 ///< and it was the best so far
};

/// The loop's own state beside the student's.
struct DwqProgress {
  int step = 0;  ///< finished steps
  double best = 0, start = 0;
  int best_step = 0;
  std::vector<double> losses;
};

class DwqTrainer {
 public:
  /// `train` and `valid` give the batches; targets answers for both. All must outlive the trainer.
  DwqTrainer(const model::ModelSpec& spec, Student& student, mx::Dtype dtype, const std::vector<calibration::Batch>& train,
             const std::vector<calibration::Batch>& valid, calibration::Targets& targets, const DwqOptions& options, mx::distributed::Group group);

  /// Mean KL per token on the validation batches at temperature 1.
  double validate();
  /// Runs from progress.step to the end. `report` is called after every step and returns false to stop there (interrupt): the
  /// state is then that of a finished step. Validates at the start unless resumed. `keep_best` is called whenever validation
  /// finds a new best, first for the start itself.
  void run(DwqProgress& progress, const std::function<bool(const DwqReport&)>& report, const std::function<void()>& keep_best);
  int steps() const { return static_cast<int>(train_.size()); }

 private:
  /// What one forward pass of some rows takes: of a batch's part, made of lengths that a device likes.
  struct Rows {
    mx::array ids, mask;  ///< [R, L]
    std::optional<mx::array> segments;
    calibration::Target target;
  };
  struct Pass {
    mx::array loss;  ///< Σ over tokens; lazy where no CPU kernels serve
    std::vector<mx::array> gradients;
  };
  using Traced = std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

  double train_step(int step, double* tokens);
  Rows rows_of(const std::string& split, int index, const calibration::Batch& batch, int begin, int end);
  Rows next_rows(int step, std::pair<int, int> part);
  Pass pass(const std::vector<mx::array>& weights, const Rows& rows);
  kernels::Pullback differentiated(const std::vector<mx::array>& weights, const Rows& rows) const;
  std::vector<mx::array> traced(const std::vector<mx::array>& inputs, bool segments, bool hidden) const;
  mx::array loss(const std::vector<mx::array>& weights, const Rows& rows, float temperature, bool needs_gradient) const;
  void require_finite(double loss, int step) const;
  double sum_over_ranks(double value) const;
  int steps_between_validations() const;

  const model::ModelSpec& spec_;
  Student& student_;
  mx::Dtype dtype_;
  const std::vector<calibration::Batch>&train_, &valid_;
  calibration::Targets& targets_;
  DwqOptions options_;
  mx::distributed::Group group_;
  /// The pass as MLX has compiled it, by whether there are segments, whether the targets are hidden states; one graph for each shape.
  std::map<std::pair<bool, bool>, Traced> compiled_;
  /// The first rows of the coming step, whose targets the device makes while the host reads the last one's loss.
  std::optional<std::pair<int, Rows>> ahead_;
};

/// A good peak step for the latents of a run of so many steps: 0.048/√steps, at most 0.008. Codes move as by diffusion, so the
/// share that has moved at the end goes with rate·√steps; this keeps it at one to three in a hundred, where KL was lowest.
float default_code_rate(int steps);

/// Words for the user on how the losses of all steps behaved, or empty: the held-out rows' KL never below that of the start (too few rows, or too
/// high a rate: each with what to try), oscillating (lower the rate), barely moving (raise it).
std::string diagnose(const std::vector<double>& losses, double start, double best);

}  // namespace lquant::quantize
