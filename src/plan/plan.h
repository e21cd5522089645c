#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "codec/format.h"
#include "model/spec.h"
#include "model/tensors.h"

namespace lquant::plan {

/// What becomes of every linear: its format, or dense. Made before any work, from shapes alone.
struct QuantPlan {
  codec::Format base;                                           ///< what config.json names globally
  std::map<std::string, codec::Format> formats;                 ///< the linears that are quantized
  std::map<std::string, std::string> dense;                     ///< those that stay dense, and why
  model::Formats by_path() const { return {formats.begin(), formats.end()}; }
};

/// The same format for every linear and the embedding, but for those whose rows the group does not divide (they stay dense, as
/// mlx_lm leaves them) and those that mlx_lm gives a format of their own (routers).
QuantPlan uniform_plan(const model::ModelSpec& spec, const codec::Format& format);

/// The plan that a quantized checkpoint already follows.
QuantPlan plan_of(const model::ModelSpec& spec, const model::Formats& formats, const nlohmann::json& config);

/// The `quantization` block of config.json: global group_size, bits, mode; by path what differs (false: dense although the group
/// would divide it).
nlohmann::json quantization_block(const model::ModelSpec& spec, const QuantPlan& plan);

/// Size of the tensors that the plan makes of the spec: weights, scales, biases, norms. `dense_bytes` per dense element.
struct Size {
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
  double bits_per_weight() const { return parameters ? 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters) : 0; }
};
Size size_of(const model::ModelSpec& spec, const QuantPlan& plan, int dense_bytes = 2);

}  // namespace lquant::plan
