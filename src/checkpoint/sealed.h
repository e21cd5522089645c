#pragma once

#include <mlx/array.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>

#include "base/error.h"

namespace lquant::checkpoint {

namespace mx = mlx::core;

/// Tensors and JSON in one file that lquant writes for itself and must be able to trust later: units of a run, a teacher's targets.
struct Sealed {
  std::unordered_map<std::string, mx::array> tensors;
  nlohmann::json meta;
};

/// A sealed file that is cut short, has other bytes than were written, or is none at all. It can be made again.
class Damaged : public Error {
  using Error::Error;
};

/// Writes a safetensors file whose last 32 bytes, a tensor named "lquant.sha256", are the SHA-256 (FIPS 180-4) of all bytes before them; `meta`
/// is the value of "lquant" in its metadata. Written beside `file` as FILE.partial, synced, renamed over it, the folder synced: readers see
/// the old file, the new one or none. Tensors are evaluated. Throws Error naming the file when the disk refuses; nothing is left then.
void write_sealed(const std::filesystem::path& file, const std::unordered_map<std::string, mx::array>& tensors, const nlohmann::json& meta);

/// Reads it whole. Throws Damaged when its bytes are not those that were written, Error when it cannot be opened or read.
Sealed read_sealed(const std::filesystem::path& file);

/// Whether the file is as it was written; reads all of it. Throws Error when it cannot be opened or read.
bool is_intact(const std::filesystem::path& file);

}  // namespace lquant::checkpoint
