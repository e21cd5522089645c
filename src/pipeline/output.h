#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/writer.h"
#include "model/fold.h"
#include "model/model.h"
#include "plan/plan.h"
#include "run/context.h"
#include "run/run_folder.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// What an output folder says of itself beside its tensors (docs/format.md).
struct Record {
  std::string command;     ///< "dwq", "convert"
  nlohmann::json options;  ///< all that the result depends on
  nlohmann::json data;     ///< the calibration manifest, or null
  nlohmann::json quality;  ///< measured figures, or null
};

/// Refuses at once, before any work, an output that exists. Throws Error.
void check_output(const std::filesystem::path& output);

/// Of a model that an output is made from, before any work: throws Error when a file that would be copied is not what it should be
/// (checkpoint::check_copied_files), and says which tensors are left out, and why, and which are
/// kept as they are; a kept part that is packed is refused, since an output's config.json would not say how.
void check_source(const model::Model& source, const run::Context& context);

/// The JSON of a --plan file (plan::apply_overrides). Throws Error naming the file when it cannot be read, is no regular file or not JSON.
nlohmann::json read_plan(const std::filesystem::path& file);

/// One output folder: tensors in the order added, those that `source` keeps as they are, then config.json, lquant.json, README.md and the tokenizer's
/// files of `source`. All or nothing appears under the output's name (checkpoint::Writer).
class ModelWriter {
 public:
  ModelWriter(const std::filesystem::path& output, const model::Model& source);
  /// Sorted by name within the call.
  void add(const model::Tensors& tensors);
  /// A stack that mlx_lm's class has not is written matrix by matrix.
  void add(const std::string& name, const mx::array& tensor);
  /// The file of AWQ's scales, when there are any.
  void add_folds(const model::Folds& folds);
  /// plan.json: the formats of all linears, for --plan of other commands.
  void add_plan(const nlohmann::json& plan) { writer_.write_json("plan.json", plan); }
  /// `plan` null: a dense model. `dtype` is that of its float tensors.
  void finish(const plan::QuantPlan* plan, mx::Dtype dtype, const Record& record);

 private:
  const model::Model& source_;
  std::filesystem::path output_;
  checkpoint::Writer writer_;
};

/// Adds the tensors of a run's units, in order, and AWQ's scales in them, which it returns.
model::Folds write_units(ModelWriter& writer, const run::RunFolder& run, const std::vector<std::string>& units);

/// Of each tensor the unit of a run that holds it.
using UnitOfTensor = std::map<std::string, std::string>;

/// Adds tensors out of a run's units, sorted by name, with one unit in memory at a time.
void write_tensors(ModelWriter& writer, const run::RunFolder& run, const UnitOfTensor& unit_of);

/// "bfloat16", "float16", "float32".
std::string dtype_name(mx::Dtype dtype);

}  // namespace lquant::pipeline
