#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/figures.h"
#include "codec/format.h"
#include "model/model.h"
#include "pipeline/rows.h"
#include "run/context.h"
#include "run/run_folder.h"

namespace lquant::pipeline {

/// What quantizing each linear alone costs, in KL divergence per token, in each of some formats.
struct Sensitivities {
  std::vector<codec::Format> formats;
  /// By linear, in the order of `formats`; NaN for a format that its width does not allow. The embedding's covers a head tied to it.
  std::map<std::string, std::vector<double>> kl;
  double tokens = 0;
  std::string model;    ///< the checkpoint's hash
  nlohmann::json data;  ///< the calibration manifest
  bool measured = false;

  /// A linear's cost in a format; NaN when it is not known.
  double of(const std::string& path, const codec::Format& format) const;

  nlohmann::json to_json() const;
  /// Throws Error naming `file`, the place in it and `mend`, what to do, when it is not what to_json writes.
  static Sensitivities from_json(const nlohmann::json& json, const std::string& file, const char* mend);
};

/// Every format that the affine mode has.
std::vector<codec::Format> affine_formats();

/// Every affine format of these widths and groups.
std::vector<codec::Format> formats_of(const std::vector<int>& bits, const std::vector<int>& groups);

/// One pass forward and one backward over the rows, block by block: in memory are one block's weights with their Fisher diagonals and the activations
/// of all rows at one place in the model; activations between blocks wait in the run folder. Blocks that are done are journalled there. Its unit
/// "sensitivities" is the result, kept for a run that goes on after it.
Sensitivities compute_sensitivities(const model::Model& model, const Rows& rows, const std::vector<codec::Format>& formats, run::RunFolder& run,
                                    const run::Context& context);

}  // namespace lquant::pipeline
