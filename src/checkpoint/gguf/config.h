#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/gguf/metadata.h"
#include "checkpoint/gguf/names.h"
#include "checkpoint/gguf/pieces.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {

/// Tensors that are settings and no weights, by name: "rope_freqs", "rope_factors_long", "rope_factors_short".
using Tables = std::map<std::string, std::vector<float>>;
/// Throws Error when one is no short list of positive numbers.
Tables read_tables(const std::vector<Piece>& pieces);

/// config.json as transformers would have it, from metadata and from which tensors there are. Throws Error naming the key that is missing
/// or that asks for something no supported model does.
nlohmann::json make_config(const Metadata& metadata, const Architecture& architecture, const std::map<std::string, TensorInfo, std::less<>>& tensors,
                           const Tables& tables);

/// The "rope_scaling" block; null for none (docs/gguf.md says what becomes of what).
nlohmann::json make_rope_scaling(const Metadata& metadata, const Tables& tables, int rotated, double base, int context);

}  // namespace lquant::checkpoint::gguf
