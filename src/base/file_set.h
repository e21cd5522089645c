#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

namespace lquant {

/// The small files of a model (tokenizer.json, config.json, …) by their plain names, wherever they are: in a folder, or in memory
/// because they were rebuilt from another format. A cheap handle; safe to read from many threads.
class FileSet {
 public:
  using Make = std::function<std::string()>;

  /// Every file of `path`, read when it is asked for.
  static FileSet of_folder(std::filesystem::path path);
  /// Files that are made when they are first asked for, and then kept. `origin` is what they were made from, for messages.
  static FileSet of_memory(std::filesystem::path origin, std::map<std::string, Make> files);

  /// Whether there is an entry of that name; it need not be one that read() accepts.
  bool has(const std::string& name) const;
  /// The file's bytes; nothing when there is none of that name. Throws Error (tag `room`) when it cannot be read, has more than `limit`
  /// bytes, is a link that leads out of the folder or no regular file (see find_file), or (from memory) cannot be made.
  std::optional<std::string> read(const char* room, const std::string& name, std::size_t limit = std::size_t{1} << 31) const;
  /// How a message names this file: "folder/tokenizer.json", or "model.gguf (tokenizer.json)".
  std::string label(const std::string& name) const;
  /// How a message names all of them: the folder, or what they were made from.
  std::string label() const;

 private:
  struct Memory;
  std::filesystem::path place_;
  std::shared_ptr<Memory> memory_;  ///< null: a folder
};

}  // namespace lquant
