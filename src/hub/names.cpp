#include "hub/names.h"

#include <algorithm>
#include <cctype>

namespace lquant::hub {
namespace {

/// A part of a repository's id, as the hub allows it.
bool is_part(const std::string& text) {
  return !text.empty() && text.size() <= 96 && text.front() != '.' && text.front() != '-' && text.find("..") == std::string::npos &&
         text.find("--") == std::string::npos &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; });
}

/// Cuts what follows the last `mark` off `text`.
std::optional<std::string> cut(std::string& text, char mark) {
  const auto at = text.rfind(mark);
  if (at == std::string::npos) return std::nullopt;
  auto tail = text.substr(at + 1);
  text.resize(at);
  return tail;
}

std::optional<Name> checked(Name name) {
  const auto slash = name.repo.find('/');
  const bool fine = slash != std::string::npos && is_part(name.repo.substr(0, slash)) && is_part(name.repo.substr(slash + 1));
  for (const auto* more : {&name.revision, &name.file, &name.config, &name.split})
    if (*more && (*more)->empty()) return std::nullopt;
  return fine ? std::optional(std::move(name)) : std::nullopt;
}

}  // namespace

std::optional<Name> model_name(const std::string& text) {
  Name name{text, {}, {}, {}, {}};
  name.revision = cut(name.repo, '@');
  const auto first = name.repo.find('/'), second = first == std::string::npos ? first : name.repo.find('/', first + 1);
  if (second != std::string::npos) {
    name.file = name.repo.substr(second + 1);
    if (!name.file->ends_with(".gguf")) return std::nullopt;
    name.repo.resize(second);
  }
  return checked(std::move(name));
}

std::optional<Name> data_name(const std::string& text) {
  Name name{text, {}, {}, {}, {}};
  name.revision = cut(name.repo, '@');
  if (const auto colon = name.repo.find(':'); colon != std::string::npos) {
    name.config = name.repo.substr(colon + 1);
    name.repo.resize(colon);
    name.split = cut(*name.config, '/');
  }
  return checked(std::move(name));
}

}  // namespace lquant::hub
