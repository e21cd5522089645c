#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/progress.h"
#include "codec/format.h"

namespace lquant::pipeline {

struct ConvertOptions {
  std::filesystem::path model, output = "mlx_model";
  bool quantize = false;
  codec::Format format;
  std::optional<std::filesystem::path> plan;  ///< JSON of formats by path
  bool dequantize = false;
  std::optional<std::string> dtype;  ///< of the tensors that stay dense, and of scales and biases; default: the model's
  bool fresh = false;
};

/// Plain rounding (min/max ranges, as mlx_lm convert), a change of dtype, or back to dense weights; block by block with one block in memory,
/// finished blocks journalled. Throws Error for anything wrong with the input; nothing is left under the output's name then.
void convert(const ConvertOptions& options, Log& log);

}  // namespace lquant::pipeline
