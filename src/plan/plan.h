#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "codec/format.h"
#include "model/spec.h"
#include "model/tensors.h"

namespace lquant::plan {

/// What becomes of every linear: its format, or dense. Made before any work, from shapes alone.
struct QuantPlan {
  codec::Format base;                            ///< what config.json names globally
  std::map<std::string, codec::Format> formats;  ///< the linears that are quantized
  std::map<std::string, std::string> dense;      ///< those that stay dense, and why
  bool names_all = false;                        ///< config.json names the linears in the base format too, as it does for mlx_lm's recipes
  model::Formats by_path() const { return {formats.begin(), formats.end()}; }
};

/// A format for each linear as `wanted` says; dense where its group or that of `base` does not divide the rows. Throws Error when nothing is left.
QuantPlan plan_by(const model::ModelSpec& spec, const codec::Format& base, const std::function<codec::Format(const model::LinearSpec&)>& wanted);

/// The same format for every linear and the embedding, but for those whose rows the group does not divide (they stay dense, as
/// mlx_lm leaves them) and those that mlx_lm gives a format of their own (routers).
QuantPlan uniform_plan(const model::ModelSpec& spec, const codec::Format& format);

/// `base` for the linears of the blocks and a head of its own, `fallback` for the embedding (tied or not) and for linears whose rows the
/// group of `base` does not divide; what neither divides stays dense. What mlx_lm.gptq does.
QuantPlan fallback_plan(const model::ModelSpec& spec, const codec::Format& base, const codec::Format& fallback);

/// Takes over what a plan file says: an object like config.json's `quantization` block, of which the entries by path count
/// ({"bits", "group_size"[, "mode"]}, each of which may be left out; or false: dense). Throws Error naming `origin`, the
/// file or flag that the plan comes from, and the path, for linears that the model does not have, formats that are impossible and groups that do not
/// divide a row.
void apply_overrides(QuantPlan& plan, const model::ModelSpec& spec, const nlohmann::json& overrides, const std::string& origin);

/// The plan that a quantized checkpoint already follows.
QuantPlan plan_of(const model::ModelSpec& spec, const model::Formats& formats, const nlohmann::json& config);

/// The `quantization` block of config.json: global group_size, bits, mode; by path what differs (false: dense although the group
/// would divide it). `every_path` names the linears that have the global format too: a plan file, which means the same beside any --bits.
nlohmann::json quantization_block(const model::ModelSpec& spec, const QuantPlan& plan, bool every_path = false);

/// The formats in use with the number of their linears, the commonest first.
std::vector<std::pair<codec::Format, int>> format_counts(const QuantPlan& plan);

/// Bytes of a linear's codes, scales and biases in a format that divides its rows; `scale_bytes` of an affine scale or bias.
std::int64_t linear_bytes(const model::LinearSpec& linear, const codec::Format& format, int scale_bytes = 2);

/// Size of the tensors that the plan makes of the spec: weights, scales, biases, norms. `dense_bytes` per dense element.
struct Size {
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
  double bits_per_weight() const { return parameters ? 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters) : 0; }
};
Size size_of(const model::ModelSpec& spec, const QuantPlan& plan, int dense_bytes = 2);

}  // namespace lquant::plan
