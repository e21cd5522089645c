#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/figures.h"
#include "codec/format.h"
#include "pipeline/rows.h"
#include "quantize/blockwise.h"
#include "quantize/gptq.h"
#include "run/context.h"

namespace lquant::pipeline {

/// Whether linears are aimed at the full-precision model's outputs although their inputs come from the quantized one.
enum class Asymmetric { automatic, on, off };

struct GptqRun {
  std::filesystem::path model, output = "mlx_model";
  codec::Format format;
  codec::Format fallback{codec::Mode::affine, 6, 64};  ///< of the embedding, and of linears whose rows the group does not divide
  std::optional<int> embed_bits;                       ///< of the embedding (and a head tied to it); default: the fallback's
  std::optional<std::filesystem::path> plan;           ///< JSON of formats by path
  RowOptions rows;
  std::optional<std::filesystem::path> scaled;  ///< a result of awq: its scales are folded into the model first
  quantize::GptqOptions method;
  bool sequential = true;  ///< inside a block, each linear's inputs come from the linears already quantized; else all at once
  Asymmetric asymmetric = Asymmetric::automatic;
  quantize::BlockwiseOptions training;  ///< of each block behind its GPTQ
  bool fresh = false;
};

struct GptqResult {
  double bits_per_weight = 0;
  std::int64_t bytes = 0;
  double tokens = 0;
  /// Seconds of this process: running the model, Hessians, range search, factors, the solve.
  double forward_time = 0, hessian_time = 0, search_time = 0, factor_time = 0, solve_time = 0, train_time = 0, total_time = 0;
  double corrected = 0;  ///< mean share of the correction over the linears that could have it
  nlohmann::json to_json() const;
};

/// The whole of `lquant gptq`: data, block after block, output. One block's weights and Hessians are in memory, of experts one Hessian and the
/// weights of one stage, with the activations of the calibration rows. Finished blocks are journalled: the same call continues a killed run and ends
/// in the same bytes. Throws Error (nothing is left under the output's name) or Interrupted (state saved).
GptqResult gptq(const GptqRun& options, const run::Context& context);

}  // namespace lquant::pipeline
