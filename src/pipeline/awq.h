#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/figures.h"
#include "codec/format.h"
#include "pipeline/rows.h"
#include "quantize/awq.h"
#include "run/context.h"

namespace lquant::pipeline {

/// Whose inputs the statistics of a block come from: of the model whose earlier blocks are quantized already, of the full-precision model, or
/// block by block of whichever gives the lower error of the block's outputs on rows held out.
enum class AwqInputs { automatic, quantized, full };

struct AwqRun {
  std::filesystem::path model, output = "mlx_model";
  codec::Format format;
  /// Of the embedding (and a head tied to it), and of linears whose rows the group does not divide.
  codec::Format embedding{codec::Mode::affine, 4, 32};
  std::optional<std::filesystem::path> plan;  ///< JSON of formats by path
  RowOptions rows{{"self"}, 32};
  quantize::AwqOptions method;
  AwqInputs inputs = AwqInputs::automatic;
  bool fresh = false;
};

struct AwqResult {
  double bits_per_weight = 0;
  std::int64_t bytes = 0;
  double tokens = 0;
  double error_ratio = 1;  ///< mean over blocks of the outputs' error by that of plain rounding
  int edges = 0, scaled = 0, clipped = 0, from_quantized = 0, blocks = 0;
  /// Seconds of this process.
  double forward_time = 0, hessian_time = 0, search_time = 0, gate_time = 0, total_time = 0;
  nlohmann::json to_json() const;
};

/// The whole of `lquant awq`: data, block after block, output. One block's weights and second moments are in memory, of experts one Hessian and the
/// weights of one stage, with the activations of the calibration rows. The output has the scales in a file of their own (docs/format.md), for methods
/// that follow. Finished blocks are journalled: the same call continues a killed run and ends in the same bytes. Throws Error (nothing is left under
/// the output's name) or Interrupted (state saved).
AwqResult awq(const AwqRun& options, const run::Context& context);

/// What awq records of a run with these options, to tell whether a folder is its result.
nlohmann::json awq_options(const AwqRun& options);

}  // namespace lquant::pipeline
