#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "calibration/hessian.h"
#include "model/fold.h"
#include "model/model.h"
#include "pipeline/block_tensors.h"
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
    const BlockTensors& source;
    const Walk& student;  ///< before the block
    /// What the full-precision model has on the judging batches: hidden states behind each step but the last, by its number, and behind the block.
    const std::map<int, std::vector<mx::array>>& behind_step;
    const std::vector<mx::array>& behind_block;
  };
  explicit AwqBlock(const Inputs& inputs);

  /// Of each linear what the scales that it reads are chosen by, and what weighs its ranges (the mean squares of its inputs over all rows: f32 [K],
  /// or [E, K] of experts), of one set of inputs.
  using Choosing = std::map<std::string, quantize::Hessians>;
  using Weighing = std::map<std::string, mx::array>;
  AwqSolution solve(const Choosing& choosing, const Weighing& weighing);
  /// The parts that the last solve() kept, with ranges weighed by other moments.
  AwqSolution reweighed(const Weighing& weighing);

  /// Seconds.
  double search_time = 0, gate_time = 0;

 private:
  /// Which parts are in use.
  struct Parts {
    std::set<std::string> edges;
    bool clip = true;
  };
  const codec::Format* format_of(const std::string& path) const;
  double sub_layer_error(const model::Edge& edge, const Weighing& weighing);
  void choose(const Choosing& choosing, const Weighing& weighing);
  /// Dense tensors in the compute dtype; `weight` makes those that are only there while they are needed (BlockTensors).
  struct Candidate {
    model::Tensors tensors;
    std::function<mx::array(const model::LinearSpec& linear)> weight;
  };
  /// Behind a step that is not the last, or behind the block.
  RowErrors error_of(const Candidate& candidate, std::optional<int> step) const;
  RowErrors block_error(const model::Tensors& packed) const;
  void add_distance(RowErrors& errors, std::size_t judge, const mx::array& states, const mx::array& reference) const;
  model::Folds used(const Parts& parts) const;
  codec::Packed rounded(const mx::array& weight, const codec::Format& format, const std::optional<mx::array>& importance) const;
  std::string key_of(const model::LinearSpec& linear, const Parts& parts) const;
  const codec::Packed& quantized(const model::LinearSpec& linear, const Parts& parts, const Weighing& weighing);
  AwqSolution build(const Parts& parts, const Weighing& weighing);
  AwqSolution judged(const Parts& parts, const Weighing& weighing);
  AwqSolution gate(const Weighing& weighing);
  /// Forgets what is not part of this.
  void keep(const Parts& parts);

  Inputs in_;
  const model::ModelSpec& spec_;
  std::vector<model::Edge> edges_;  // of this block
  model::Folds folds_;
  Parts kept_;
  std::map<std::string, codec::Packed> cache_;  // by linear and the parts that touch it
};

}  // namespace lquant::pipeline
