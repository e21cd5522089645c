#pragma once

#include <mlx/distributed/distributed.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/figures.h"
#include "codec/format.h"
#include "quantize/dwq.h"
#include "run/context.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

struct DwqRun {
  std::filesystem::path model, output = "mlx_model";
  std::optional<std::filesystem::path> quantized_model;  ///< a student to start from; else the model itself is quantized
  codec::Format format;
  std::optional<std::filesystem::path> plan;  ///< JSON of formats by path, over `format`
  int num_samples = 1024, num_valid = 32;
  int max_seq_length = 2048;
  std::uint64_t seed = 123;
  std::optional<double> learning_rate;  ///< peak relative step of scales and biases; default: chosen
  int batch_size = 8;
  std::string data = "self";  ///< a file, a folder, or "self"
  bool mask_prompt = false;
  bool grad_checkpoint = false;
  float temperature = 2;
  bool move_codes = true;
  std::optional<std::filesystem::path> target_dir;
  bool targets_only = false;
  std::string targets = "hidden";  ///< what target_dir holds: "hidden" or "topk"
  bool fresh = false;
};

/// What a run did, for the program that asked (--json) and for tables.
struct DwqResult {
  double start_kl = 0, best_kl = 0;  ///< on the validation rows, nats per token
  int steps = 0, best_step = 0;
  double tokens = 0, seconds = 0;              ///< trained in this process, and the time of those steps without validation
  double later_tokens = 0, later_seconds = 0;  ///< the same without this process's first two steps
  double bits_per_weight = 0;
  std::int64_t bytes = 0;
  nlohmann::json to_json() const;
};

/// The whole of `lquant dwq`: data, start, training, output. Journalled: the same call continues a killed run and ends in the same bytes.
/// All ranks of the context's group call it; rank 0 writes. Throws Error (nothing is left under the output's name) or Interrupted (state saved).
DwqResult dwq(const DwqRun& options, const run::Context& context);

}  // namespace lquant::pipeline
