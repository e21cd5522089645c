#pragma once

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/figures.h"
#include "model/fold.h"
#include "model/model.h"
#include "pipeline/block_tensors.h"
#include "pipeline/rows.h"
#include "pipeline/walk.h"
#include "plan/plan.h"
#include "run/context.h"
#include "run/run_folder.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

class BlockRun;

/// What a method that goes through a model block by block does at each of its stations; BlockRun does the rest.
class BlockMethod {
 public:
  virtual ~BlockMethod() = default;
  /// Whether the full-precision model's walk is needed beside the student's.
  virtual bool needs_teacher() const = 0;
  /// What stands outside the blocks and is not the head: an untied embedding, one of positions, linears before the first block and behind the last.
  /// Nothing weighs one of its columns above another: rows are looked up, and what else is there is not observed.
  virtual codec::Packed pack_outer(const mx::array& weight, const codec::Format& format) = 0;
  struct Turn {
    run::RunFolder::Unit unit;  ///< the block as it is written
    std::string figure;         ///< for the user
  };
  /// Quantizes a block. Both walks stand before it and have come out of it when this returns, the student's to the last bit as it does out of the
  /// written tensors.
  virtual Turn turn(const BlockTensors& source) = 0;
  /// Told instead of turn() of a block that an earlier process has finished.
  virtual void skipped(const nlohmann::json& /*meta*/) {}
  /// The final norm and the head (or the embedding that serves as one), by what the walks give behind the last block.
  virtual model::Tensors finish() = 0;
};

/// One run of such a method: it opens the inputs, takes the walks through the model, keeps what is finished and writes the output.
/// Call in this order: the constructor, follow, begin, quantize, write. All throw Error or Interrupted as the command itself does.
class BlockRun {
 public:
  struct Inputs {
    std::string command, doing;  ///< "gptq", "quantizing blocks"
    std::filesystem::path model, output;
    const RowOptions& rows;  ///< outlives the run
    bool fresh = false;
  };
  /// Refuses an output that exists and opens the model.
  BlockRun(Inputs inputs, const run::Context& context);

  /// Takes the plan and tells what stays dense.
  void follow(plan::QuantPlan plan);
  /// Opens the run folder and gets the rows. `more`: what the result depends on besides options, rows and model.
  void begin(nlohmann::json options, const nlohmann::json& more = nlohmann::json::object());
  void quantize(BlockMethod& method);
  struct Written {
    model::Folds folds;  ///< AWQ's scales in the output
    plan::Size size;
    double seconds = 0;  ///< since the constructor
  };
  /// `recorded`: the options as the output shall name them.
  Written write(const nlohmann::json& recorded);

  const model::Model& model() const { return model_; }
  const plan::QuantPlan& plan() const { return plan_; }
  /// As often as the model's blocks run (Rows::in_passes).
  const Rows& rows() const { return rows_; }
  const run::Context& context() const { return context_; }
  run::RunFolder& folder() { return *folder_; }
  /// There from quantize() on; a teacher only when the method needs one.
  Walk& student() { return *student_; }
  Walk* teacher() { return teacher_ ? &*teacher_ : nullptr; }

 private:
  /// Whether something stands before the blocks that is not written with the head.
  bool has_front() const;
  /// Puts a linear outside the blocks into its format, if the plan has one for it.
  void pack(BlockMethod& method, const model::LinearSpec& linear, model::Tensors& tensors, model::Formats& formats) const;
  std::vector<std::string> units() const;
  /// Dense, in the compute dtype.
  model::Tensors full_block(int i) const;
  void embed(BlockMethod& method);

  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  Inputs in_;
  const run::Context& context_;
  checkpoint::Checkpoint checkpoint_;
  model::Model model_;
  text::Tokenizer tokenizer_;
  plan::QuantPlan plan_;
  Rows rows_;
  std::optional<run::RunFolder> folder_;
  std::optional<run::Stop::Heeding> heeding_;
  std::optional<Walk> student_, teacher_;
};

double seconds_since(std::chrono::steady_clock::time_point start);

}  // namespace lquant::pipeline
