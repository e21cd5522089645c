#pragma once

#include <optional>
#include <string>

namespace lquant::hub {

/// What a user names on the hub: "org/name", "org/name@revision", for a model also "org/name/file.gguf", for a data set also
/// "org/name:configuration" and "org/name:configuration/split".
struct Name {
  std::string repo;  ///< "org/name"
  std::optional<std::string> revision, file, config, split;
};

/// nullopt when the text has not that form: a path like "./x", "/x", "~/x", "x" or "a/b/c".
std::optional<Name> model_name(const std::string& text);
std::optional<Name> data_name(const std::string& text);

}  // namespace lquant::hub
