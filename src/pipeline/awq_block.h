#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "calibration/hessian.h"
#include "model/fold.h"
#include "model/model.h"
#include "pipeline/rows.h"
#include "pipeline/walk.h"
#include "plan/plan.h"
#include "quantize/awq.h"

namespace lquant::pipeline {

/// Squared distances of outputs from the full-precision model's, row by row of the judging batches.
using RowErrors = std::vector<double>;
double sum(const RowErrors& errors);
/// Whether `a` is below `b` by more than twice the standard error that the difference has from row to row: what is less may be chance.
/// One row shows no error; there the difference alone decides.
bool clearly_below(const RowErrors& a, const RowErrors& b);

/// What AWQ has found for one block: its packed tensors and the scales behind them.
struct AwqSolution {
  model::Tensors packed;            ///< as they are written
  model::Tensors dense;             ///< what they stand for, in the compute dtype
  model::Folds folds;               ///< that are in use
  bool clipped = true;              ///< whether searched ranges are in use
  std::vector<std::string> undone;  ///< parts that did not help: producers of edges, or "clip"
  RowErrors plain_error, error;     ///< of the block's outputs
};

/// One block under AWQ: scales for each of its edges, searched ranges, and a gate that undoes what does not lower the error of the block's outputs.
class AwqBlock {
 public:
  struct Inputs {
    const model::Model& model;
    const plan::QuantPlan& plan;
    const quantize::AwqOptions& options;
    const Rows& rows;
    const std::vector<std::size_t>& judges;  ///< batches that judge
    int block;
    const model::Tensors& stored;  ///< dense, in the stored dtype
    const model::Tensors& full;    ///< the same in the compute dtype
    const Walk& student;           ///< before the block
    /// What the full-precision model has on the judging batches: hidden states behind each step but the last, by its number, and behind the block.
    const std::map<int, std::vector<mx::array>>& behind_step;
    const std::vector<mx::array>& behind_block;
  };
  explicit AwqBlock(const Inputs& inputs);

  /// From the second moments of one set of inputs: those that choose scales and (of all rows) those that weigh ranges, for each linear.
  using Moments = std::map<std::string, std::vector<calibration::Hessian>>;
  AwqSolution solve(const Moments& choosing, const Moments& weighing);
  /// The parts that the last solve() kept, with ranges weighed by other moments.
  AwqSolution reweighed(const Moments& weighing);

  /// Seconds.
  double search_time = 0, gate_time = 0;

 private:
  /// Which parts are in use.
  struct Parts {
    std::set<std::string> edges;
    bool clip = true;
  };
  struct Quantized {
    codec::Packed packed;
    mx::array dense;
  };
  const codec::Format* format_of(const std::string& path) const;
  double sub_layer_error(const model::Edge& edge, const Moments& weighing);
  void choose(const Moments& choosing, const Moments& weighing);
  RowErrors step_error(const model::Tensors& tensors, int step) const;  ///< behind a step that is not the last
  RowErrors block_error(const model::Tensors& tensors) const;
  void add_distance(RowErrors& errors, std::size_t judge, const mx::array& states, const mx::array& reference) const;
  model::Tensors folded(const Parts& parts) const;
  const Quantized& quantized(const model::LinearSpec& linear, const Parts& parts, const model::Tensors& folded, const Moments& weighing);
  AwqSolution build(const Parts& parts, const Moments& weighing);
  AwqSolution judged(const Parts& parts, const Moments& weighing);
  AwqSolution gate(const Moments& weighing);

  Inputs in_;
  const model::ModelSpec& spec_;
  std::vector<model::Edge> edges_;  // of this block
  model::Folds folds_;
  Parts kept_;
  std::map<std::string, Quantized> cache_;  // by linear and the parts that touch it
};

}  // namespace lquant::pipeline
