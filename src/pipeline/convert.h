#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/figures.h"
#include "run/context.h"
#include "codec/format.h"

namespace lquant::pipeline {

struct ConvertOptions {
  std::filesystem::path model, output = "mlx_model";
  bool quantize = false;
  codec::Format format;
  std::optional<std::string> recipe;          ///< mixed bits (plan/recipe.h); format's are then what config.json names globally
  std::optional<std::filesystem::path> plan;  ///< JSON of formats by path
  bool dequantize = false;
  /// Of the tensors that stay dense, and of scales and biases; default: config.json's torch_dtype, else that of the weights.
  std::optional<std::string> dtype;
  bool fresh = false;
};

/// What options alone can tell: throws UsageError for what excludes each other and for a dtype that is none.
void check_options(const ConvertOptions& options);

/// Plain rounding (min/max ranges, as mlx_lm convert), a change of dtype (a quantized model's codes are kept), or back to dense weights; block by
/// block with one block in memory, finished blocks journalled. Throws Error for anything wrong with the input; nothing is left under the output's
/// name then.
void convert(const ConvertOptions& options, const run::Context& context);

}  // namespace lquant::pipeline
