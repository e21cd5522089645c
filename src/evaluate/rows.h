#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "evaluate/task.h"

namespace lquant::evaluate {

/// One row as a task sees it.
struct Question {
  std::vector<std::string> texts;    ///< the prompt, or one for each choice
  std::vector<std::string> endings;  ///< what is scored behind the prompt: the choices, or the same ending for each
  std::size_t gold = 0;              ///< the right choice
  const std::string& text(std::size_t choice) const { return texts.size() == 1 ? texts[0] : texts[choice]; }
};

/// A .jsonl file, parsed row by row when asked for. Blank lines do not count.
class RowFile {
 public:
  /// Throws Error naming the file when it cannot be read or holds no row.
  explicit RowFile(const std::filesystem::path& file);

  std::size_t size() const { return lines_.size(); }
  /// Throws Error naming file and line when the line is no JSON object.
  nlohmann::json row(std::size_t i) const;
  /// Row i through the task's templates. Throws Error naming file and line: a field is missing or of the wrong kind, a choice is empty, there
  /// are fewer than two choices, the right one is none of them.
  Question question(const Task& task, std::size_t i) const;
  /// "FILE:LINE" of row i.
  std::string place(std::size_t i) const;
  /// SHA-256 of the file.
  const std::string& hash() const { return hash_; }

 private:
  struct Line {
    std::size_t begin, length, number;
  };
  std::filesystem::path file_;
  std::string bytes_, hash_;
  std::vector<Line> lines_;
};

}  // namespace lquant::evaluate
