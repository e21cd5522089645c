#pragma once

#include <mlx/array.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "calibration/hessian.h"
#include "model/fold.h"
#include "model/model.h"
#include "pipeline/gptq.h"
#include "plan/plan.h"
#include "quantize/gptq.h"
#include "run/context.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// The linears of a gptq run: with the Hessians of what they read they are quantized, and AWQ's scales kept where they help.
class GptqLinears {
 public:
  /// All outlive it.
  struct Inputs {
    const GptqRun& options;
    const model::Model& model;
    const plan::QuantPlan& plan;
    const model::Folds& folds;  ///< tried edge by edge
    const run::Context& context;
  };
  /// Times and the correction are added to `result`.
  GptqLinears(const Inputs& inputs, GptqResult& result);

  /// Of the inputs of the linears that come next, on the batches that fit and on those that judge.
  calibration::HessianStore hessians, held_hessians;

  /// Forgets the errors of the block before and the scales kept in it.
  void begin_block();
  using WeightOf = std::function<mx::array(const model::LinearSpec& linear)>;
  /// Quantizes those of `linears` whose Hessians are there, which are forgotten then: `tensors` gets their packed form. `weight_of` gives a weight in
  /// the stored dtype. Throws what quantize::gptq throws, and Interrupted.
  void quantize(const std::vector<const model::LinearSpec*>& linears, model::Tensors& tensors, const WeightOf& weight_of);
  /// What a packed linear among `tensors` stands for, in the compute dtype: with AWQ's scales taken back where it has some. Evaluated.
  mx::array dense(const model::LinearSpec& linear, const model::Tensors& tensors) const;

  /// The edges that have scales to try, and those kept in this block.
  const std::vector<model::Edge>& edges() const { return edges_; }
  const model::Folds& chosen() const { return chosen_; }
  /// Of this block, by that of plain rounding.
  double error_ratio() const { return plain_error_ > 0 ? error_ / plain_error_ : 1; }
  /// How many linears could be corrected.
  double correctable() const { return correctable_; }

 private:
  /// A quantized linear. Errors are those of quantize::GptqResult; `judged` is by the true distance of its outputs from the full-precision model's,
  /// on rows held out if there are any, up to a constant.
  struct Quantized {
    codec::Packed packed{mx::array(0), mx::array(0), std::nullopt};
    double plain_error = 0, error = 0, judged = 0;
  };
  /// A linear on its way.
  struct Task {
    const model::LinearSpec* linear;
    const model::Edge* edge;  ///< whose AWQ scales it may take
    std::optional<mx::array> weight;
    std::vector<Quantized> matrices[2];  ///< of it as it is and, with an edge, of it with the scales in its columns
    Quantized found[2];
  };
  /// The Hessians of one input: of all tokens and, where some are held out, of those that fit and those that judge. Factored once for every
  /// group size that its readers have, when first asked for.
  struct Moments {
    calibration::Hessian all;
    std::optional<calibration::Hessian> train, held;
    std::map<int, quantize::FactoredHessian> all_factored, train_factored;
  };
  const quantize::FactoredHessian& factored(const std::string& path, const calibration::Hessian& hessian,
                                            std::map<int, quantize::FactoredHessian>& known, int group_size);
  Moments& moments_of(const std::string& path);
  quantize::GptqResult quantize_matrix(const std::string& path, const mx::array& weight, Moments& moments, const codec::Format& format);
  void quantize_matrix(Task& task, int e, Moments& moments);
  void quantize_together(std::vector<Task>& tasks, const WeightOf& weight_of);
  void round(Task& task, const WeightOf& weight_of);
  Quantized joined(const model::LinearSpec& linear, std::vector<Quantized> matrices) const;
  const model::Edge* scaled_edge(const model::LinearSpec& linear) const;

  Inputs in_;
  std::string owner_;               ///< of the input that was met last, and
  std::optional<Moments> moments_;  ///< its Hessians: linears that read one input stand together
  GptqResult& result_;
  std::vector<model::Edge> edges_;
  model::Folds chosen_;
  double plain_error_ = 0, error_ = 0;
  double correctable_ = 0;
};

}  // namespace lquant::pipeline
