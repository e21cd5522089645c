#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf/header.h"

namespace lquant::checkpoint::gguf {

/// A header's metadata, asked by key and kind. A key that is absent is nothing; one of another kind is an Error naming it.
class Metadata {
 public:
  Metadata(Header header, std::filesystem::path file);

  const std::filesystem::path& file() const { return file_; }
  /// "llama", "qwen2", …: general.architecture. Throws Error when there is none.
  const std::string& architecture() const { return architecture_; }
  /// "attention.head_count" → "llama.attention.head_count".
  std::string key(std::string_view of_architecture) const { return architecture_ + "." + std::string(of_architecture); }

  bool has(std::string_view key) const { return find(key) != nullptr; }
  /// Whole, in [0, 2^31). A list of equal ones, as some writers give one a layer, counts as that one; a list of different ones is an Error.
  std::optional<int> count(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> flag(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  /// Lists. Null when absent.
  const std::vector<std::string_view>* texts(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;

  /// The same of a key that must be there.
  int needed_count(std::string_view key) const;

 private:
  const Value* find(std::string_view key) const;
  [[noreturn]] void wrong(std::string_view key, const Value& value, const char* needed) const;
  Header header_;
  std::filesystem::path file_;
  std::string architecture_;
};

}  // namespace lquant::checkpoint::gguf
