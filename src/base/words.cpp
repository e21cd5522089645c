#include "base/words.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

namespace lquant {
namespace fs = std::filesystem;
using nlohmann::json;

std::string utf8(std::string_view bytes) {
  return json::parse(json(bytes).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>();
}

std::string utf8(const fs::path& path) { return utf8(std::string_view(path.native())); }

bool is_utf8(std::string_view bytes) { return utf8(bytes) == bytes; }

std::string name_of(const fs::path& path) {
  const auto whole = fs::absolute(path).lexically_normal();
  return utf8(whole.has_filename() ? whole.filename() : whole.parent_path().filename());
}

std::string shell_quoted(std::string_view text) {
  const auto is_safe = [](unsigned char c) { return std::isalnum(c) || std::string_view("-_./,:=@%+").find(static_cast<char>(c)) != std::string_view::npos; };
  if (!text.empty() && std::all_of(text.begin(), text.end(), is_safe)) return std::string(text);
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

}  // namespace lquant
