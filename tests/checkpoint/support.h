#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/temp.h"

namespace lquant::testing {

/// A temporary folder with short ways to fill it and to look into it.
class Folder : public TempFolder {
 public:
  operator const std::filesystem::path&() const { return path(); }

  void put(const std::string& name, const std::string& bytes) const { std::ofstream(path() / name, std::ios::binary) << bytes; }
  std::string get(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(path() / name, std::ios::binary).rdbuf();
    return text.str();
  }
  /// Names of all entries, hidden ones too, sorted.
  std::vector<std::string> entries(const std::string& below = ".") const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path() / below)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
};

/// A safetensors file, sound or not: the header's length, the header, the data.
inline std::string safetensors(const std::string& header, const std::string& data = "") {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return bytes + header + data;
}

/// The message of the Error that `run` throws; fails the test when it throws none.
template <class Run>
std::string error_of(Run run) {
  try {
    run();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

/// All of `parts` occur in the message, which starts with the room's tag.
inline void expect_sentence(const std::string& message, const std::vector<std::string>& parts) {
  EXPECT_EQ(message.rfind("[checkpoint] ", 0), 0u) << message;
  for (const auto& part : parts) EXPECT_NE(message.find(part), std::string::npos) << "expected: " << part << "\ngot: " << message;
}

}  // namespace lquant::testing
