#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"

namespace lquant::text {

/// A folder that is gone with the test.
class TempFolder {
 public:
  TempFolder() {
    auto pattern = (std::filesystem::temp_directory_path() / "lquant-text-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  TempFolder& write(const std::string& name, std::string_view bytes) {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return *this;
  }
  TempFolder& write(const std::string& name, const nlohmann::ordered_json& value) { return write(name, std::string_view(value.dump())); }

 private:
  std::filesystem::path path_;
};

inline std::filesystem::path tiny_model() { return std::filesystem::path(LQUANT_SOURCE_DIR) / "models/tiny"; }

/// The smallest tokenizer.json that is one: words at blanks, with an unknown word and an end.
inline nlohmann::json word_tokenizer() {
  return {
      {"version", "1.0"},
      {"added_tokens",
       {{{"id", 1}, {"content", "</s>"}, {"single_word", false}, {"lstrip", false}, {"rstrip", false}, {"normalized", false}, {"special", true}}}},
      {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
      {"model", {{"type", "WordLevel"}, {"vocab", {{"<unk>", 0}, {"</s>", 1}, {"a", 2}, {"b", 3}, {"<s>", 4}}}, {"unk_token", "<unk>"}}}};
}

/// Whether the text holds all of the parts.
template <class... Parts>
testing::AssertionResult has(const std::string& text, const Parts&... parts) {
  if ((... && (text.find(parts) != std::string::npos))) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "\"" << text << "\" lacks one of:" << (... + (" " + std::string(parts)));
}

/// The message of the Error that `work` throws; "no error" when it throws none.
template <class Work>
std::string message_of(Work work) {
  try {
    work();
  } catch (const lquant::Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace lquant::text
