#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lquant {

/// The whole of a file. Throws Error (tag `room`) naming the path when it cannot be read, is no regular file, or exceeds `limit` bytes.
std::string read_file(const char* room, const std::filesystem::path& path, std::size_t limit = std::size_t{1} << 31);

/// A file parsed as JSON (base/json.h); the error names the path and the position.
nlohmann::json read_json(const char* room, const std::filesystem::path& path);

/// A config.json, in which floats may be Python's Infinity and NaN: they are tagged as transformers does (with_tagged_floats).
nlohmann::json read_config_json(const char* room, const std::filesystem::path& path);

/// Writes beside `path`, syncs, then renames over it: readers see the old file or the new one, never a part.
void write_file_atomically(const char* room, const std::filesystem::path& path, std::string_view bytes);

/// Flushes a file or a folder's entries to the disk. Throws Error (tag `room`) when the disk says no.
void sync_path(const char* room, const std::filesystem::path& path);

}  // namespace lquant
