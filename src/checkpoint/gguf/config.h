#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/gguf/metadata.h"
#include "checkpoint/gguf/names.h"
#include "checkpoint/gguf/pieces.h"

namespace lquant::checkpoint::gguf {

/// Tensors that are settings and no weights, by name: "rope_freqs", "rope_factors_long", "rope_factors_short".
using Tables = std::map<std::string, std::vector<float>>;
/// Throws Error when one is no short list of positive numbers.
Tables read_tables(const std::vector<Piece>& pieces);

/// Fields of config.json from metadata of the architecture. A value that is missing or of another kind is an Error that names its key.
class Fields {
 public:
  Fields(const Metadata& metadata, nlohmann::json& config) : metadata_(metadata), config_(config) {}

  /// Whole numbers from 0. Each writes config[field] from the metadata "ARCHITECTURE.key" and returns it; without `otherwise` the key must be there.
  int count(const char* field, const char* key);
  int count(const char* field, const char* key, int otherwise);
  double number(const char* field, const char* key);
  double number(const char* field, const char* key, double otherwise);

 private:
  template <class T>
  T put(const char* field, T value);
  const Metadata& metadata_;
  nlohmann::json& config_;
};

/// config.json as transformers would have it, from metadata and from which tensors there are: sizes, heads, positions, ids and dtype, a gated MLP
/// with SiLU, and last what the architecture adds or changes (Architecture::complete). Throws Error naming the key that is missing or that asks for
/// something no supported model does.
nlohmann::json make_config(const Metadata& metadata, const Architecture& architecture, const Tensors& tensors, const Tables& tables);

/// The "rope_scaling" block; null for none (docs/gguf.md says what becomes of what).
nlohmann::json make_rope_scaling(const Metadata& metadata, const Tables& tables, int rotated, double base, int context);

}  // namespace lquant::checkpoint::gguf
